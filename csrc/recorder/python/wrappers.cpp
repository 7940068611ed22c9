#include "recorder/python/wrappers.h"

#include "base/aside.h"
#include "base/signals.h"
#include "graph/bind.h"
#include "recorder/listener.h"
#include "recorder/lost_gradients/flows.h"
#include "recorder/lost_gradients/leaves.h"
#include "recorder/lost_gradients/python_crossings.h"
#include "recorder/python/backward.h"
#include "recorder/record_nodes.h"
#include "recorder/record_writes.h"
#include "recorder/switch.h"
#include "stacks/threads.h"
#include "state/state.h"

#include <torch/csrc/autograd/python_variable.h>

#include <atomic>
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

void destroy(PyObject* capsule) {
  (void)aside([&] { delete &wrapped_in(capsule); });
}

py::object make_wrapper(PyMethodDef* method, Wrapped wrapped) {
  py::object capsule = py::reinterpret_steal<py::object>(
      PyCapsule_New(new Wrapped(std::move(wrapped)), kCapsule, &destroy));
  return py::reinterpret_steal<py::object>(PyCFunction_NewEx(method, capsule.ptr(), nullptr));
}

// Whether a keyword argument is there and true.
bool is_given(PyObject* const* args, Py_ssize_t count, PyObject* keywords, const char* name) {
  for (Py_ssize_t k = 0; keywords != nullptr && k < PyTuple_GET_SIZE(keywords); ++k) {
    if (PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(keywords, k), name) == 0) {
      return is_true(args[count + k]);
    }
  }
  return false;
}

// A class of torch's, looked up once. Not as a static that the look-up initialises: that may let
// another thread have the GIL, which would wait for the static with the GIL held.
PyObject* class_once(PyObject*& known, const char* module, const char* name) {
  if (known == nullptr) {
    py::object found = import_module(module).attr(name);
    if (known == nullptr) {
      known = found.release().ptr();
    }
  }
  return known;
}

// Gradients that come out of grad() and cannot be differentiated themselves.
void note_constant_gradients(PyObject* roots, PyObject* inputs, PyObject* result) {
  if (!PyTuple_Check(result)) {
    return;
  }
  static PyObject* known_parameter = nullptr;
  PyObject* parameter = class_once(known_parameter, "torch.nn.parameter", "Parameter");
  std::vector<at::Tensor> gradients;
  std::vector<std::pair<int64_t, bool>> by;
  for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(result); ++k) {
    PyObject* item = PyTuple_GET_ITEM(result, k);
    gradients.push_back(is_tensor(item) ? THPVariable_Unpack(item) : at::Tensor());
    const bool known = inputs != nullptr && PyTuple_Check(inputs) && k < PyTuple_GET_SIZE(inputs);
    PyObject* input = known ? PyTuple_GET_ITEM(inputs, k) : nullptr;
    if (input == nullptr || !is_tensor(input)) {
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

// What is kept of one call of the engine until it has returned.
struct BackwardCall {
  bool is_watched = false;
  bool accumulates = false;
  bool creates_graph = false;
  const Taps* tap = nullptr;
  std::vector<base::Hold> to_fill;  // leaves, looked at when it has ended
};

void backward_begins(
    BackwardCall& call,
    const Wrapped& wrapped,
    PyObject* const* args,
    Py_ssize_t count,
    PyObject* keywords) {
  call.is_watched = true;
  call.accumulates = is_given(args, count, keywords, "accumulate_grad");
  call.creates_graph = is_true(args[3]);
  const bool is_of_all = count <= 4 || args[4] == Py_None ||
                         (PyTuple_Check(args[4]) && PyTuple_GET_SIZE(args[4]) == 0);
  const uint32_t why =
      enter_backward(args[0], is_true(args[2]), call.creates_graph, call.accumulates, call.to_fill);
  if (!is_of_all) {
    call.to_fill.clear();
  }
  if (why != 0) {
    call_back(wrapped.on_suspicion, py::make_tuple(py::handle(args[0]), why));
  }
}

// How many calls of backward() have to end until one is looked at, whatever it did; 0: none is.
std::atomic<uint32_t> looked_at_after{0};

bool is_looked_at() {
  uint32_t left = looked_at_after.load(std::memory_order_relaxed);
  while (left != 0 && !looked_at_after.compare_exchange_weak(left, left - 1)) {
  }
  return left == 1;
}

// It has returned.
void backward_filled(const BackwardCall& call, const Wrapped& wrapped, PyObject* const* args) {
  if ((!call.to_fill.empty() || leaves_are_starved()) && cuts_are_on() &&
      note_filled(call.to_fill)) {
    call_back(wrapped.on_suspicion, py::make_tuple(py::handle(args[0]), uint32_t{kStarvedLeaves}));
  }
  if (is_looked_at()) {
    call_back(wrapped.on_suspicion, py::make_tuple(py::handle(args[0]), uint32_t{kTraining}));
  }
}

// The engine raised `error`.
void backward_failed(const Wrapped& wrapped, PyObject* error, PyObject* roots) {
  if (error != nullptr && active()) {
    call_back(wrapped.on_error, py::make_tuple(py::handle(error), py::handle(roots)));
  }
}

// `_engine_run_backward(t_outputs, grad_tensors, keep_graph, create_graph, inputs, ...)`, through
// which every backward() and grad() goes.
PyObject* call_backward(
    PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  Wrapped& wrapped = wrapped_in(self);
  BackwardCall call;
  if (active() && count >= 4) {
    if (aside([&] { backward_begins(call, wrapped, args, count, keywords); })) {
      return nullptr;
    }
    if (aside([&] {
          if (const Taps* tap = listener()) {
            const auto roots = graph::root_nodes(args[0]);
            call.tap = tap;
            tap->backward_begins(roots);
          }
        })) {
      if (call.tap != nullptr) {
        (void)aside([&] { call.tap->backward_ended(false); });
      }
      return nullptr;
    }
  }
  PyObject* result =
      PyObject_Vectorcall(wrapped.original.ptr(), args, static_cast<size_t>(count), keywords);
  if (call.tap != nullptr && aside([&] { call.tap->backward_ended(result != nullptr); })) {
    Py_CLEAR(result);
  }
  if (result == nullptr && call.is_watched) {
    // With the error that is set, the traceback of which the diagnosis reads.
    PyObject *type = nullptr, *value = nullptr, *trace = nullptr;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    if (trace != nullptr) {
      PyException_SetTraceback(value, trace);
    }
    Py_XINCREF(value);
    PyErr_Restore(type, value, trace);
    (void)aside([&] { backward_failed(wrapped, value, args[0]); });
    Py_XDECREF(value);
  }
  if (result != nullptr && call.is_watched && call.accumulates) {
    return unless(aside([&] { backward_filled(call, wrapped, args); }), result);
  }
  if (result != nullptr && call.is_watched && !call.accumulates && !call.creates_graph) {
    return unless(
        aside([&] {
          if (cuts_are_on()) {
            note_constant_gradients(args[0], count > 4 ? args[4] : nullptr, result);
          }
        }),
        result);
  }
  return result;
}

PyMethodDef backward_method = {
    "_engine_run_backward",
    reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call_backward)),
    METH_FASTCALL | METH_KEYWORDS,
    "torch.autograd.graph._engine_run_backward, watched by gradext"};

