// Runs gradext's own work inside calls of CPython's and torch's, so that nothing of it leaks out:
// no exception, no changed error indicator.
//
// An entry (a function that stands in a method table, a getset, a capsule, as a trace function, a
// hook of a node, an observer of ops) may be called while a Python error is set, and must leave it
// so; nothing that gradext does wrong may reach the program; and what is meant for the program
// must: an error that a guard raises, a signal handler's. safely() is where gradext's errors end:
// it counts them and drops them, and serves ops, which run no Python. aside() puts it around work
// under the GIL and keeps the error that is set; under_gil() does the same for callers that may not
// have the GIL. build_tools/check_c_entries.py finds an entry that does anything outside of them.
#pragma once

#include "base/faults.h"

#include <Python.h>
#include <c10/util/Exception.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <utility>

#ifdef __GLIBCXX__
#include <cxxabi.h>
#endif

namespace gradext::base {

// Runs gradext's own work: what goes wrong in it is counted, and never reaches the program. Not
// noexcept: a thread that the interpreter ends while it waits for the GIL is unwound through here.
template <class Work>
inline void safely(Work&& work) {
  try {
    if (C10_UNLIKELY(injected.load(std::memory_order_relaxed))) {
      throw std::runtime_error("injected");
    }
    work();
#ifdef __GLIBCXX__
  } catch (const abi::__forced_unwind&) {
    throw;
#endif
  } catch (const c10::Error& error) {
    count_fault(error.what_without_backtrace());
  } catch (const std::exception& error) {
    count_fault(error.what());
  } catch (...) {
    count_fault("unknown");
  }
}

// A tensor by its type alone. THPVariable_Check asks the object's `__class__`, which may be code of
// the program's, and throws where that raises.
inline bool is_tensor(PyObject* object) {
  return object != nullptr && THPVariableClass != nullptr &&
         PyType_IsSubtype(Py_TYPE(object), reinterpret_cast<PyTypeObject*>(THPVariableClass)) != 0;
}

// A flag as torch's own callers pass it; asks no object of the program's for its truth.
inline bool is_true(PyObject* flag) {
  return flag == Py_True || (PyLong_CheckExact(flag) && PyObject_IsTrue(flag) == 1);
}

// What an exception was made with, if that is a text. str() would be code of its class's.
inline std::string text_of(PyObject* error) {
  PyObject* words = error;  // of one that is not made yet, see error_that_is_set()
  if (error != nullptr && PyExceptionInstance_Check(error)) {
    PyObject* arguments = reinterpret_cast<PyBaseExceptionObject*>(error)->args;
    const bool has_any =
        arguments != nullptr && PyTuple_Check(arguments) && PyTuple_GET_SIZE(arguments) > 0;
    words = has_any ? PyTuple_GET_ITEM(arguments, 0) : nullptr;
  }
  if (words == nullptr || !PyUnicode_CheckExact(words)) {
    return "";
  }
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(words, &size);
  if (text == nullptr) {
    PyErr_Clear();  // lone surrogates
    return "";
  }
  return {text, static_cast<size_t>(size)};
}

// The exception that is set; borrowed, and left as it is. Before Python 3.12 one that C has raised
// is no object until somebody looks at it: then the text that it will be made with.
inline PyObject* error_that_is_set() {
  PyObject *type = nullptr, *value = nullptr, *trace = nullptr;
  PyErr_Fetch(&type, &value, &trace);
  PyErr_Restore(type, value, trace);
  const bool is_told =
      value != nullptr && (PyExceptionInstance_Check(value) || PyUnicode_CheckExact(value));
  return is_told ? value : nullptr;
}

// A module by its full name. PyImport_Import asks the running frame's builtins for `__import__`,
// which code that is run with builtins of its own does not have.
inline pybind11::object import_module(const char* name) {
  // With any name to take from it, the module itself comes back and not its outermost package.
  pybind11::tuple leaf = pybind11::make_tuple("__name__");
  PyObject* module = PyImport_ImportModuleLevel(name, nullptr, nullptr, leaf.ptr(), 0);
  if (module == nullptr) {
    throw pybind11::error_already_set();
  }
  return pybind11::reinterpret_steal<pybind11::object>(module);
}

// Thrown within aside(): a Python exception that the program is to get.
class ForTheProgram {
 public:
  explicit ForTheProgram(pybind11::object error) : error_(std::move(error)) {}
  pybind11::object take() {
    return std::move(error_);
  }

