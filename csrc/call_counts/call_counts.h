// Counts what one call makes torch do (gradext.compare_modes): ops, nodes, allocations. Owns the
// counting between start and stop on
// the calling thread (and on the threads that do its work: autograd's, at::parallel_for's). It is
// not the recorder: it knows no line, keeps nothing, and no call is timed under it.
#pragma once

#include <pybind11/pybind11.h>

namespace gradext::call_counts {

void bind(pybind11::module_& m);

}  // namespace gradext::call_counts
