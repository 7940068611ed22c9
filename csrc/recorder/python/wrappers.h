// Wraps Python functions of torch in C functions: a wrapper of Python code would show up in the
// tracebacks that users read.
#pragma once

#include <pybind11/pybind11.h>

namespace gradext::recorder {

void bind_hooks(pybind11::module_& m);
void bind_hooks_testing(pybind11::module_& m);

// The code of torch's Python function through which each call of the engine goes: a frame of it is
// such a call. Null where none was wrapped yet.
PyCodeObject* engine_code();

}  // namespace gradext::recorder
