// The dispatcher's door to state.h. Every op answers for the OUTERMOST object, the one autograd
// checks, so its kernel must run before any key unwraps the tensor, copies it or hands it to
// Python.
#include <torch/csrc/python_headers.h>  // before any standard header, as Python demands

#include "state/state.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/IListRef.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/library.h>

namespace gradext::state::ops {
namespace {

using c10::DispatchKey;

using ModeTLS = c10::impl::TorchDispatchModeTLS;
using Infra = c10::impl::TorchDispatchModeKey;

// make_fx and AOTAutograd trace under a proxy mode. What is read there is the state of the tracer's
// tensors, and the trace would keep it as a constant. (Dynamo is told sooner: gradext/ops.py.)
void refuse_tracing(const char* op) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      !ModeTLS::get_mode(Infra::PROXY).has_value(),
      "gradext::",
      op,
      " reads live autograd state, which a trace (make_fx, export) cannot hold; call it outside "
      "the traced function");
}

// What an undefined tensor (None) answers: it has nothing.
const c10::TensorImpl* impl_or_null(const at::Tensor& t) {
  return t.defined() ? t.unsafeGetTensorImpl() : nullptr;
}

std::optional<int64_t> version(const at::Tensor& self) {
  refuse_tracing("version");
  const auto* impl = impl_or_null(self);
  const int64_t value = impl ? state::version(*impl) : -1;
  return value < 0 ? std::nullopt : std::optional<int64_t>(value);
}

std::optional<int64_t> version_counter(const at::Tensor& self) {
  refuse_tracing("version_counter");
  const auto* impl = impl_or_null(self);
  const void* address = impl ? state::counter_address(*impl) : nullptr;
  return address ? std::optional<int64_t>(state::opaque_id(address)) : std::nullopt;
}

bool is_view(const at::Tensor& self) {
  refuse_tracing("is_view");
  const auto* impl = impl_or_null(self);
  return impl && state::backward_view_meta(*impl);
}

bool is_differentiable_view(const at::Tensor& self) {
  refuse_tracing("is_differentiable_view");
  const auto* impl = impl_or_null(self);
  return impl && state::view_meta(*impl);
}

std::optional<at::Tensor> base(const at::Tensor& self) {
  refuse_tracing("base");
  const auto* impl = impl_or_null(self);
  const auto* meta = impl ? state::backward_view_meta(*impl) : nullptr;
  return meta ? std::optional<at::Tensor>(meta->get_backward_view().base_) : std::nullopt;
}

std::optional<std::string> creation_meta(const at::Tensor& self) {
  refuse_tracing("creation_meta");
  const auto* impl = impl_or_null(self);
  const char* name = impl ? state::creation_meta(*impl) : nullptr;
  return name ? std::optional<std::string>(name) : std::nullopt;
}

bool is_inference(const at::Tensor& self) {
  refuse_tracing("is_inference");
  const auto* impl = impl_or_null(self);
  return impl && state::is_inference(*impl);
}

bool shares_version_counter(const at::Tensor& self, const at::Tensor& other) {
  refuse_tracing("shares_version_counter");
  const auto *a = impl_or_null(self), *b = impl_or_null(other);
  return a && b && state::counter_address(*a) &&
         state::counter_address(*a) == state::counter_address(*b);
}

bool shares_storage(const at::Tensor& self, const at::Tensor& other) {
  refuse_tracing("shares_storage");
  const auto *a = impl_or_null(self), *b = impl_or_null(other);
  return a && b && state::storage(*a) && state::storage(*a) == state::storage(*b);
}

c10::List<std::string> to_list(const std::vector<std::string>& names) {
  return c10::List<std::string>(c10::ArrayRef<std::string>(names));
}

c10::List<std::string> dispatch_keys(const at::Tensor& self) {
  refuse_tracing("dispatch_keys");
  return to_list(
      state::dispatch_key_names(self.defined() ? self.key_set() : c10::DispatchKeySet()));
}

std::tuple<bool, bool, c10::List<std::string>, c10::List<std::string>> grad_mode_state() {
  refuse_tracing("grad_mode_state");
  const auto local = c10::impl::tls_local_dispatch_key_set();
  return {
      c10::GradMode::is_enabled(),
      c10::InferenceMode::is_enabled(),
      to_list(state::functionality_key_names(local.included_)),
      to_list(state::functionality_key_names(local.excluded_))};
}

