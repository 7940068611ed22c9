#include "state/state.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/detach.h>
#include <ATen/ops/view.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/generated/variable_factories.h>

namespace gradext::state {

const char* creation_meta_name(CreationMeta meta) {
  switch (meta) {
    case CreationMeta::DEFAULT:
      return "default";
    case CreationMeta::IN_CUSTOM_FUNCTION:
      return "in_custom_function";
    case CreationMeta::MULTI_OUTPUT_NODE:
      return "multi_output_node";
    case CreationMeta::NO_GRAD_MODE:
      return "no_grad_mode";
    case CreationMeta::INFERENCE_MODE:
      return "inference_mode";
  }
  return "unknown";
}

const char* creation_meta(const c10::TensorImpl& impl) {
  DifferentiableViewMeta* meta = backward_view_meta(impl);
  return meta ? creation_meta_name(meta->get_creation_meta()) : nullptr;
}

std::vector<std::string> dispatch_key_names(c10::DispatchKeySet keys) {
  std::vector<std::string> names;
  for (c10::DispatchKey key : keys) {
    names.emplace_back(c10::toString(key));
  }
  return names;
}

std::vector<std::string> functionality_key_names(c10::DispatchKeySet keys) {
  // The set's own iterator skips a per-backend functionality that has no backend bits, and
  // thread-local sets have none: so ask for each functionality by hand.
  std::vector<std::string> names;
  constexpr auto kEnd = static_cast<uint16_t>(c10::DispatchKey::EndOfFunctionalityKeys);
  for (uint16_t k = 1; k < kEnd; ++k) {
    const auto key = static_cast<c10::DispatchKey>(k);
    if (keys.has_any(c10::DispatchKeySet(key))) {
      names.emplace_back(c10::toString(key));
    }
  }
  return names;
}

void fill_row(const c10::TensorImpl* impl, int64_t* row) {
  if (impl == nullptr) {
    constexpr std::array<int64_t, kColumns.size()> kAbsent = {
        -1, 0, 0, 0, 0, -1, 0, 0, 1, 0, 0, -1, 0, -1, 0, 0};
    std::memcpy(row, kAbsent.data(), sizeof(kAbsent));
    return;
  }
  AutogradMeta* meta = autograd_meta(*impl);
  const DifferentiableViewMeta* view = backward_view_meta(meta);
  row[0] = version(*impl);
  row[1] = opaque_id(counter_address(*impl));
  row[2] = view != nullptr;
  row[3] = meta != nullptr && meta->is_view_;
  row[4] = view ? opaque_id(view->get_backward_view().base_.unsafeGetTensorImpl()) : 0;
  row[5] = view ? static_cast<int64_t>(view->get_creation_meta()) : -1;
  row[6] = is_inference(*impl);
  row[7] = meta != nullptr && meta->requires_grad();
  row[8] = meta == nullptr || (meta->grad_fn_ == nullptr && !grad_fn_is_stale(view, *impl));
  row[9] = meta ? static_cast<int64_t>(meta->output_nr_) : 0;
  row[10] = opaque_id(storage(*impl));
  row[11] = storage_offset(*impl);
  row[12] = numel(*impl);
  row[13] = nbytes(*impl);
  row[14] = impl->has_symbolic_sizes_strides() || is_wrapper_subclass(*impl)
                ? static_cast<int64_t>(impl->sym_sizes_default().size())
                : impl->dim();
  row[15] = opaque_id(impl);
}

bool is_stand_in(const c10::TensorImpl& impl) {
  const c10::StorageImpl* held = storage(impl);
  return impl.key_set().has(c10::DispatchKey::Functionalize) ||
         impl.key_set().has_backend(c10::BackendComponent::MetaBit) ||
         (held != nullptr && held->device_type() == c10::DeviceType::Meta);
}

bool stands_on_another(const c10::TensorImpl& impl) {
  return impl.key_set().has(c10::DispatchKey::FuncTorchBatched);
}

std::vector<std::pair<std::string, bool>> self_test() {
  // `import gradext` may happen anywhere: inside inference_mode, under a user's TorchDispatchMode
  // or inside a functorch transform. The tensors of this test must be plain ones all the same.
  c10::InferenceMode normal(false);
  c10::impl::ExcludeDispatchKeyGuard no_modes(
      c10::DispatchKeySet(c10::DispatchKey::Python) |
      c10::DispatchKeySet(c10::DispatchKey::PythonTLSSnapshot) |
      c10::DispatchKeySet(c10::DispatchKey::PythonDispatcher) |
      c10::DispatchKeySet(c10::DispatchKey::Functionalize) |
      c10::DispatchKeySet(c10::DispatchKey::FuncTorchDynamicLayerFrontMode) |
      c10::DispatchKeySet(c10::DispatchKey::FuncTorchDynamicLayerBackMode));
  at::Tensor plain = at::detail::empty_cpu({2}, at::TensorOptions().dtype(at::kFloat));
  at::Tensor view = plain.view({2});
  at::Tensor detached = plain.detach();
  at::Tensor data = plain.variable_data();
  at::Tensor other = at::detail::empty_cpu({2}, at::TensorOptions().dtype(at::kFloat));
  const auto counter = [](const at::Tensor& t) {
    return counter_address(*t.unsafeGetTensorImpl());
  };
  const int64_t before = version(*plain.unsafeGetTensorImpl());
  view.unsafeGetTensorImpl()->bump_version();
  return {
      {"a view shares its base's version counter", counter(view) == counter(plain)},
      {"detach() shares the version counter", counter(detached) == counter(plain)},
      {".data does not share the version counter", counter(data) != counter(plain)},
      {"another tensor has another version counter", counter(other) != counter(plain)},
      {"a write through a view is counted on its base",
       version(*plain.unsafeGetTensorImpl()) == before + 1},
      {"a view's base is the tensor it was made from",
       base(*view.unsafeGetTensorImpl()) == plain.unsafeGetTensorImpl()},
      {"detach() is no view", base(*detached.unsafeGetTensorImpl()) == nullptr},
  };
}

}  // namespace gradext::state
