#include "hooks.h"

#include "observer.h"
#include "python.h"

#include <torch/csrc/autograd/python_variable.h>

#include <memory>
#include <string>

#if PY_VERSION_HEX >= 0x030d0000 && PY_VERSION_HEX < 0x030e0000
// 3.13 moved the declaration to an internal header; the function is exported as before.
extern "C" int _PyEval_SetProfile(PyThreadState*, Py_tracefunc, PyObject*);
#endif

namespace py = pybind11;

namespace gradext::recorder {
namespace {

// A wrapper that takes its arguments as CPython passes them and hands them on untouched: no tuple
// or dict is made, and a C function leaves no line in a traceback.
struct Wrapped {
  std::string name;
  py::object original;
  py::object on_suspicion;
  py::object on_error;
};

constexpr const char* kCapsule = "gradext.wrapped";

Wrapped& wrapped_in(PyObject* capsule) {
  return *static_cast<Wrapped*>(PyCapsule_GetPointer(capsule, kCapsule));
}

py::object make_wrapper(PyMethodDef* method, Wrapped wrapped) {
  py::object capsule = py::reinterpret_steal<py::object>(
      PyCapsule_New(new Wrapped(std::move(wrapped)), kCapsule, [](PyObject* self) {
        delete static_cast<Wrapped*>(PyCapsule_GetPointer(self, kCapsule));
      }));
  return py::reinterpret_steal<py::object>(PyCFunction_NewEx(method, capsule.ptr(), nullptr));
}

// Runs gradext's own code, C++ or Python; its errors are counted.
template <class Work>
void quietly(Work&& work) {
  try {
    work();
  } catch (const std::exception& error) {
    count_fault(error.what());
  } catch (...) {
    count_fault("unknown");
  }
}

// `_engine_run_backward(t_outputs, grad_tensors, keep_graph, create_graph, inputs, ...)`, through
// which every backward() and grad() goes.
PyObject* call_backward(
    PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  Wrapped& wrapped = wrapped_in(self);
  const bool watched = active() && count >= 4;
  if (watched) {
    quietly([&] {
      if (enter_backward(args[0], PyObject_IsTrue(args[2]) == 1, PyObject_IsTrue(args[3]) == 1)) {
        wrapped.on_suspicion(py::handle(args[0]));
      }
    });
  }
  PyObject* result =
      PyObject_Vectorcall(wrapped.original.ptr(), args, static_cast<size_t>(count), keywords);
  if (result == nullptr && watched && active()) {
    PyObject *type = nullptr, *value = nullptr, *trace = nullptr;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    if (trace != nullptr) {
      PyException_SetTraceback(value, trace);
    }
    quietly([&] { wrapped.on_error(py::handle(value), py::handle(args[0])); });
    PyErr_Clear();
    PyErr_Restore(type, value, trace);
  }
  return result;
}

PyMethodDef backward_method = {
    "_engine_run_backward",
    reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call_backward)),
    METH_FASTCALL | METH_KEYWORDS,
    "torch.autograd.graph._engine_run_backward, watched by gradext"};

py::object wrap_backward(py::object original, py::object on_suspicion, py::object on_error) {
  return make_wrapper(
      &backward_method,
      Wrapped{"", std::move(original), std::move(on_suspicion), std::move(on_error)});
}

void note_tensors(const std::string& name, PyObject* value, int depth) {
  if (THPVariable_Check(value)) {
    note(name, THPVariable_Unpack(value));
  } else if (depth < 2 && (PyTuple_Check(value) || PyList_Check(value))) {
    PyObject* items = PySequence_Fast(value, "");
    for (Py_ssize_t k = 0; items != nullptr && k < PySequence_Fast_GET_SIZE(items); ++k) {
      note_tensors(name, PySequence_Fast_GET_ITEM(items, k), depth + 1);
    }
    Py_XDECREF(items);
  }
}

// A function that moves version counters without an op: notes its tensors, then calls it.
PyObject* call_noting(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  Wrapped& wrapped = wrapped_in(self);
  if (active()) {
    quietly([&] {
      const Py_ssize_t all = count + (keywords ? PyTuple_GET_SIZE(keywords) : 0);
      for (Py_ssize_t k = 0; k < all; ++k) {
        note_tensors(wrapped.name, args[k], 1);
      }
    });
  }
  return PyObject_Vectorcall(wrapped.original.ptr(), args, static_cast<size_t>(count), keywords);
}

