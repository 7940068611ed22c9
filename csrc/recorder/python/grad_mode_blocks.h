// Remembers, thread by thread, where grad mode and inference mode were switched.
#pragma once

namespace gradext::recorder {

// The calling thread has set grad mode, which was `was` before.
void grad_mode_set(bool was);
void inference_entered();
void inference_left();

}  // namespace gradext::recorder
