// What no op shows: grad mode and inference mode switched, `requires_grad` set, `.data` taken,
// values that go to numpy or Python lists or come from there.
//
// The Python objects stay as they are, for programs (and Dynamo) know them by identity: exchanged
// is the table entry with the C function that stands behind a method descriptor, an attribute or a
// built-in function. Put back, nothing is left. A wrapper of Python code would show in tracebacks.
#include "recorder/python/c_entry_points.h"

#include "base/aside.h"
#include "base/signals.h"
#include "recorder/listener.h"
#include "recorder/lost_gradients/flows.h"
#include "recorder/lost_gradients/lost_values.h"
#include "recorder/lost_gradients/python_crossings.h"
#include "recorder/python/grad_mode_blocks.h"
#include "recorder/record_writes.h"
#include "recorder/uncounted_writes.h"
#include "state/state.h"

#include <c10/util/FunctionRef.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

namespace py = pybind11;

namespace gradext::recorder {
namespace {

// One entry point: its name in the events, and what is to be done around it.
enum Entry : size_t {
  kSetGradEnabled,
  kEnterInference,
  kExitInference,
  kRequiresGrad,
  kNumpy,
  kToList,
  kFloat,
  kTensor,
  kAsTensor,
  kAsArray,
  kFromNumpy,
  kFromBuffer,
  kNewTensor,
  kDataPtr,
  kStorage,
  kDlpack,
  kDlpackVersioned,
  kEntries
};
constexpr std::array<const char*, kEntries> kNames = {
    "set_grad_enabled",
    "inference_mode",
    "inference_mode",
    "Tensor.requires_grad_",
    "Tensor.numpy",
    "Tensor.tolist",
    "Tensor.__float__",
    "torch.tensor",
    "torch.as_tensor",
    "torch.asarray",
    "torch.from_numpy",
    "torch.frombuffer",
    "Tensor.new_tensor",
    "Tensor.data_ptr",
    "Tensor.untyped_storage",
    "Tensor.__dlpack__",
    "Tensor.__dlpack__"};

struct Patched {
  PyObject* owner = nullptr;  // a method descriptor or a built-in function
  PyMethodDef** place = nullptr;
  PyMethodDef* original = nullptr;
  PyMethodDef ours{};
  uint32_t name = 0;
};
std::array<Patched, kEntries> patched;

struct PatchedAttribute {
  PyGetSetDescrObject* owner = nullptr;
  PyGetSetDef* original = nullptr;
  PyGetSetDef ours{};
  uint32_t name = 0;
};
PatchedAttribute data_attribute, requires_grad_attribute, grad_attribute;
py::object* on_empty_grad = nullptr;  // is told of a `.grad` that was read and that nothing fills

constexpr double kNoValue = std::numeric_limits<double>::quiet_NaN();

void collect(Inputs& inputs, PyObject* value, int depth) {
  if (is_tensor(value)) {
    inputs.push_back(THPVariable_Unpack(value).unsafeGetTensorImpl());
  } else if (depth > 0 && (PyList_CheckExact(value) || PyTuple_CheckExact(value))) {
    const Py_ssize_t count = std::min<Py_ssize_t>(Py_SIZE(value), 64);
    for (Py_ssize_t k = 0; k < count; ++k) {
      collect(
          inputs,
          PyList_CheckExact(value) ? PyList_GET_ITEM(value, k) : PyTuple_GET_ITEM(value, k),
          depth - 1);
    }
  }
}

double number_in(PyObject* value) {
  if (PyFloat_Check(value)) {
    return PyFloat_AS_DOUBLE(value);
  }
  if (PyLong_CheckExact(value)) {
    const double number = PyLong_AsDouble(value);
    PyErr_Clear();
    return number;
  }
  return kNoValue;
}

// The memory is in other hands from now on. torch's own files (serialization, copies, printing) let
// go of it before they return; those of _tensor.py hand on what the program asked for.
void exposed(const at::Tensor& tensor) {
  const Taps* tap = listener();
  if (tap == nullptr) {
    return;
  }
  if (PyFrameObject* frame = PyEval_GetFrame()) {
    PyCodeObject* code = PyFrame_GetCode(frame);
    const char* file = PyUnicode_AsUTF8(code->co_filename);
    const std::string path = file != nullptr ? file : "";
    Py_DECREF(code);
    PyErr_Clear();
    if (path.find("/torch/") != std::string::npos &&
        path.find("/torch/_tensor.py") == std::string::npos &&
        path.find("/torch/utils/dlpack.py") == std::string::npos &&
        path.find("/torch/storage.py") == std::string::npos) {
      return;
    }
  }
  tap->exposed(tensor);
}

// After the original has returned `result` (null: it raised `error`).
void after(
    Entry entry,
    PyObject* self,
    PyObject* first,
    PyObject* result,
    PyObject* error,
    bool grad_mode_was) {
  const uint32_t name = patched[entry].name;
  if (entry == kSetGradEnabled) {
    grad_mode_set(grad_mode_was);
    return;
  }
  if (entry == kEnterInference || entry == kExitInference) {
    if (result != nullptr) {
      entry == kEnterInference ? inference_entered() : inference_left();
    }
    return;
  }
  if (entry == kRequiresGrad) {
    if (!is_tensor(self)) {
      return;
    }
    const at::Tensor& tensor = THPVariable_Unpack(self);
    if (result != nullptr) {
      note_flag(tensor, tensor.requires_grad());
    } else {
      note_misuse(name, Inputs{tensor.unsafeGetTensorImpl()}, text_of(error));
    }
    return;
  }
  if (result == nullptr) {
    return;
  }
  if (entry == kDataPtr || entry == kStorage) {
    if (is_tensor(self)) {
      exposed(THPVariable_Unpack(self));
    }
    return;
  }
  if (entry == kDlpack || entry == kDlpackVersioned) {
    if (first != nullptr && is_tensor(first)) {
      exposed(THPVariable_Unpack(first));
    }
    return;
  }
  if (entry == kNumpy && is_tensor(self)) {
    exposed(THPVariable_Unpack(self));
  }
  if (entry == kNumpy || entry == kToList) {
    if (cuts_are_on() && is_tensor(self)) {
      note_exit(name, THPVariable_Unpack(self), number_in(result));
      if (entry == kNumpy) {
        note_shared(name, THPVariable_Unpack(self));
      }
    }
    return;
  }
  if (entry == kFloat) {
    // `float(t)` is an op, which says so; torch.Tensor([t]) converts where no op is seen.
    if (cuts_are_on() && is_tensor(self) && !has_just_left(number_in(result))) {
      note_exit(name, THPVariable_Unpack(self), number_in(result));
    }
    return;
  }
  if (is_tensor(result)) {
    Inputs inputs;
    double value = kNoValue;
    if (first != nullptr) {
      if (first == result) {
        return;  // as_tensor() of a tensor
      }
      collect(inputs, first, 3);
      value = number_in(first);
    }
    note_entry(name, THPVariable_Unpack(result), inputs, value);
  }
}

PyObject* data_argument(PyObject* const* values, Py_ssize_t count, PyObject* keywords) {
  if (count > 0) {
    return values[0];
  }
  for (Py_ssize_t k = 0; keywords != nullptr && k < PyTuple_GET_SIZE(keywords); ++k) {
    PyObject* word = PyTuple_GET_ITEM(keywords, k);
    if (PyUnicode_CompareWithASCIIString(word, "data") == 0 ||
        PyUnicode_CompareWithASCIIString(word, "obj") == 0) {
      return values[count + k];
    }
  }
  return nullptr;
}

// Tells of a call that has ended; `first()`: what the tensor is made of, in the arguments. A
// function of its own, not a part of each of the hundred trampolines.
PyObject* beside(
    Entry entry,
    PyObject* self,
    PyObject* result,
    bool grad_mode,
    c10::function_ref<PyObject*()> first) {
  if (!active()) {
    return result;
  }
  PyObject* error = result == nullptr ? error_that_is_set() : nullptr;
  return unless(aside([&] { after(entry, self, first(), result, error, grad_mode); }), result);
}

// The functions that stand in the places of the originals, one for each calling convention.
template <Entry entry>
struct Trampoline {
  static PyObject* fast_with_keywords(
      PyObject* self, PyObject* const* values, Py_ssize_t count, PyObject* keywords) {
    const bool grad_mode = c10::GradMode::is_enabled();
    auto original =
        reinterpret_cast<PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t, PyObject*)>(
            reinterpret_cast<void (*)()>(patched[entry].original->ml_meth));
    PyObject* result = original(self, values, count, keywords);
    return beside(
        entry, self, result, grad_mode, [&] { return data_argument(values, count, keywords); });
  }

