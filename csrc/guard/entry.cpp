#include "guard/entry.h"

#include "state/state.h"

namespace gradext::guard {

Outline::Outline(const at::Tensor& of)
    : storage(state::storage(*of.unsafeGetTensorImpl())),
      offset(of.unsafeGetTensorImpl()->storage_offset()),
      dtype(of.unsafeGetTensorImpl()->dtype()),
      sizes(of.unsafeGetTensorImpl()->sizes()),
      strides(of.unsafeGetTensorImpl()->strides()) {}

Entry::Entry(const at::Tensor& of, Value bytes) : tensor(weak(of)), value(bytes) {
  const c10::TensorImpl& impl = *of.unsafeGetTensorImpl();
  storage = state::storage(impl);
  if (storage != nullptr) {
    held.emplace(storage);
  }
  if (storage != nullptr && state::has_strides(impl) && !state::is_wrapper_subclass(impl)) {
    outline.emplace(of);
  }
}

bool Entry::is_outline_of(const at::Tensor& other) const {
  const c10::TensorImpl& impl = *other.unsafeGetTensorImpl();
  return outline.has_value() && state::has_strides(impl) && !state::is_wrapper_subclass(impl) &&
         *outline == Outline(other);
}

}  // namespace gradext::guard