PyCodeObject* code_of_engine = nullptr;

py::object wrap_backward(py::object original, py::object on_suspicion, py::object on_error) {
  if (PyFunction_Check(original.ptr())) {
    Py_XDECREF(code_of_engine);
    code_of_engine = reinterpret_cast<PyCodeObject*>(
        py::reinterpret_borrow<py::object>(PyFunction_GET_CODE(original.ptr())).release().ptr());
  }
  return make_wrapper(
      &backward_method,
      Wrapped{"", std::move(original), std::move(on_suspicion), std::move(on_error)});
}

void note_tensors(const std::string& name, PyObject* value, int depth) {
  if (is_tensor(value)) {
    note(name, THPVariable_Unpack(value));
  } else if (depth < 2 && PyTuple_Check(value)) {
    for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(value); ++k) {
      note_tensors(name, PyTuple_GET_ITEM(value, k), depth + 1);
    }
  } else if (depth < 2 && PyList_Check(value)) {
    for (Py_ssize_t k = 0; k < PyList_GET_SIZE(value); ++k) {
      note_tensors(name, PyList_GET_ITEM(value, k), depth + 1);
    }
  }
}

// A function that moves version counters without an op: notes its tensors, then calls it.
PyObject* call_noting(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  Wrapped& wrapped = wrapped_in(self);
  if (active() && aside([&] {
        const Py_ssize_t all = count + (keywords ? PyTuple_GET_SIZE(keywords) : 0);
        for (Py_ssize_t k = 0; k < all; ++k) {
          note_tensors(wrapped.name, args[k], 1);
        }
      })) {
    return nullptr;
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
  FunctionScope() = default;
  FunctionScope(const FunctionScope&) = delete;
  FunctionScope& operator=(const FunctionScope&) = delete;
  ~FunctionScope() {
    restore();
  }

  void enter() {
    if (cuts_are_on() && c10::GradMode::is_enabled()) {
      ThreadState& thread = thread_state();
      before_ = thread.off;
      is_on_ = true;
      place_ = current_stack();
      thread.off = GradModeOff{place_, true};
    }
  }

  // With the class, the arguments and the result of apply(); null where it raised `error`.
  void left(
      PyObject* cls, PyObject* const* args, Py_ssize_t count, PyObject* result, PyObject* error) {
    if (!is_on_) {
      return;
    }
    restore();
    static const uint32_t name = intern_name("autograd.Function.apply");
    Inputs inputs;
    for (Py_ssize_t k = 0; k < count; ++k) {
      if (is_tensor(args[k])) {
        inputs.push_back(THPVariable_Unpack(args[k]).unsafeGetTensorImpl());
      }
    }
    if (result == nullptr) {
      note_misuse(name, inputs, text_of(error));
      return;
    }
    static PyObject* known = nullptr;
    const bool is_checkpoint =
        cls == class_once(known, "torch.utils.checkpoint", "CheckpointFunction");
    bool has_node = false;
    const auto note = [&](PyObject* item) {
      if (is_tensor(item) && !THPVariable_Unpack(item).requires_grad()) {
        note_function_result(name, inputs, THPVariable_Unpack(item), is_checkpoint);
      } else {
        has_node |= is_tensor(item);
      }
    };
    if (PyTuple_Check(result)) {
      for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(result); ++k) {
        note(PyTuple_GET_ITEM(result, k));
      }
    } else {
      note(result);
    }
    if (has_node && !is_checkpoint) {
      note_function(place_);
    }
  }

 private:
  void restore() {
    if (is_on_) {
      thread_state().off = before_;
      is_on_ = false;
    }
  }

  bool is_on_ = false;
  StackId place_ = 0;
  GradModeOff before_;
};