 private:
  pybind11::object error_;
};

// A ForTheProgram that crosses threads and torch's engine, which carries its own python_error to
// who called backward. (One that is no Stop comes from torch, and is a fault of gradext's work.)
class Stop final : public python_error {};

namespace detail {

// The Python error that is set, taken away; normalised.
pybind11::object take_error();
// Runs the work with no error set; returns the exception that is meant for the program, if any.
template <class Work>
pybind11::object run(Work&& work);
// Which of gradext's own failures in Python is the program's: an interrupt, or a request to end.
pybind11::object judge(pybind11::object error);
// `error` with what the program was about to see as its context.
void set_error(pybind11::object error, PyObject* pending);

template <class Work>
pybind11::object run(Work&& work) {
  pybind11::object meant;
  safely([&] {
    try {
      work();
    } catch (ForTheProgram& error) {
      meant = error.take();
    } catch (Stop& error) {
      error.restore();
      meant = take_error();
    } catch (pybind11::error_already_set& error) {
      meant = judge(pybind11::reinterpret_borrow<pybind11::object>(error.value()));
    } catch (python_error& error) {
      error.restore();
      meant = judge(take_error());
    }
  });
  if (PyErr_Occurred() != nullptr) {
    pybind11::object left = take_error();
    if (!meant && left && !PyErr_GivenExceptionMatches(left.ptr(), PyExc_Exception)) {
      meant = std::move(left);
    }
  }
  return meant;
}

}  // namespace detail

// Runs `work` with any pending Python exception saved and restored. Under the GIL. True: an error
// for the program is set, which takes the place of the pending one; then the entry returns what
// says so.
template <class Work>
[[nodiscard]] bool aside(Work&& work) {
  PyObject *type = nullptr, *value = nullptr, *trace = nullptr;
  PyErr_Fetch(&type, &value, &trace);
  pybind11::object meant = detail::run(work);
  if (!meant) {
    PyErr_Restore(type, value, trace);
    return false;
  }
  PyErr_NormalizeException(&type, &value, &trace);
  detail::set_error(std::move(meant), value);
  Py_XDECREF(type);
  Py_XDECREF(value);
  Py_XDECREF(trace);
  return true;
}

// The result of the wrapped function; null if an error was set in its place.
inline PyObject* unless(bool is_stopped, PyObject* result) {
  if (is_stopped) {
    Py_CLEAR(result);
  }
  return result;
}

// Whether the interpreter can still be entered: a thread that asks for the GIL of one that ends is
// ended itself.
bool python_is_up();

// From any thread that Python may know or not. What is meant for the program is thrown as a Stop.
template <class Work>
void under_gil(Work&& work) {
  if (!python_is_up()) {
    return;
  }
  const PyGILState_STATE gil = PyGILState_Ensure();
  PyObject *type = nullptr, *value = nullptr, *trace = nullptr;
  PyErr_Fetch(&type, &value, &trace);
  Stop stop;
  {
    pybind11::object meant = detail::run(work);
    if (meant) {
      detail::set_error(std::move(meant), nullptr);
      stop.persist();
    }
  }
  PyErr_Restore(type, value, trace);
  PyGILState_Release(gil);
  if (stop.type != nullptr) {
    throw stop;  // NOLINT: a copy, which takes the GIL for its references
  }
}

// For callers whose own callers swallow what is thrown (torch does so with observers of ops): the
// program gets the error at its next line, on this thread.
void raise_later(Stop& error);
// The same for an exception, under the GIL.
void raise_later(pybind11::object error);
// Whether signal handlers run on this thread. Runs no Python code, which would let them.
bool is_main_thread();
template <class Work>
void raising_later(Work&& work) {
  try {
    work();
  } catch (Stop& error) {
    raise_later(error);
  }
}

}  // namespace gradext::base
