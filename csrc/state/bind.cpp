#include "state/bind.h"

#include "base/prefetch.h"
#include "state/plain_reads.h"
#include "state/state.h"

#include <pybind11/numpy.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <ATen/NestedTensorImpl.h>
#include <c10/util/intrusive_ptr.h>

#include <mutex>

namespace py = pybind11;

namespace gradext::state {
namespace {

const char* type_name(PyObject* object) {
  return Py_TYPE(object)->tp_name;
}

const c10::TensorImpl& unpack(py::handle object, const char* door) {
  if (!THPVariable_Check(object.ptr())) {
    throw py::type_error(
        std::string(door) + ": expected a torch.Tensor, got " + type_name(object.ptr()));
  }
  return *THPVariable_Unpack(object.ptr()).unsafeGetTensorImpl();
}

py::object optional_id(const void* address) {
  return address ? py::object(py::int_(opaque_id(address))) : py::none();
}

py::object optional_text(const char* text) {
  return text ? py::object(py::str(text)) : py::none();
}

// The node's name without Tensor::grad_fn(), which rebuilds the node of a view whose base was
// written.
py::object grad_fn_name(const c10::TensorImpl& impl) {
  AutogradMeta* meta = autograd_meta(impl);
  if (meta == nullptr) {
    return py::none();
  }
  if (!meta->is_view_) {
    return meta->grad_fn_ ? py::object(py::str(meta->grad_fn_->name())) : py::none();
  }
  // Another thread may be rebuilding a view's node right now, under this mutex; it may need the GIL
  // for that, so never wait for it with the GIL held.
  std::unique_lock<std::mutex> lock(meta->mutex_, std::defer_lock);
  if (!lock.try_lock()) {
    py::gil_scoped_release release;
    lock.lock();
  }
  auto node = meta->grad_fn_;
  lock.unlock();
  return node ? py::object(py::str(node->name())) : py::none();
}

py::tuple shape_of(const c10::TensorImpl& impl) {
  if (impl.key_set().has(c10::DispatchKey::NestedTensor) && !is_wrapper_subclass(impl)) {
    // A nested tensor of the C++ kind has no size in its ragged dimensions: None there.
    const auto* nested = static_cast<const at::native::NestedTensorImpl*>(&impl);
    const int64_t dim = impl.dim();
    py::tuple shape(dim);
    for (int64_t d = 0; d < dim; ++d) {
      const auto size = nested->opt_size(d);
      shape[d] = size ? py::object(py::int_(*size)) : py::none();
    }
    return shape;
  }
  const c10::SymIntArrayRef sizes = is_wrapper_subclass(impl) || impl.has_symbolic_sizes_strides()
                                        ? impl.sym_sizes_default()
                                        : impl.sym_sizes();
  py::tuple shape(sizes.size());
  for (size_t d = 0; d < sizes.size(); ++d) {
    shape[d] = py::cast(sizes[d]);
  }
  return shape;
}

// The device that the object itself records. TensorImpl::device() would ask a subclass that
// overrides it in Python; the plain read is protected there, and reachable through a member
// pointer.
struct DeviceDefault : c10::TensorImpl {
  static c10::Device of(const c10::TensorImpl& impl) {
    return (impl.*(&DeviceDefault::device_default))();
  }
};

py::object storage_offset_of(const c10::TensorImpl& impl) {
  return py::cast(impl.sym_storage_offset_default());
}

// Sizes, strides, offset (in elements) and bytes of an element, as the object itself records them;
// None for a tensor whose sizes or strides are no fields of it (has_strides).
py::object geometry(py::handle object) {
  const c10::TensorImpl& impl = unpack(object, "geometry");
  if (!has_strides(impl)) {
    return py::none();
  }
  const auto ints = [](c10::IntArrayRef values) {
    py::tuple out(values.size());
    for (size_t d = 0; d < values.size(); ++d) {
      out[d] = py::int_(values[d]);
    }
    return out;
  };
  return py::make_tuple(
      ints(impl.sizes()), ints(impl.strides()), impl.storage_offset_default(), impl.itemsize());
}

py::object nbytes_of(const c10::TensorImpl& impl) {
  const int64_t bytes = nbytes(impl);
  if (bytes >= 0) {
    return py::int_(bytes);
  }
  // A jagged nested tensor's ragged size stands for lengths that differ: no product of it is a
  // size.
  const bool ragged = impl.key_set().has(c10::DispatchKey::NestedTensor);
  if (impl.has_symbolic_sizes_strides() && !ragged) {
    return py::cast(impl.sym_numel_default() * c10::SymInt(static_cast<int64_t>(impl.itemsize())));
  }
  return py::none();
}

// True when the memory under a dense tensor was given back (`untyped_storage().resize_(0)`, as
// sharded training does between uses): its state can be read, its elements cannot.
bool storage_is_freed(const c10::TensorImpl& impl) {
  const c10::StorageImpl* storage = state::storage(impl);
  if (storage == nullptr || is_wrapper_subclass(impl) || numel(impl) <= 0 ||
      impl.key_set().has(c10::DispatchKey::Functionalize)) {
    return false;
  }
  const c10::Storage& handle = impl.unsafe_storage();
  if (handle.device_type() == c10::DeviceType::Meta) {
    return false;
  }
  return handle.sym_nbytes().maybe_as_int().value_or(1) == 0 || handle.data() == nullptr;
}

// The order of the fields is gradext.state.inspect.TensorState's.
py::tuple inspect(py::handle object) {
  const c10::TensorImpl& impl = unpack(object, "gradext.inspect");
  const AutogradMeta* meta = autograd_meta(impl);
  const int64_t version = state::version(impl);
  py::tuple keys = py::cast(dispatch_key_names(impl.key_set())).cast<py::tuple>();
  return py::make_tuple(
      shape_of(impl),
      py::cast(c10::typeMetaToScalarType(impl.dtype())),
      py::cast(DeviceDefault::of(impl)),
      requires_grad(impl),
      is_leaf(impl),
      grad_fn_name(impl),
      meta ? static_cast<int64_t>(meta->output_nr_) : int64_t{0},
      version < 0 ? py::object(py::none()) : py::object(py::int_(version)),
      optional_id(counter_address(impl)),
      backward_view_meta(impl) != nullptr,
      optional_id(state::base(impl)),
      optional_text(creation_meta(impl)),
      is_inference(impl),
      optional_id(state::storage(impl)),
      storage_offset_of(impl),
      nbytes_of(impl),
      keys,
      opaque_id(&impl),
      grad_fn_is_stale(impl),
      storage_is_freed(impl));
}

py::array_t<int64_t> states(py::object tensors) {
  if (THPVariable_Check(tensors.ptr())) {
    // A tensor can be iterated, but the state of its rows is hardly what was asked for.
    throw py::type_error("gradext.states: expected a sequence of tensors, got a torch.Tensor");
  }
  // A list or tuple is used as it is; anything else that can be iterated becomes a list first.
  py::object held = py::reinterpret_steal<py::object>(
      PySequence_Fast(tensors.ptr(), "gradext.states: expected a sequence of tensors"));
  if (!held) {
    throw py::error_already_set();
  }
  const Py_ssize_t rows = PySequence_Fast_GET_SIZE(held.ptr());
  PyObject** items = PySequence_Fast_ITEMS(held.ptr());
  constexpr Py_ssize_t kColumns = static_cast<Py_ssize_t>(state::kColumns.size());
  py::array_t<int64_t> out({rows, kColumns});
  int64_t* row = out.mutable_data();
  // Three stages of prefetch, each a pointer further: Python object, tensor, autograd metadata.
  constexpr Py_ssize_t kObject = 24, kTensor = 16, kFacts = 8;
  for (Py_ssize_t i = 0; i < rows; ++i, row += kColumns) {
    if (i + kObject < rows) {
      base::prefetch(items[i + kObject]);
    }
    if (i + kTensor < rows && THPVariable_CheckExact(items[i + kTensor])) {
      prefetch_tensor(THPVariable_Unpack(items[i + kTensor]).unsafeGetTensorImpl());
    }
    if (i + kFacts < rows && THPVariable_CheckExact(items[i + kFacts])) {
      prefetch_facts(*THPVariable_Unpack(items[i + kFacts]).unsafeGetTensorImpl());
    }
    if (!THPVariable_Check(items[i])) {
      throw py::type_error(
          "gradext.states: item " + std::to_string(i) + " is a " + type_name(items[i]) +
          ", expected a torch.Tensor");
    }
    fill_row(THPVariable_Unpack(items[i]).unsafeGetTensorImpl(), row);
  }
  return out;
}

// How many owners the tensor's version counter has, 0 without one. For gradext's own tests, which
// show that reading leaves no owner behind.
size_t version_counter_use_count(py::handle object) {
  const c10::TensorImpl& impl = unpack(object, "version_counter_use_count");
  auto* counter = const_cast<void*>(counter_address(impl));
  return counter == nullptr
             ? 0
             : c10::raw::intrusive_ptr::use_count(static_cast<c10::intrusive_ptr_target*>(counter));
}

}  // namespace

void bind(py::module_& m) {
  m.def("inspect", &inspect, py::arg("tensor"));
  m.def("states", &states, py::arg("tensors"));
  m.def("geometry", &geometry, py::arg("tensor"));
  m.def("self_test", &self_test);
  // The cheapest call that exists, for benchmarks: what a row of `_C` timings contains besides its
  // work.
  m.def("version", [](py::handle t) -> py::object {
    const int64_t value = version(unpack(t, "gradext.version"));
    return value < 0 ? py::object(py::none()) : py::object(py::int_(value));
  });
  bind_plain_reads(m);
  py::list columns;
  for (const char* name : kColumns) {
    columns.append(name);
  }
  m.attr("STATE_COLUMNS") = py::tuple(columns);
  py::list metas;  // their places are the numbers that a recording keeps
  for (int meta = 0; meta <= static_cast<int>(CreationMeta::INFERENCE_MODE); ++meta) {
    metas.append(creation_meta_name(static_cast<CreationMeta>(meta)));
  }
  m.attr("CREATION_METAS") = py::tuple(metas);
}

void bind_testing(py::module_& m) {
  m.def("version_counter_use_count", &version_counter_use_count, py::arg("tensor"));
}

}  // namespace gradext::state
