#include "guard/entry.h"

#include "journal/journal.h"
#include "state/state.h"

#include <algorithm>
#include <functional>

namespace gradext::guard {

at::Tensor in_memory_order(const at::Tensor& tensor) {
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  const auto sizes = impl.sizes();
  const auto strides = impl.strides();
  if (std::is_sorted(strides.rbegin(), strides.rend())) {
    return tensor;
  }
  c10::SmallVector<std::pair<int64_t, int64_t>, 6> dims;
  for (size_t d = 0; d < sizes.size(); ++d) {
    dims.emplace_back(strides[d], sizes[d]);
  }
  std::sort(dims.begin(), dims.end(), std::greater<>());
  c10::SmallVector<int64_t, 6> sorted_sizes, sorted_strides;
  for (const auto& [stride, size] : dims) {
    sorted_strides.push_back(stride);
    sorted_sizes.push_back(size);
  }
  auto alias = c10::make_intrusive<c10::TensorImpl>(
      c10::Storage(impl.storage()), c10::DispatchKeySet(c10::DispatchKey::CPU), impl.dtype());
  alias->set_sizes_and_strides(sorted_sizes, sorted_strides, impl.storage_offset());
  return at::Tensor(std::move(alias));
}

Outline::Outline(const at::Tensor& of)
    : storage(state::storage(*of.unsafeGetTensorImpl())),
      offset(of.unsafeGetTensorImpl()->storage_offset()),
      dtype(of.unsafeGetTensorImpl()->dtype()),
      sizes(of.unsafeGetTensorImpl()->sizes()),
      strides(of.unsafeGetTensorImpl()->strides()) {}

Entry::Entry(const at::Tensor& of) : tensor(weak(of)) {
  const c10::TensorImpl& impl = *of.unsafeGetTensorImpl();
  storage = state::storage(impl);
  if (storage != nullptr) {
    held.emplace(storage);
  }
  if (storage != nullptr && state::has_strides(impl) && !state::is_wrapper_subclass(impl)) {
    outline.emplace(of);
  }
}

void Entry::take(Value bytes, uint64_t now) {
  value = last = bytes;
  order = now;
  is_taken.store(true, std::memory_order_release);
}

void Entry::take_now() {
  if (is_taken.load(std::memory_order_acquire)) {
    return;
  }
  const at::Tensor saved = locked(tensor);
  if (saved.defined() && fingerprint::can_fingerprint(saved)) {
    take(bytes_in(saved), journal::Journal::get().order());
  }
}

bool Entry::is_outline_of(const at::Tensor& other) const {
  const c10::TensorImpl& impl = *other.unsafeGetTensorImpl();
  return outline.has_value() && state::has_strides(impl) && !state::is_wrapper_subclass(impl) &&
         *outline == Outline(other);
}

}  // namespace gradext::guard
