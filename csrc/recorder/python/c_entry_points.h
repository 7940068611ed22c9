// Functions of torch that change what a tensor is without an op: which line called them.
#pragma once

#include <pybind11/pybind11.h>

namespace gradext::recorder {

void bind_entries(pybind11::module_& m);

}  // namespace gradext::recorder
