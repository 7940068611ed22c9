// Adds the recorder's functions to gradext._C.
#pragma once

#include <pybind11/pybind11.h>

namespace gradext::recorder {

void bind(pybind11::module_& m);
// What only tests use (gradext._C.testing).
void bind_testing(pybind11::module_& m);

}  // namespace gradext::recorder