PyMethodDef noting_method = {
    "noting",
    reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call_noting)),
    METH_FASTCALL | METH_KEYWORDS,
    "a function of torch's that moves version counters, watched by gradext"};

py::object wrap_noting(std::string name, py::object original, bool is_method) {
  py::object wrapper =
      make_wrapper(&noting_method, Wrapped{std::move(name), std::move(original), {}, {}});
  return is_method ? py::reinterpret_steal<py::object>(PyInstanceMethod_New(wrapper.ptr()))
                   : wrapper;
}

// `apply(cls, *args)` of autograd.Function: the node that it makes is made by no op.
PyObject* call_apply(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  Wrapped& wrapped = wrapped_in(self);
  if (recording_saves()) {
    note_nodes();
  }
  if (count < 1) {
    PyErr_SetString(PyExc_TypeError, "apply() needs a class");
    return nullptr;
  }
  // `original` is the C base class's own classmethod; bind it to the class that was asked.
  descrgetfunc bind = Py_TYPE(wrapped.original.ptr())->tp_descr_get;
  PyObject* bound = bind(wrapped.original.ptr(), nullptr, args[0]);
  if (bound == nullptr) {
    return nullptr;
  }
  PyObject* result = PyObject_Vectorcall(bound, args + 1, static_cast<size_t>(count - 1), keywords);
  Py_DECREF(bound);
  return result;
}

PyMethodDef apply_method = {
    "apply",
    reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call_apply)),
    METH_FASTCALL | METH_KEYWORDS,
    "torch.autograd.Function.apply, watched by gradext"};

py::object wrap_apply(py::object original) {
  py::object wrapper = make_wrapper(&apply_method, Wrapped{"", std::move(original), {}, {}});
  return py::reinterpret_steal<py::object>(PyClassMethod_New(wrapper.ptr()));
}

// threading.Thread._bootstrap_inner: the first thing of a new thread that is its own.
PyObject* call_bootstrap(
    PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  quietly([] { sync_thread(); });
  return PyObject_Vectorcall(
      wrapped_in(self).original.ptr(), args, static_cast<size_t>(count), keywords);
}

PyMethodDef bootstrap_method = {
    "_bootstrap_inner",
    reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call_bootstrap)),
    METH_FASTCALL | METH_KEYWORDS,
    "threading.Thread._bootstrap_inner, watched by gradext"};

py::object wrap_bootstrap(py::object original) {
  py::object wrapper = make_wrapper(&bootstrap_method, Wrapped{"", std::move(original), {}, {}});
  return py::reinterpret_steal<py::object>(PyInstanceMethod_New(wrapper.ptr()));
}

#if PY_VERSION_HEX < 0x030e0000

// Threads that were there before the recording: each brings itself in line at its next call or
// return, through a profile function that takes itself away.
int wake(PyObject*, PyFrameObject*, int, PyObject*) {
  _PyEval_SetProfile(PyThreadState_Get(), nullptr, nullptr);
  quietly([] { sync_thread(); });
  return 0;
}

void wake_threads() {
  PyThreadState* own = PyThreadState_Get();
  for (PyThreadState* other = PyInterpreterState_ThreadHead(PyThreadState_GetInterpreter(own));
       other != nullptr;
       other = PyThreadState_Next(other)) {
    if (other != own && other->c_profilefunc == nullptr) {
      _PyEval_SetProfile(other, &wake, nullptr);
    }
  }
}

#else  // an interpreter that this was not tried with: such threads are not recorded

void wake_threads() {}

#endif

}  // namespace

void bind_hooks(py::module_& m) {
  m.def("wrap_backward", &wrap_backward);
  m.def("wrap_noting", &wrap_noting);
  m.def("wrap_apply", &wrap_apply);
  m.def("wrap_bootstrap", &wrap_bootstrap);
  m.def("recorder_wake_threads", &wake_threads);
}

}  // namespace gradext::recorder
