// Adds loops over the example ops to gradext._C, for benchmarks/*.py.
#pragma once

#include <pybind11/pybind11.h>

namespace gradext::benchmarks {

// For gradext._C.testing.
void bind_testing(pybind11::module_& m);

}  // namespace gradext::benchmarks
