// Adds the fingerprint functions to gradext._C.
#pragma once

#include <pybind11/pybind11.h>

namespace gradext::fingerprint {

void bind(pybind11::module_& m);
// What only tests use (gradext._C.testing).
void bind_testing(pybind11::module_& m);

}  // namespace gradext::fingerprint
