// The guard's part of the pybind11 door.
#pragma once

#include <pybind11/pybind11.h>

namespace gradext::guard {

void bind(pybind11::module_& m);

}  // namespace gradext::guard
