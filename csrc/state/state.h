// Reads one tensor's autograd state. Nothing here allocates, dispatches, takes the GIL,
// runs a hook or changes a count that outlives the call; in particular nothing asks for
// `grad_fn()`, which rebuilds the node of a view whose base was written.
#pragma once

#include "base/prefetch.h"

#include <ATen/core/Tensor.h>
#include <c10/core/TensorImpl.h>
#include <torch/csrc/autograd/variable.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace gradext::state {

using torch::autograd::AutogradMeta;
using torch::autograd::CreationMeta;
using torch::autograd::DifferentiableViewMeta;

// The identity of a version counter is the address that its one intrusive_ptr holds.
// VariableVersion keeps that pointer private; gradext._C's self-test checks at import that this
// read still works.
static_assert(sizeof(c10::VariableVersion) == sizeof(void*));

inline const void* counter_address(const c10::TensorImpl& impl) {
  const void* address = nullptr;
  std::memcpy(&address, static_cast<const void*>(&impl.version_counter()), sizeof(address));
  return address;
}

inline int64_t opaque_id(const void* address) {
  return static_cast<int64_t>(reinterpret_cast<intptr_t>(address));
}

// -1: no counter (inference tensors).
inline int64_t version(const c10::TensorImpl& impl) {
  const c10::VariableVersion& counter = impl.version_counter();
  return counter.enabled() ? static_cast<int64_t>(counter.current_version()) : -1;
}

// Null until a tensor first needs autograd metadata. Every TensorImpl's AutogradMetaInterface is an
// AutogradMeta (torch::autograd::impl::get_autograd_meta makes the same cast).
inline AutogradMeta* autograd_meta(const c10::TensorImpl& impl) {
  return static_cast<AutogradMeta*>(impl.autograd_meta());
}

// The leaf whose `.grad` a node adds to, for as long as the node lives; null for any other node.
// Out of line: the header of AccumulateGrad reads the declarations of every op, a fifth of what a
// compiler reads for a unit.
const at::Tensor* leaf_of(const torch::autograd::Node& node);

// Below, what takes the metadata itself serves fill_row, which fetches it once (libc10 has it out
// of line); what takes the tensor serves everybody else.

// The view metadata of a tensor that autograd tracks as a view, for backward or forward mode.
inline DifferentiableViewMeta* view_meta(AutogradMeta* meta) {
  return meta && meta->is_view_ ? static_cast<DifferentiableViewMeta*>(meta) : nullptr;
}

inline DifferentiableViewMeta* view_meta(const c10::TensorImpl& impl) {
  return view_meta(autograd_meta(impl));
}

// What torch calls a view (`Tensor._is_view()`): tracked for backward.
inline DifferentiableViewMeta* backward_view_meta(AutogradMeta* any) {
  DifferentiableViewMeta* meta = view_meta(any);
  return meta && meta->has_bw_view() ? meta : nullptr;
}

inline DifferentiableViewMeta* backward_view_meta(const c10::TensorImpl& impl) {
  return backward_view_meta(autograd_meta(impl));
}

inline const c10::TensorImpl* base(const c10::TensorImpl& impl) {
  DifferentiableViewMeta* meta = backward_view_meta(impl);
  return meta ? meta->get_backward_view().base_.unsafeGetTensorImpl() : nullptr;
}

inline bool is_inference(const c10::TensorImpl& impl) {
  // Not const in torch, though it only reads the key set.
  return const_cast<c10::TensorImpl&>(impl).is_inference();
}

inline bool requires_grad(const c10::TensorImpl& impl) {
  AutogradMeta* meta = autograd_meta(impl);
  return meta && meta->requires_grad();
}

// True when `grad_fn` of this view is out of date: its base was written since, and torch will
// rebuild the node the next time somebody asks (VariableHooks::grad_fn has the same condition).
inline bool grad_fn_is_stale(const DifferentiableViewMeta* view, const c10::TensorImpl& impl) {
  const c10::VariableVersion& counter = impl.version_counter();
  return view && counter.enabled() && view->get_attr_version() != counter.current_version() &&
         (view->grad_fn_ || view->get_backward_view().base_.requires_grad());
}

inline bool grad_fn_is_stale(const c10::TensorImpl& impl) {
  return grad_fn_is_stale(backward_view_meta(impl), impl);
}

// What `Tensor.is_leaf` says, which asks for the node: a view without one that would get one is
// none.
inline bool is_leaf(const c10::TensorImpl& impl) {
  AutogradMeta* meta = autograd_meta(impl);
  return meta == nullptr ||
         (meta->grad_fn_ == nullptr && !grad_fn_is_stale(backward_view_meta(meta), impl));
}

