// Puts trace functions (called at each line) and profile functions (at each call and return) on
// Python threads beside the calling one.
//
// CPython has one slot of each per thread, and whoever is there first keeps it: a debugger's or a
// coverage tool's function is never taken away. One thread can be given a profile function on its
// own, and up to 3.12 a trace function too. Since 3.13 there is only the public call that gives a
// trace function to all threads at once, and it is made only where no thread has another's.
#pragma once

#include <Python.h>

#if PY_VERSION_HEX >= 0x030d0000
// 3.13 moved the declaration to an internal header and exports the function as before.
extern "C" int _PyEval_SetProfile(PyThreadState*, Py_tracefunc, PyObject*);
#endif

namespace gradext::stacks {

// Under the GIL.
template <class Visit>
void each_thread(Visit&& visit) {
  PyThreadState* own = PyThreadState_Get();
  for (PyThreadState* thread = PyInterpreterState_ThreadHead(PyThreadState_GetInterpreter(own));
       thread != nullptr;
       thread = PyThreadState_Next(thread)) {
    visit(thread);
  }
}

// Whether `function` is the trace function of every Python thread but the calling one.
inline bool traces_all_others(Py_tracefunc function) {
  bool all = true;
  PyThreadState* own = PyThreadState_Get();
  each_thread([&](PyThreadState* thread) {
    all = all && (thread == own || thread->c_tracefunc == function);
  });
  return all;
}

#if PY_VERSION_HEX >= 0x030d0000
// Every thread's trace function becomes `to`, if each is `from` or none; else nothing is done.
inline void exchange_all_traces(Py_tracefunc from, Py_tracefunc to) {
  bool is_ours_or_none = true, is_needed = false;
  each_thread([&](PyThreadState* thread) {
    is_ours_or_none &= thread->c_tracefunc == nullptr || thread->c_tracefunc == from;
    is_needed |= thread->c_tracefunc != to;
  });
  if (is_ours_or_none && is_needed) {
    PyEval_SetTraceAllThreads(to, nullptr);
  }
}
#endif

// Gives the other threads `function` where they have no trace function. Since 3.13 no thread gets
// it where one of them is traced by somebody else: ask traces_all_others().
inline void trace_others(Py_tracefunc function) {
#if PY_VERSION_HEX >= 0x030d0000
  exchange_all_traces(function, function);
#else
  PyThreadState* own = PyThreadState_Get();
  each_thread([&](PyThreadState* thread) {
    if (thread != own && thread->c_tracefunc == nullptr) {
      _PyEval_SetTrace(thread, function, nullptr);
    }
  });
#endif
}

// Takes `function` from the other threads. Since 3.13 it stays where one of them is traced by
// somebody else, so a function that finds itself no longer wanted takes itself away.
inline void untrace_others(Py_tracefunc function) {
#if PY_VERSION_HEX >= 0x030d0000
  exchange_all_traces(function, nullptr);
#else
  PyThreadState* own = PyThreadState_Get();
  each_thread([&](PyThreadState* thread) {
    if (thread != own && thread->c_tracefunc == function) {
      _PyEval_SetTrace(thread, nullptr, nullptr);
    }
  });
#endif
}

// Gives the other threads `function` where they have no profile function.
inline void profile_others(Py_tracefunc function) {
  PyThreadState* own = PyThreadState_Get();
  each_thread([&](PyThreadState* thread) {
    if (thread != own && thread->c_profilefunc == nullptr) {
      _PyEval_SetProfile(thread, function, nullptr);
    }
  });
}

}  // namespace gradext::stacks