  static PyObject* with_keywords(PyObject* self, PyObject* values, PyObject* keywords) {
    const bool grad_mode = c10::GradMode::is_enabled();
    auto original = reinterpret_cast<PyCFunctionWithKeywords>(
        reinterpret_cast<void (*)()>(patched[entry].original->ml_meth));
    PyObject* result = original(self, values, keywords);
    return beside(entry, self, result, grad_mode, [&]() -> PyObject* {
      if (values != nullptr && PyTuple_GET_SIZE(values) > 0) {
        return PyTuple_GET_ITEM(values, 0);
      }
      PyObject* first = nullptr;
      for (const char* word : {"data", "obj", "buffer"}) {
        if (first == nullptr && keywords != nullptr) {
          first = PyDict_GetItemString(keywords, word);
        }
      }
      return first;
    });
  }

  // No arguments, one argument, or a tuple of them.
  static PyObject* plain(PyObject* self, PyObject* argument) {
    const bool grad_mode = c10::GradMode::is_enabled();
    PyObject* result = patched[entry].original->ml_meth(self, argument);
    return beside(entry, self, result, grad_mode, [&]() -> PyObject* {
      if ((patched[entry].original->ml_flags & METH_VARARGS) == 0) {
        return argument;
      }
      return argument != nullptr && PyTuple_GET_SIZE(argument) > 0 ? PyTuple_GET_ITEM(argument, 0)
                                                                   : nullptr;
    });
  }
};

// False where the function is of a kind that this does not know: then it is left alone.
template <Entry entry>
bool patch(PyObject* target) {
  PyMethodDef** place = nullptr;
  if (PyInstanceMethod_Check(target)) {
    target = PyInstanceMethod_Function(target);
  }
  if (Py_TYPE(target) == &PyMethodDescr_Type) {
    place = &reinterpret_cast<PyMethodDescrObject*>(target)->d_method;
  } else if (PyCFunction_Check(target)) {
    place = &reinterpret_cast<PyCFunctionObject*>(target)->m_ml;
  } else {
    return false;
  }
  Patched& at = patched[entry];
  at.ours = **place;
  using Call = PyCFunction;
  switch (at.ours.ml_flags & ~(METH_STATIC | METH_CLASS | METH_COEXIST)) {
    case METH_FASTCALL | METH_KEYWORDS:
      at.ours.ml_meth = reinterpret_cast<Call>(
          reinterpret_cast<void (*)()>(&Trampoline<entry>::fast_with_keywords));
      break;
    case METH_VARARGS | METH_KEYWORDS:
      at.ours.ml_meth =
          reinterpret_cast<Call>(reinterpret_cast<void (*)()>(&Trampoline<entry>::with_keywords));
      break;
    case METH_NOARGS:
    case METH_O:
    case METH_VARARGS:
      at.ours.ml_meth = &Trampoline<entry>::plain;
      break;
    default:
      return false;
  }
  Py_INCREF(target);
  at.owner = target;
  at.place = place;
  at.original = *place;
  at.name = intern_name(kNames[entry]);
  *place = &at.ours;
  return true;
}

PyObject* get_data(PyObject* self, void* closure) {
  PyObject* result = data_attribute.original->get(self, closure);
  if (result == nullptr || !active()) {
    return result;
  }
  return unless(
      aside([&] {
        if (!is_tensor(self) || !is_tensor(result)) {
          return;
        }
        note_apart(state::counter_address(*THPVariable_Unpack(result).unsafeGetTensorImpl()));
        if (cuts_are_on()) {
          note_alias(data_attribute.name, THPVariable_Unpack(self), THPVariable_Unpack(result));
        }
      }),
      result);
}

// `tensor.data = other`: the tensor has other memory now, and its counter says nothing.
int set_data(PyObject* self, PyObject* value, void* closure) {
  if (active() && op_listener() != nullptr && aside([&] {
        const OpTaps* taps = op_listener();
        if (taps != nullptr && is_tensor(self)) {
          taps->before_write(THPVariable_Unpack(self));
        }
      })) {
    return -1;
  }
  const int status = data_attribute.original->set(self, value, closure);
  const bool is_stopped =
      status == 0 && active() && aside([&] {
        if (is_tensor(self)) {
          note_exchange(data_attribute.name, THPVariable_Unpack(self));
          if (is_tensor(value)) {
            note_given(data_attribute.name, THPVariable_Unpack(self), THPVariable_Unpack(value));
          }
        }
      });
  return is_stopped ? -1 : status;
}

int set_requires_grad(PyObject* self, PyObject* value, void* closure) {
  const int status = requires_grad_attribute.original->set(self, value, closure);
  PyObject* error = status != 0 ? error_that_is_set() : nullptr;
  const bool is_stopped =
      active() && aside([&] {
        if (!is_tensor(self)) {
          return;
        }
        const at::Tensor& tensor = THPVariable_Unpack(self);
        if (status == 0) {
          note_flag(tensor, tensor.requires_grad());
        } else {
          note_misuse(
              requires_grad_attribute.name, Inputs{tensor.unsafeGetTensorImpl()}, text_of(error));
        }
      });
  return is_stopped ? -1 : status;
}

// A tensor that some op made, and that did not ask for its gradient: torch fills no `.grad` of it.
bool is_never_filled(const at::Tensor& tensor) {
  const auto* meta = state::autograd_meta(*tensor.unsafeGetTensorImpl());
  return meta != nullptr && meta->grad_fn_ != nullptr && !tensor.retains_grad();
}

PyObject* get_grad(PyObject* self, void* closure) {
  PyObject* result = grad_attribute.original->get(self, closure);
  if (result != Py_None || !cuts_are_on()) {
    return result;
  }
  return unless(
      aside([&] {
        if (on_empty_grad != nullptr && is_tensor(self) &&
            is_never_filled(THPVariable_Unpack(self))) {
          call_back(*on_empty_grad, py::make_tuple(py::handle(self)));
        }
      }),
      result);
}

bool patch_attribute(PyObject* target, PatchedAttribute& at, const char* name) {
  if (Py_TYPE(target) != &PyGetSetDescr_Type) {
    return false;
  }
  auto* descriptor = reinterpret_cast<PyGetSetDescrObject*>(target);
  at.ours = *descriptor->d_getset;
  if (&at == &data_attribute) {
    at.ours.get = &get_data;
    at.ours.set = at.ours.set != nullptr ? &set_data : nullptr;
  } else if (&at == &grad_attribute) {
    at.ours.get = &get_grad;
  } else {
    at.ours.set = &set_requires_grad;
  }
  Py_INCREF(target);
  at.owner = descriptor;
  at.original = descriptor->d_getset;
  at.name = intern_name(name);
  descriptor->d_getset = &at.ours;
  return true;
}

void unpatch_all() {
  for (Patched& at : patched) {
    if (at.owner != nullptr) {
      *at.place = at.original;
      Py_CLEAR(at.owner);
    }
  }
  for (PatchedAttribute* at : {&data_attribute, &requires_grad_attribute, &grad_attribute}) {
    if (at->owner != nullptr) {
      at->owner->d_getset = at->original;
      PyObject* owner = reinterpret_cast<PyObject*>(at->owner);
      at->owner = nullptr;
      Py_DECREF(owner);
    }
  }
}

// The names of those that are of an unknown kind.
py::list patch_all(py::object empty_grad) {
  if (on_empty_grad == nullptr) {
    on_empty_grad = new py::object;  // never freed: a thread may be calling it
  }
  *on_empty_grad = std::move(empty_grad);
  py::list left;
  const auto tried = [&](bool done, const char* name) {
    if (!done) {
      left.append(name);
    }
  };
  const py::object torch = py::module_::import("torch");
  const py::object core = py::module_::import("torch._C");
  const py::dict base = core.attr("TensorBase").attr("__dict__").cast<py::dict>();
  const auto of_tensor = [&](const char* name) { return base[name].cast<py::object>(); };
  tried(patch<kSetGradEnabled>(core.attr("_set_grad_enabled").ptr()), "_set_grad_enabled");
  const py::object mode = core.attr("_InferenceMode");
  tried(patch<kEnterInference>(mode.attr("__enter__").ptr()), "_InferenceMode.__enter__");
  tried(patch<kExitInference>(mode.attr("__exit__").ptr()), "_InferenceMode.__exit__");
  tried(patch<kRequiresGrad>(of_tensor("requires_grad_").ptr()), "Tensor.requires_grad_");
  tried(patch<kNumpy>(of_tensor("numpy").ptr()), "Tensor.numpy");
  tried(patch<kToList>(of_tensor("tolist").ptr()), "Tensor.tolist");
  tried(patch<kFloat>(of_tensor("__float__").ptr()), "Tensor.__float__");
  tried(patch<kNewTensor>(of_tensor("new_tensor").ptr()), "Tensor.new_tensor");
  tried(patch<kDataPtr>(of_tensor("data_ptr").ptr()), "Tensor.data_ptr");
  tried(patch<kStorage>(of_tensor("untyped_storage").ptr()), "Tensor.untyped_storage");
  tried(patch<kDlpack>(core.attr("_to_dlpack").ptr()), "torch._C._to_dlpack");
  if (py::hasattr(core, "_to_dlpack_versioned")) {
    tried(
        patch<kDlpackVersioned>(core.attr("_to_dlpack_versioned").ptr()),
        "torch._C._to_dlpack_versioned");
  }
  tried(patch<kTensor>(torch.attr("tensor").ptr()), "torch.tensor");
  tried(patch<kAsTensor>(torch.attr("as_tensor").ptr()), "torch.as_tensor");
  tried(patch<kAsArray>(torch.attr("asarray").ptr()), "torch.asarray");
  tried(patch<kFromNumpy>(torch.attr("from_numpy").ptr()), "torch.from_numpy");
  tried(patch<kFromBuffer>(torch.attr("frombuffer").ptr()), "torch.frombuffer");
  tried(patch_attribute(of_tensor("data").ptr(), data_attribute, "Tensor.data"), "Tensor.data");
  tried(patch_attribute(of_tensor("grad").ptr(), grad_attribute, "Tensor.grad"), "Tensor.grad");
  tried(
      patch_attribute(
          of_tensor("requires_grad").ptr(), requires_grad_attribute, "Tensor.requires_grad"),
      "Tensor.requires_grad");
  return left;
}

}  // namespace

void bind_entries(py::module_& m) {
  m.def("patch_entries", &patch_all);
  m.def("unpatch_entries", &unpatch_all);
}

}  // namespace gradext::recorder
