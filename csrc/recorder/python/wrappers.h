// Wraps Python functions of torch in C functions: a wrapper of Python code would show up in the
// tracebacks that users read.
#pragma once

#include <pybind11/pybind11.h>

namespace gradext::recorder {

void bind_hooks(pybind11::module_& m);

}  // namespace gradext::recorder
