// Adds to gradext._C what a diagnosis asks: who a tensor is, what a node has saved, whether it is
// the same finding again.
#pragma once

#include <pybind11/pybind11.h>

namespace gradext::findings {

void bind(pybind11::module_& m);
void bind_testing(pybind11::module_& m);  // for gradext._C.testing

}  // namespace gradext::findings
