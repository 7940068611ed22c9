// The Python threads beside the calling one, for functions that CPython puts on a thread from
// outside.
#pragma once

#include <Python.h>

#if PY_VERSION_HEX >= 0x030d0000
// 3.13 moved the declarations to an internal header; the functions are exported as before.
extern "C" int _PyEval_SetProfile(PyThreadState*, Py_tracefunc, PyObject*);
extern "C" int _PyEval_SetTrace(PyThreadState*, Py_tracefunc, PyObject*);
#endif

namespace gradext::recorder {

// Under the GIL. Visits none in an interpreter that this was not tried with.
template <class Visit>
void each_other_thread([[maybe_unused]] Visit&& visit) {
#if PY_VERSION_HEX < 0x030e0000
  PyThreadState* own = PyThreadState_Get();
  for (PyThreadState* other = PyInterpreterState_ThreadHead(PyThreadState_GetInterpreter(own));
       other != nullptr;
       other = PyThreadState_Next(other)) {
    if (other != own) {
      visit(other);
    }
  }
#endif
}

}  // namespace gradext::recorder
