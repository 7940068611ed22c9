#include "state/plain_reads.h"

#include "state/state.h"

#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

namespace py = pybind11;

namespace gradext::state {
namespace {

// Whether a call of an op on this thread comes to its kernel with nobody between. Tracers,
// functorch's transforms and modes written in Python each put a key among the thread's included
// ones, and profilers are callbacks: an op is a thing that they see, and a read at once is not.
bool nobody_is_between() {
  using c10::DispatchKey;
  // The last two are those of gradext's recorder, which lets gradext's own ops through.
  constexpr c10::DispatchKeySet kUsual =
      c10::default_included_set | c10::DispatchKeySet(DispatchKey::TESTING_ONLY_GenericMode) |
      c10::DispatchKeySet(DispatchKey::TESTING_ONLY_GenericWrapper);
  const c10::DispatchKeySet included = c10::impl::tls_local_dispatch_key_set().included_;
  return (included - kUsual).empty() &&
         !at::getStepCallbacksUnlessEmpty(at::RecordScope::FUNCTION).has_value();
}

// The tensor, if it is of torch's own class and no wrapper; null for all else, which is for the
// dispatcher, or an error.
const c10::TensorImpl* plain(PyObject* object) {
  if (!THPVariable_CheckExact(object)) {
    return nullptr;
  }
  const at::Tensor& tensor = THPVariable_Unpack(object);
  return tensor.defined() && !is_wrapper_subclass(*tensor.unsafeGetTensorImpl())
             ? tensor.unsafeGetTensorImpl()
             : nullptr;
}

using ReadOne = PyObject*(const c10::TensorImpl&);
using ReadTwo = bool(const c10::TensorImpl&, const c10::TensorImpl&);

// `otherwise` is the Python function that asks the dispatcher.
template <ReadOne* Read>
PyObject* read_one(PyObject* otherwise, PyObject* object) {
  const c10::TensorImpl* impl = plain(object);
  return impl != nullptr && nobody_is_between() ? Read(*impl)
                                                : PyObject_CallOneArg(otherwise, object);
}

template <ReadTwo* Read>
PyObject* read_two(PyObject* otherwise, PyObject* objects) {
  const bool are_two = PyTuple_GET_SIZE(objects) == 2;
  const c10::TensorImpl* a = are_two ? plain(PyTuple_GET_ITEM(objects, 0)) : nullptr;
  const c10::TensorImpl* b = are_two ? plain(PyTuple_GET_ITEM(objects, 1)) : nullptr;
  return a != nullptr && b != nullptr && nobody_is_between()
             ? PyBool_FromLong(Read(*a, *b))
             : PyObject_Call(otherwise, objects, nullptr);
}

PyObject* none() {
  Py_RETURN_NONE;
}

PyObject* read_version(const c10::TensorImpl& impl) {
  const int64_t value = version(impl);
  return value < 0 ? none() : PyLong_FromLongLong(value);
}

PyObject* read_counter(const c10::TensorImpl& impl) {
  const void* address = counter_address(impl);
  return address == nullptr ? none() : PyLong_FromLongLong(opaque_id(address));
}

PyObject* read_is_view(const c10::TensorImpl& impl) {
  return PyBool_FromLong(backward_view_meta(impl) != nullptr);
}

PyObject* read_is_differentiable_view(const c10::TensorImpl& impl) {
  return PyBool_FromLong(view_meta(impl) != nullptr);
}

PyObject* read_base(const c10::TensorImpl& impl) {
  HANDLE_TH_ERRORS
  const DifferentiableViewMeta* meta = backward_view_meta(impl);
  return meta == nullptr ? none() : THPVariable_Wrap(meta->get_backward_view().base_);
  END_HANDLE_TH_ERRORS
}

PyObject* read_creation_meta(const c10::TensorImpl& impl) {
  const char* name = creation_meta(impl);
  return name == nullptr ? none() : PyUnicode_InternFromString(name);
}

PyObject* read_is_inference(const c10::TensorImpl& impl) {
  return PyBool_FromLong(is_inference(impl));
}

bool share_counter(const c10::TensorImpl& a, const c10::TensorImpl& b) {
  return counter_address(a) != nullptr && counter_address(a) == counter_address(b);
}

bool share_storage(const c10::TensorImpl& a, const c10::TensorImpl& b) {
  return storage(a) != nullptr && storage(a) == storage(b);
}

template <ReadOne* Read>
PyMethodDef of_one(const char* name) {
  return {name, &read_one<Read>, METH_O, nullptr};
}

template <ReadTwo* Read>
PyMethodDef of_two(const char* name) {
  return {name, &read_two<Read>, METH_VARARGS, nullptr};
}

// Python keeps pointers to the rows.
PyMethodDef readers[] = {
    of_one<&read_version>("version"),
    of_one<&read_counter>("version_counter"),
    of_one<&read_is_view>("is_view"),
    of_one<&read_is_differentiable_view>("is_differentiable_view"),
    of_one<&read_base>("base"),
    of_one<&read_creation_meta>("creation_meta"),
    of_one<&read_is_inference>("is_inference"),
    of_two<&share_counter>("shares_version_counter"),
    of_two<&share_storage>("shares_storage")};

py::object plain_reader(const std::string& name, const py::object& otherwise) {
  for (PyMethodDef& reader : readers) {
    if (name == reader.ml_name) {
      return py::reinterpret_steal<py::object>(
          PyCFunction_NewEx(&reader, otherwise.ptr(), nullptr));
    }
  }
  throw py::key_error("plain_reader: there is none of " + name);
}

}  // namespace

void bind_plain_reads(py::module_& m) {
  m.def("plain_reader", &plain_reader, py::arg("name"), py::arg("otherwise"));
}

}  // namespace gradext::state
