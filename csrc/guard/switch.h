// Switches the guard on and off, and hands it what happens meanwhile: each op, each backward, each
// tensor whose memory the program got hold of.
#pragma once

namespace gradext::guard {

// Nestable.
void switch_on();
void switch_off();

// Whether this thread is within an op; known while a guard is on.
bool is_in_op();

}  // namespace gradext::guard
