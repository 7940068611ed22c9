// The state's part of the pybind11 door: the facts of state.h, the same code that answers the ops,
// as Python objects and without the dispatcher's cost.
#pragma once

#include <pybind11/pybind11.h>

namespace gradext::state {

void bind(pybind11::module_& m);

}  // namespace gradext::state
