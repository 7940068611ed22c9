// Registers the recorder's kernels: which op gets which, on which key.
#pragma once

namespace gradext::recorder {

// Once per process, at the first recording.
void register_kernels();

}  // namespace gradext::recorder
