// Adds guard_start, guard_stop and guard_watch to gradext._C.
#pragma once

#include <pybind11/pybind11.h>

namespace gradext::guard {

void bind(pybind11::module_& m);
// What only tests use (gradext._C.testing).
void bind_testing(pybind11::module_& m);

}  // namespace gradext::guard