at::Tensor state_rows(const at::ITensorListRef& tensors) {
  const auto rows = static_cast<int64_t>(tensors.size());
  const auto columns = static_cast<int64_t>(state::kColumns.size());
  if (ModeTLS::get_mode(Infra::FAKE).has_value()) {
    // The fake rule: under FakeTensorMode the result is a fake int64[n, k], as for any other op.
    return at::empty({rows, columns}, at::TensorOptions().dtype(at::kLong).device(at::kCPU));
  }
  // Allocated past the dispatcher, so that no user's TorchDispatchMode sees (or replaces) the
  // result.
  at::Tensor out = at::detail::empty_cpu({rows, columns}, at::TensorOptions().dtype(at::kLong));
  auto* row = out.mutable_data_ptr<int64_t>();
  const auto items = tensors.materialize();
  const auto impl_at = [&](int64_t i) { return impl_or_null(items[static_cast<size_t>(i)].get()); };
  constexpr int64_t kTensor = 16, kFacts = 8;  // how many rows ahead each is asked for
  for (int64_t i = 0; i < rows; ++i, row += columns) {
    if (i + kTensor < rows) {
      state::prefetch_tensor(impl_at(i + kTensor));
    }
    if (const auto* ahead = i + kFacts < rows ? impl_at(i + kFacts) : nullptr) {
      state::prefetch_facts(*ahead);
    }
    state::fill_row(impl_at(i), row);
  }
  return out;
}

// Boxed by hand for the end of the call. torch calls kernels without the GIL, and dropping the last
// C++ reference to a tensor that Python holds takes it, once a tensor. Here it is taken once a
// call. (It also saves the copy of the list that an unboxed signature would get.)
void states(const c10::OperatorHandle& /*op*/, torch::jit::Stack* stack) {
  refuse_tracing("states");
  c10::IValue held = torch::jit::pop(*stack);
  at::Tensor rows = state_rows(at::ITensorListRef(held.toTensorList()));
  const PyGILState_STATE gil = PyGILState_Ensure();
  held = c10::IValue();
  PyGILState_Release(gil);
  torch::jit::push(*stack, std::move(rows));
}

// CompositeImplicitAutograd alone answers at a tensor's Autograd key, which is soon enough in plain
// grad mode. It is too late under functorch (wrappers are unwrapped above it), and under
// inference_mode the Autograd keys are skipped, so that a subclass would reach its
// `__torch_dispatch__` and a conj view its materialising fallback first. Hence the same kernel on
// every key that transforms.
template <typename MakeKernel>
void implement_with(torch::Library& m, const char* name, MakeKernel make) {
  m.impl(name, torch::dispatch(DispatchKey::CompositeImplicitAutograd, make()));
  constexpr auto kFirst = static_cast<uint16_t>(DispatchKey::BackendSelect);
  constexpr auto kLast = static_cast<uint16_t>(DispatchKey::PreDispatch);
  for (uint16_t k = kFirst; k <= kLast; ++k) {
    const auto key = static_cast<DispatchKey>(k);
    switch (key) {
      case DispatchKey::AutogradOther:
      case DispatchKey::AutogradFunctionality:
      case DispatchKey::AutogradNestedTensor:
        continue;  // covered by CompositeImplicitAutograd
      case DispatchKey::Tracer:
      case DispatchKey::DeferredInit:
        continue;  // not ours: torch falls through these where they are not in use
      case DispatchKey::TESTING_ONLY_GenericWrapper:
      case DispatchKey::TESTING_ONLY_GenericMode:
        continue;
      default:
        m.impl(name, torch::dispatch(key, make()));
    }
  }
}

template <typename Kernel>
void implement(torch::Library& m, const char* name, Kernel kernel) {
  implement_with(m, name, [kernel] { return kernel; });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(gradext, m) {
  implement(m, "version", &version);
  implement(m, "version_counter", &version_counter);
  implement(m, "is_view", &is_view);
  implement(m, "is_differentiable_view", &is_differentiable_view);
  implement(m, "base", &base);
  implement(m, "creation_meta", &creation_meta);
  implement(m, "is_inference", &is_inference);
  implement(m, "shares_version_counter", &shares_version_counter);
  implement(m, "shares_storage", &shares_storage);
  implement(m, "dispatch_keys", &dispatch_keys);
  implement(m, "grad_mode_state", &grad_mode_state);
  implement_with(m, "states", [] { return torch::CppFunction::makeFromBoxedFunction<&states>(); });
}

}  // namespace gradext::state::ops
