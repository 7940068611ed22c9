// Keeps what a checkpoint's forward packed, as facts and not as tensors, and compares it with what
// its recompute has packed (GX406). Versions are compared always, bytes while a guard is on.
#pragma once

#include <pybind11/pybind11.h>

namespace gradext::guard {

// An op of this thread has ended, and is within no other. What it saved is whole only now: an op
// may write what it saves itself (RReLU draws its noise so).
void finish_packs();
// Whether there are any on this thread.
bool has_unfinished_packs();

void bind_recompute(pybind11::module_& m);

}  // namespace gradext::guard