// An autograd.Function is about to be applied: the node that this makes is made by no op.
void before_apply(FunctionScope& scope) {
  if (recording_saves()) {
    note_nodes();
  }
  scope.enter();
}

void after_apply(
    FunctionScope& scope,
    PyObject* cls,
    PyObject* const* args,
    Py_ssize_t count,
    PyObject* result,
    PyObject* error) {
  scope.left(cls, args, count, result, error);
  const Taps* tap = result != nullptr ? listener() : nullptr;
  if (tap != nullptr) {
    tap->applied(result);
  }
}

// `apply(cls, *args)` of the class below Function, up to torch 2.13.
PyObject* call_apply(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  Wrapped& wrapped = wrapped_in(self);
  if (count < 1) {
    PyErr_SetString(PyExc_TypeError, "apply() needs a class");
    return nullptr;
  }
  // `original` is the C base class's own classmethod; bind it to the class that was asked.
  PyObject* bound =
      Py_TYPE(wrapped.original.ptr())->tp_descr_get(wrapped.original.ptr(), nullptr, args[0]);
  if (bound == nullptr) {
    return nullptr;
  }
  FunctionScope scope;
  PyObject* result = nullptr;
  const bool is_stopped = aside([&] { before_apply(scope); });
  if (!is_stopped) {
    result = PyObject_Vectorcall(bound, args + 1, static_cast<size_t>(count - 1), keywords);
  }
  Py_DECREF(bound);
  if (is_stopped) {
    return nullptr;
  }
  PyObject* error = result == nullptr ? error_that_is_set() : nullptr;
  return unless(
      aside([&] { after_apply(scope, args[0], args + 1, count - 1, result, error); }), result);
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

// Since torch 2.14 Function.apply is a C classmethod. `f = F.apply`, bound before the recording,
// calls its table entry: that is exchanged. The original stays: a thread may be within ours.
PyMethodDef* apply_entry = nullptr;
PyCFunction apply_original = nullptr;

PyObject* apply_with_keywords(PyObject* cls, PyObject* args, PyObject* keywords) {
  auto original =
      reinterpret_cast<PyCFunctionWithKeywords>(reinterpret_cast<void (*)()>(apply_original));
  FunctionScope scope;
  if (aside([&] { before_apply(scope); })) {
    return nullptr;
  }
  PyObject* result = original(cls, args, keywords);
  PyObject* error = result == nullptr ? error_that_is_set() : nullptr;
  return unless(
      aside([&] {
        after_apply(scope, cls, PySequence_Fast_ITEMS(args), PyTuple_GET_SIZE(args), result, error);
      }),
      result);
}

PyObject* apply_plain(PyObject* cls, PyObject* args) {
  PyCFunction original = apply_original;
  FunctionScope scope;
  if (aside([&] { before_apply(scope); })) {
    return nullptr;
  }
  PyObject* result = original(cls, args);
  PyObject* error = result == nullptr ? error_that_is_set() : nullptr;
  return unless(
      aside([&] {
        after_apply(scope, cls, PySequence_Fast_ITEMS(args), PyTuple_GET_SIZE(args), result, error);
      }),
      result);
}

// False where the classmethod is of a kind that this does not know: then it is left alone.
bool exchange_apply(const py::object& classmethod) {
  if (Py_TYPE(classmethod.ptr()) != &PyClassMethodDescr_Type) {
    return false;
  }
  PyMethodDef* entry = reinterpret_cast<PyMethodDescrObject*>(classmethod.ptr())->d_method;
  const int kind = entry->ml_flags & ~(METH_CLASS | METH_COEXIST);
  if (apply_entry != nullptr || (kind != METH_VARARGS && kind != (METH_VARARGS | METH_KEYWORDS))) {
    return false;
  }
  apply_entry = entry;
  apply_original = entry->ml_meth;
  if (kind == METH_VARARGS) {
    entry->ml_meth = &apply_plain;
  } else {
    entry->ml_meth =
        reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&apply_with_keywords));
  }
  return true;
}

