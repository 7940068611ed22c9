// Adds inspect, states, geometry and version to gradext._C: the facts of state.h as Python objects,
// without the dispatcher's cost.
#pragma once

#include <pybind11/pybind11.h>

namespace gradext::state {

void bind(pybind11::module_& m);
// What only tests use (gradext._C.testing).
void bind_testing(pybind11::module_& m);

}  // namespace gradext::state
