#include "hooks.h"

#include "crossings.h"
#include "observer.h"
#include "origins.h"
#include "python.h"
#include "state/state.h"
#include "taps.h"
#include "threads.h"

#include <torch/csrc/autograd/python_variable.h>

#include <memory>
#include <string>

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

// Whether a keyword argument is there and true.
bool is_given(PyObject* const* args, Py_ssize_t count, PyObject* keywords, const char* name) {
  for (Py_ssize_t k = 0; keywords != nullptr && k < PyTuple_GET_SIZE(keywords); ++k) {
    if (PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(keywords, k), name) == 0) {
      return PyObject_IsTrue(args[count + k]) == 1;
    }
  }
  return false;
}

// Gradients that come out of grad() and cannot be differentiated themselves.
void note_constant_gradients(PyObject* roots, PyObject* inputs, PyObject* result) {
  if (!PyTuple_Check(result)) {
    return;
  }
  static PyObject* parameter = py::module_::import("torch.nn.parameter")
                                   .attr("Parameter")
                                   .cast<py::object>()
                                   .release()
                                   .ptr();
  std::vector<at::Tensor> gradients;
  std::vector<std::pair<int64_t, bool>> by;
  for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(result); ++k) {
    PyObject* item = PyTuple_GET_ITEM(result, k);
    gradients.push_back(THPVariable_Check(item) ? THPVariable_Unpack(item) : at::Tensor());
    const bool known = inputs != nullptr && PyTuple_Check(inputs) && k < PyTuple_GET_SIZE(inputs);
    PyObject* input = known ? PyTuple_GET_ITEM(inputs, k) : nullptr;
    if (input == nullptr || !THPVariable_Check(input)) {
      by.emplace_back(0, true);
      continue;
    }
    by.emplace_back(
        state::opaque_id(THPVariable_Unpack(input).unsafeGetTensorImpl()),
        PyType_IsSubtype(Py_TYPE(input), reinterpret_cast<PyTypeObject*>(parameter)) != 0);
  }
  static const uint32_t name = intern_name("torch.autograd.grad");
  note_gradients(name, gradients, by, first_node(roots));
}

// `_engine_run_backward(t_outputs, grad_tensors, keep_graph, create_graph, inputs, ...)`, through
// which every backward() and grad() goes.
PyObject* call_backward(
    PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  Wrapped& wrapped = wrapped_in(self);
  const bool watched = active() && count >= 4;
  const bool accumulates = watched && is_given(args, count, keywords, "accumulate_grad");
  bool creates_graph = false;
  if (watched) {
    quietly([&] {
      creates_graph = PyObject_IsTrue(args[3]) == 1;
      const uint32_t why =
          enter_backward(args[0], PyObject_IsTrue(args[2]) == 1, creates_graph, accumulates);
      if (why != 0) {
        wrapped.on_suspicion(py::handle(args[0]), why, py::handle(args[1]));
      }
    });
  }
  const Taps* tap = watched ? listener() : nullptr;
  if (tap != nullptr) {
    quietly([&] { tap->backward_begins(root_nodes(args[0])); });
  }
  PyObject* result =
      PyObject_Vectorcall(wrapped.original.ptr(), args, static_cast<size_t>(count), keywords);
  if (tap != nullptr) {
    PyObject *type = nullptr, *value = nullptr, *trace = nullptr;
    PyErr_Fetch(&type, &value, &trace);
    const bool stops = tap->backward_ended();
    if (type != nullptr || !stops) {
      PyErr_Clear();
      PyErr_Restore(type, value, trace);
    } else {
      Py_CLEAR(result);
    }
  }
  if (result != nullptr && watched && !accumulates && !creates_graph && cuts_are_on()) {
    quietly([&] { note_constant_gradients(args[0], count > 4 ? args[4] : nullptr, result); });
  }
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

// While an autograd.Function runs its forward(), grad mode is off because of it.
class FunctionScope {
 public:
  FunctionScope() : is_on_(cuts_are_on() && c10::GradMode::is_enabled()) {
    if (is_on_) {
      ThreadState& thread = thread_state();
      before_ = thread.off;
      quietly([&] { thread.off = GradModeOff{current_stack(), true}; });
    }
  }
  FunctionScope(const FunctionScope&) = delete;
  FunctionScope& operator=(const FunctionScope&) = delete;
  ~FunctionScope() {
    restore();
  }

  // With the arguments and the result of apply(); null where it raised.
  void left(PyObject* const* args, Py_ssize_t count, PyObject* result) {
    if (!is_on_) {
      return;
    }
    restore();
    static const uint32_t name = intern_name("autograd.Function.apply");
    Inputs inputs;
    for (Py_ssize_t k = 0; k < count; ++k) {
      if (THPVariable_Check(args[k])) {
        inputs.push_back(THPVariable_Unpack(args[k]).unsafeGetTensorImpl());
      }
    }
    if (result == nullptr) {
      note_refusal(name, inputs);
      return;
    }
    quietly([&] {
      const auto note = [&](PyObject* item) {
        if (THPVariable_Check(item) && !THPVariable_Unpack(item).requires_grad()) {
          note_function_result(name, inputs, THPVariable_Unpack(item));
        }
      };
      if (PyTuple_Check(result)) {
        for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(result); ++k) {
          note(PyTuple_GET_ITEM(result, k));
        }
      } else {
        note(result);
      }
    });
  }

 private:
  void restore() {
    if (is_on_ && !is_restored_) {
      thread_state().off = before_;
      is_restored_ = true;
    }
  }
  static void note_refusal(uint32_t name, const Inputs& inputs) {
    PyObject *type = nullptr, *value = nullptr, *trace = nullptr;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    quietly([&] {
      PyObject* words = value != nullptr ? PyObject_Str(value) : nullptr;
      const char* text = words != nullptr ? PyUnicode_AsUTF8(words) : nullptr;
      if (text != nullptr) {
        note_misuse(name, inputs, text);
      }
      Py_XDECREF(words);
    });
    PyErr_Clear();
    PyErr_Restore(type, value, trace);
  }

  bool is_on_;
  bool is_restored_ = false;
  GradModeOff before_;
};

// `apply(cls, *args)` of autograd.Function: the node that it makes is made by no op.
PyObject* call_apply(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  Wrapped& wrapped = wrapped_in(self);
  if (recording_saves()) {
    note_nodes();
  }
  FunctionScope scope;
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
  scope.left(args + 1, count - 1, result);
  if (const Taps* tap = result != nullptr ? listener() : nullptr) {
    quietly([&] { tap->applied(result); });
  }
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
  quietly([] {
    sync_thread();
    if (const Taps* tap = listener()) {
      tap->thread_starts();
    }
  });
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

// Threads that were there before the recording: each brings itself in line at its next call or
// return, through a profile function that takes itself away.
int wake(PyObject*, PyFrameObject*, int, PyObject*) {
  PyEval_SetProfile(nullptr, nullptr);
  quietly([] { sync_thread(); });
  return 0;
}

void wake_threads() {
  profile_others(&wake);
}

}  // namespace

void bind_hooks(py::module_& m) {
  m.def("wrap_backward", &wrap_backward);
  m.def("wrap_noting", &wrap_noting);
  m.def("wrap_apply", &wrap_apply);
  m.def("wrap_bootstrap", &wrap_bootstrap);
  m.def("recorder_wake_threads", &wake_threads);
}

}  // namespace gradext::recorder