void put_back_apply() {
  if (apply_entry != nullptr) {
    apply_entry->ml_meth = apply_original;
    apply_entry = nullptr;
  }
}

// threading.Thread._bootstrap_inner: the first thing of a new thread that is its own.
PyObject* call_bootstrap(
    PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  if (aside([] {
        sync_thread();
        if (const Taps* tap = listener()) {
          tap->thread_starts();
        }
      })) {
    return nullptr;
  }
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

// The `run` of one process of multiprocessing. What it raises is caught, printed and forgotten by
// its caller, which since Python 3.13 is the last that knows of it.
PyObject* call_run(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  // The caller holds the wrapper while on_suspicion takes back the attribute that it is.
  Wrapped& wrapped = wrapped_in(self);
  if (aside([&] { call_back(wrapped.on_suspicion, py::tuple()); })) {
    return nullptr;
  }
  PyObject* result =
      PyObject_Vectorcall(wrapped.original.ptr(), args, static_cast<size_t>(count), keywords);
  PyObject* error = result == nullptr ? error_that_is_set() : nullptr;
  return unless(
      error != nullptr && aside([&] {
        if (PyExceptionInstance_Check(error)) {
          call_back(wrapped.on_error, py::make_tuple(py::handle(error)));
        }
      }),
      result);
}

PyMethodDef run_method = {
    "run",
    reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call_run)),
    METH_FASTCALL | METH_KEYWORDS,
    "multiprocessing.Process.run, watched by gradext"};

py::object wrap_run(py::object original, py::object on_start, py::object on_error) {
  return make_wrapper(
      &run_method, Wrapped{"", std::move(original), std::move(on_start), std::move(on_error)});
}

// A method of Python's that is called with the same arguments after `before` was.
PyObject* call_method(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  Wrapped& wrapped = wrapped_in(self);
  if (active() && aside([&] {
        py::tuple given(static_cast<size_t>(count));
        for (Py_ssize_t k = 0; k < count; ++k) {
          given[static_cast<size_t>(k)] = py::reinterpret_borrow<py::object>(args[k]);
        }
        call_back(wrapped.on_suspicion, given);
      })) {
    return nullptr;
  }
  return PyObject_Vectorcall(wrapped.original.ptr(), args, static_cast<size_t>(count), keywords);
}

PyMethodDef method_method = {
    "method",
    reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call_method)),
    METH_FASTCALL | METH_KEYWORDS,
    // inspect.signature() reads the first line.
    "method($self, /, *args, **kwargs)\n--\n\na method of torch's, watched by gradext"};

py::object wrap_method(py::object original, py::object before) {
  py::object wrapper =
      make_wrapper(&method_method, Wrapped{"", std::move(original), std::move(before), {}});
  return py::reinterpret_steal<py::object>(PyInstanceMethod_New(wrapper.ptr()));
}

// Threads that were there before the recording: each brings itself in line at its next call or
// return, through a profile function that takes itself away.
int wake(PyObject*, PyFrameObject*, int, PyObject*) {
  const bool is_stopped = aside([] {
    PyEval_SetProfile(nullptr, nullptr);
    sync_thread();
  });
  return is_stopped ? -1 : 0;
}

void wake_threads() {
  profile_others(&wake);
}

}  // namespace

PyCodeObject* engine_code() {
  return code_of_engine;
}

void bind_hooks(py::module_& m) {
  m.def("wrap_backward", &wrap_backward);
  m.def("wrap_noting", &wrap_noting);
  m.def("wrap_apply", &wrap_apply);
  m.def("exchange_apply", &exchange_apply);
  m.def("put_back_apply", &put_back_apply);
  m.def("wrap_bootstrap", &wrap_bootstrap);
  m.def("wrap_run", &wrap_run);
  m.def("wrap_method", &wrap_method);
  m.def("recorder_look_after", [](uint32_t backwards) { looked_at_after = backwards; });
  m.def("recorder_wake_threads", &wake_threads);
}

void bind_hooks_testing(py::module_& m) {
  m.def("apply_is_exchanged", [] { return apply_entry != nullptr; });
}

}  // namespace gradext::recorder