inline const c10::StorageImpl* storage(const c10::TensorImpl& impl) {
  return impl.unsafe_storage().unsafeGetStorageImpl();
}

inline bool is_wrapper_subclass(const c10::TensorImpl& impl) {
  return impl.key_set().has(c10::DispatchKey::Python);
}

// TensorImpl::sizes() and strides() are fields of most tensors only. A nested tensor of the C++
// kind and symbolic shapes have no such sizes, sparse, mkldnn and functorch tensors no such
// strides, and a wrapper subclass may compute both in Python: the getters raise there, or run the
// user's code. Which of them are fields is a policy that each tensor carries. torch protects the
// reader of it, which a member pointer reaches.
class SizesAndStrides : c10::TensorImpl {
 public:
  static bool has_sizes(const c10::TensorImpl& impl) {
    return !matches(impl, SizesStridesPolicy::CustomSizes);
  }
  static bool has_strides(const c10::TensorImpl& impl) {  // and sizes
    return !matches(impl, SizesStridesPolicy::CustomStrides);
  }

 private:
  static bool matches(const c10::TensorImpl& impl, SizesStridesPolicy policy) {
    return (impl.*(&SizesAndStrides::matches_policy))(policy);
  }
};

inline bool has_sizes(const c10::TensorImpl& impl) {
  return SizesAndStrides::has_sizes(impl);
}

inline bool has_strides(const c10::TensorImpl& impl) {
  return SizesAndStrides::has_strides(impl);
}

// Elements as the object itself records them. A subclass that overrides sizes in Python is not
// asked: that would run its `__torch_dispatch__`. -1: symbolic.
inline int64_t numel(const c10::TensorImpl& impl) {
  if (impl.has_symbolic_sizes_strides()) {
    return -1;
  }
  return is_wrapper_subclass(impl) ? impl.numel_default() : impl.numel();
}

// Bytes of the elements of a dense tensor; -1 for layouts that keep their elements elsewhere
// (sparse, mkldnn) and for symbolic sizes.
inline int64_t nbytes(const c10::TensorImpl& impl) {
  if (impl.key_set().has_any(c10::sparse_ks | c10::sparse_csr_ks | c10::mkldnn_ks)) {
    return -1;
  }
  const int64_t count = numel(impl);
  return count < 0 ? -1 : count * static_cast<int64_t>(impl.itemsize());
}

inline int64_t storage_offset(const c10::TensorImpl& impl) {
  return impl.has_symbolic_sizes_strides() ? -1 : impl.storage_offset_default();
}

const char* creation_meta_name(CreationMeta meta);
// "default", "no_grad_mode", ... ; null when `impl` is not a view.
const char* creation_meta(const c10::TensorImpl& impl);

// The runtime keys of a tensor ("CPU", "AutogradCPU", "ADInplaceOrView" ...), lowest priority
// first.
std::vector<std::string> dispatch_key_names(c10::DispatchKeySet keys);
// The functionality keys ("AutogradFunctionality" ...) of a thread-local set, which names no
// backends.
std::vector<std::string> functionality_key_names(c10::DispatchKeySet keys);

// The columns of `states`, in the order in which fill_row writes them.
inline constexpr std::array<const char*, 16> kColumns = {
    "version",
    "version_counter",
    "is_view",
    "is_differentiable_view",
    "base",
    "creation_meta",
    "is_inference",
    "requires_grad",
    "is_leaf",
    "output_nr",
    "storage",
    "storage_offset",
    "numel",
    "nbytes",
    "dim",
    "id"};

// One row of `states`. Ids are 0 and numbers are -1 where a fact does not exist; creation_meta is
// torch's own enum value. An undefined tensor (null) gives a row of those.
void fill_row(const c10::TensorImpl* impl, int64_t* row);

// Touch what fill_row will read of this tensor a few rows later: at 100,000 tensors nearly every
// fact is a cache miss, and the misses overlap only if they are asked for early.
inline void prefetch_tensor(const c10::TensorImpl* impl) {
  base::prefetch(impl, 3);
}

inline void prefetch_facts(const c10::TensorImpl& impl) {
  base::prefetch(autograd_meta(impl));
  base::prefetch(counter_address(impl));
}

// Tensors that stand for others while a program is traced are no memory of the program's. A fake
// tensor's own keys name the device that it stands for; its storage does not.
bool is_stand_in(const c10::TensorImpl& impl);
// A tensor of vmap's: the write goes on to the tensor inside it, which has a counter of its own.
bool stands_on_another(const c10::TensorImpl& impl);

// What can be wrong with the assumptions above under another torch: one (claim, holds) pair each.
std::vector<std::pair<std::string, bool>> self_test();

}  // namespace gradext::state
