// The recorder's part of the pybind11 door.
#pragma once

#include <pybind11/pybind11.h>

namespace gradext::recorder {

void bind(pybind11::module_& m);

}  // namespace gradext::recorder
