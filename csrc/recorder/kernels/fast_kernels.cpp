// With nothing to note, an unboxed kernel costs one more step of the dispatcher, a tenth of what
// boxing costs. All other ops get the boxed kernels of boxed_kernels.cpp, which do the same.
#include "recorder/kernels/fast_kernels.h"

#include "recorder/kernels/fast_notes.h"
#include "recorder/kernels/kernel_rules.h"
#include "recorder/lost_gradients/flows.h"
#include "recorder/lost_gradients/python_crossings.h"

#include <ATen/ops/_is_all_true_ops.h>
#include <ATen/ops/_local_scalar_dense_ops.h>
#include <ATen/ops/_log_softmax_backward_data_ops.h>
#include <ATen/ops/_log_softmax_ops.h>
#include <ATen/ops/_reshape_alias_ops.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward_ops.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_ops.h>
#include <ATen/ops/_softmax_backward_data_ops.h>
#include <ATen/ops/_softmax_ops.h>
#include <ATen/ops/_to_copy_ops.h>
#include <ATen/ops/_unsafe_view_ops.h>
#include <ATen/ops/abs_ops.h>
#include <ATen/ops/add_ops.h>
#include <ATen/ops/addcdiv_ops.h>
#include <ATen/ops/addcmul_ops.h>
#include <ATen/ops/addmm_ops.h>
#include <ATen/ops/alias_ops.h>
#include <ATen/ops/all_ops.h>
#include <ATen/ops/amax_ops.h>
#include <ATen/ops/any_ops.h>
#include <ATen/ops/arange_ops.h>
#include <ATen/ops/argmax_ops.h>
#include <ATen/ops/as_strided_ops.h>
#include <ATen/ops/avg_pool2d_ops.h>
#include <ATen/ops/baddbmm_ops.h>
#include <ATen/ops/bernoulli_ops.h>
#include <ATen/ops/binary_cross_entropy_ops.h>
#include <ATen/ops/bitwise_and_ops.h>
#include <ATen/ops/bitwise_not_ops.h>
#include <ATen/ops/bitwise_or_ops.h>
#include <ATen/ops/bmm_ops.h>
#include <ATen/ops/cat_ops.h>
#include <ATen/ops/clamp_min_ops.h>
#include <ATen/ops/clamp_ops.h>
#include <ATen/ops/clone_ops.h>
#include <ATen/ops/constant_pad_nd_ops.h>
#include <ATen/ops/convolution_backward_ops.h>
#include <ATen/ops/convolution_ops.h>
#include <ATen/ops/copy_ops.h>
#include <ATen/ops/cos_ops.h>
#include <ATen/ops/cumsum_ops.h>
#include <ATen/ops/detach_ops.h>
#include <ATen/ops/diagonal_ops.h>
#include <ATen/ops/div_ops.h>
#include <ATen/ops/dot_ops.h>
#include <ATen/ops/elu_ops.h>
#include <ATen/ops/embedding_dense_backward_ops.h>
#include <ATen/ops/embedding_ops.h>
#include <ATen/ops/empty_like_ops.h>
#include <ATen/ops/empty_ops.h>
#include <ATen/ops/empty_strided_ops.h>
#include <ATen/ops/eq_ops.h>
#include <ATen/ops/erf_ops.h>
#include <ATen/ops/exp_ops.h>
#include <ATen/ops/expand_ops.h>
#include <ATen/ops/fill_ops.h>
#include <ATen/ops/full_ops.h>
#include <ATen/ops/gather_ops.h>
#include <ATen/ops/ge_ops.h>
#include <ATen/ops/gelu_backward_ops.h>
#include <ATen/ops/gelu_ops.h>
#include <ATen/ops/gt_ops.h>
#include <ATen/ops/hardtanh_ops.h>
#include <ATen/ops/index_ops.h>
#include <ATen/ops/index_select_ops.h>
#include <ATen/ops/isnan_ops.h>
#include <ATen/ops/le_ops.h>
#include <ATen/ops/leaky_relu_ops.h>
#include <ATen/ops/lerp_ops.h>
#include <ATen/ops/lift_fresh_ops.h>
#include <ATen/ops/linalg_vector_norm_ops.h>
#include <ATen/ops/linear_ops.h>
#include <ATen/ops/log_ops.h>
#include <ATen/ops/logical_and_ops.h>
#include <ATen/ops/logical_not_ops.h>
#include <ATen/ops/logical_or_ops.h>
#include <ATen/ops/logsumexp_ops.h>
#include <ATen/ops/lt_ops.h>
#include <ATen/ops/masked_fill_ops.h>
#include <ATen/ops/max_ops.h>
#include <ATen/ops/max_pool2d_with_indices_ops.h>
#include <ATen/ops/maximum_ops.h>
#include <ATen/ops/mean_ops.h>
#include <ATen/ops/minimum_ops.h>
#include <ATen/ops/mm_ops.h>
#include <ATen/ops/mse_loss_backward_ops.h>
#include <ATen/ops/mse_loss_ops.h>
#include <ATen/ops/mul_ops.h>
#include <ATen/ops/multinomial_ops.h>
#include <ATen/ops/mv_ops.h>
#include <ATen/ops/native_batch_norm_backward_ops.h>
#include <ATen/ops/native_batch_norm_ops.h>
#include <ATen/ops/native_dropout_backward_ops.h>
#include <ATen/ops/native_dropout_ops.h>
#include <ATen/ops/native_layer_norm_backward_ops.h>
#include <ATen/ops/native_layer_norm_ops.h>
#include <ATen/ops/ne_ops.h>
#include <ATen/ops/neg_ops.h>
#include <ATen/ops/new_zeros_ops.h>
#include <ATen/ops/nll_loss_backward_ops.h>
#include <ATen/ops/nll_loss_forward_ops.h>
#include <ATen/ops/ones_like_ops.h>
#include <ATen/ops/ones_ops.h>
#include <ATen/ops/permute_ops.h>
#include <ATen/ops/pow_ops.h>
#include <ATen/ops/reciprocal_ops.h>
#include <ATen/ops/relu_ops.h>
#include <ATen/ops/remainder_ops.h>
#include <ATen/ops/repeat_ops.h>
#include <ATen/ops/rsqrt_ops.h>
#include <ATen/ops/rsub_ops.h>
#include <ATen/ops/scalar_tensor_ops.h>
#include <ATen/ops/scatter_add_ops.h>
#include <ATen/ops/select_ops.h>
#include <ATen/ops/sigmoid_backward_ops.h>
#include <ATen/ops/sigmoid_ops.h>
#include <ATen/ops/silu_backward_ops.h>
#include <ATen/ops/silu_ops.h>
#include <ATen/ops/sin_ops.h>
#include <ATen/ops/slice_ops.h>
#include <ATen/ops/softplus_ops.h>
#include <ATen/ops/split_ops.h>
#include <ATen/ops/split_with_sizes_ops.h>
#include <ATen/ops/sqrt_ops.h>
#include <ATen/ops/squeeze_ops.h>
#include <ATen/ops/stack_ops.h>
#include <ATen/ops/std_ops.h>
#include <ATen/ops/sub_ops.h>
#include <ATen/ops/sum_ops.h>
#include <ATen/ops/t_ops.h>
#include <ATen/ops/tanh_backward_ops.h>
#include <ATen/ops/tanh_ops.h>
#include <ATen/ops/threshold_backward_ops.h>
#include <ATen/ops/transpose_ops.h>
#include <ATen/ops/tril_ops.h>
#include <ATen/ops/triu_ops.h>
#include <ATen/ops/unbind_ops.h>
#include <ATen/ops/unsqueeze_ops.h>
#include <ATen/ops/var_ops.h>
#include <ATen/ops/view_ops.h>
#include <ATen/ops/where_ops.h>
#include <ATen/ops/zero_ops.h>
#include <ATen/ops/zeros_like_ops.h>
#include <ATen/ops/zeros_ops.h>

#include <type_traits>

namespace gradext::recorder {
namespace {

namespace ops = at::_ops;

// The kernels below are made once for each signature, not for each op: a compiler takes a fifth of
// a second for one, and most ops share their signature with others. What differs between such ops
// is data, and is never freed: kernels outlive everything.
template <class Result, class... Arguments>
struct Target {
  const OpFacts* facts;
  Result (*call)(Arguments...);
  Result (*redispatch)(c10::DispatchKeySet, Arguments...);
};

template <class Signature>
struct FastResult;

template <class Result, class... Arguments>
struct FastResult<Result(Arguments...)> : c10::OperatorKernel {
  Target<Result, Arguments...> op;

  Result operator()(c10::DispatchKeySet keys, Arguments... arguments) const {
    ThreadState& thread = thread_state();
    if (python_dispatches(thread)) {
      c10::impl::ExcludeDispatchKeyGuard guard(kNodeKey);
      return op.call(arguments...);
    }
    before_nodes(thread, keys);
    const Watch watch = how_to_watch(thread, keys, op.facts->is_factory);
    const Listened listened(keys);
    SecretWrites secrets;
    if (C10_UNLIKELY(listened.is_on() && !op.facts->secret.empty())) {
      begin_secrets(secrets, *op.facts, {as_tensor(arguments)...});
    }
    if (watch == Watch::kNone) {
      if (C10_LIKELY(!listened.wants_nodes())) {
        return op.redispatch(below<kNodeKey>(keys), arguments...);
      }
      Result made = [&] {
        WatchedOp running(thread, *op.facts);
        Closed closed(thread, *op.facts, keys);
        return op.redispatch(below<kNodeKey>(keys), arguments...);
      }();
      tell_ran(listened, *op.facts, inputs_of(arguments...), made);
      return made;
    }
    WatchedOp running(thread, *op.facts);
    try {
      Result made = [&] {
        Closed closed(thread, *op.facts, keys);
        return op.redispatch(below<kNodeKey>(keys), arguments...);
      }();
      if (may_be_followed(watch, *op.facts, arguments...) &&
          is_noteworthy(watch, *op.facts, made)) {
        note_each(watch, *op.facts, inputs_of(arguments...), made);
      }
      if (C10_UNLIKELY(listened.wants_nodes())) {
        tell_ran(listened, *op.facts, inputs_of(arguments...), made);
      }
      return made;
    } catch (const c10::Error& error) {
      note_failure(*op.facts, inputs_of(arguments...), error);
      throw;
    }
  }
};

template <class Signature>
struct FastView;

template <class Result, class... Arguments>
struct FastView<Result(const at::Tensor&, Arguments...)> : c10::OperatorKernel {
  static constexpr bool kMany = !std::is_same_v<Result, at::Tensor>;
  Target<Result, const at::Tensor&, Arguments...> op;

  Result operator()(
      c10::DispatchKeySet keys, const at::Tensor& self, Arguments... arguments) const {
    ThreadState& thread = thread_state();
    if (python_dispatches(thread)) {
      c10::impl::ExcludeDispatchKeyGuard guard(kKey);
      return op.call(self, arguments...);
    }
    before_nodes(thread, keys);
    const bool wanted = view_is_wanted(thread, keys, kMany);
    const Watch watch = how_to_watch(thread, keys);
    // A parameter that is made under inference_mode is a detached alias of its data.
    const bool follows =
        watch == Watch::kBirths ? op.facts->is_detach : watch != Watch::kNone && may_be_known(self);
    const OpTaps* taps = op_listener();
    Result result = [&] {
      Closed closed(thread, *op.facts, keys);
      return op.redispatch(below<kKey>(keys), self, arguments...);
    }();
    if (!wanted && !follows && C10_LIKELY(taps == nullptr)) {
      return result;
    }
    safely([&] {
      StackId stack = 0;
      if (wanted) {
        stack = record_views(op.facts->name, result);
      }
      if (follows) {
        note_views(watch, *op.facts, self, result, stack);
      }
      if (C10_UNLIKELY(taps != nullptr)) {
        tell_view(*taps, self, result);
      }
    });
    return result;
  }
};

// `item()` and what calls it: a value leaves for Python.
struct FastExit : c10::OperatorKernel {
  Target<at::Scalar, const at::Tensor&> op;

  at::Scalar operator()(c10::DispatchKeySet keys, const at::Tensor& self) const {
    const ThreadState& thread = thread_state();
    if (python_dispatches(thread)) {
      c10::impl::ExcludeDispatchKeyGuard guard(kNodeKey);
      return op.call(self);
    }
    at::Scalar value = op.redispatch(below<kNodeKey>(keys), self);
    const bool wanted = cuts_are_on() && thread.watched_ops == 0 &&
                        !thread.torch.excluded().has(c10::DispatchKey::ADInplaceOrView);
    if (wanted) {
      safely([&] { note_exit(op.facts->name, self, value.isComplex() ? 0.0 : value.toDouble()); });
    }
    return value;
  }
};

// An in-place op whose first argument is what it writes and returns.
template <class Signature>
struct FastWrite;

template <class... Arguments>
struct FastWrite<at::Tensor&(at::Tensor&, Arguments...)> : c10::OperatorKernel {
  Target<at::Tensor&, at::Tensor&, Arguments...> op;

  at::Tensor& operator()(c10::DispatchKeySet keys, at::Tensor& self, Arguments... arguments) const {
    ThreadState& thread = thread_state();
    if (python_dispatches(thread)) {
      c10::impl::ExcludeDispatchKeyGuard guard(kKey);
      return op.call(self, arguments...);
    }
    before_nodes(thread, keys);
    if (!write_is_wanted(thread, *op.facts, keys, &self)) {
      return op.redispatch(below<kKey>(keys), self, arguments...);
    }
    const Listened listened(keys);
    WriteScope scope(thread, *op.facts);
    safely([&] { add_target(scope.targets, self, 0); });
    scope.begin();
    Watch watch = Watch::kNone;
    if constexpr (kTakesTensors<Arguments...>) {
      watch = how_to_watch(thread, keys);
    }
    try {
      WatchedOp running(thread, *op.facts);
      op.redispatch(below<kKey>(keys), self, arguments...);
    } catch (const c10::Error& error) {
      scope.refused(error);
      if (watch == Watch::kGrad) {
        safely([&] { note_misuse(*op.facts, inputs_of(arguments...), error); });
      }
      throw;
    }
    scope.end();
    if (C10_UNLIKELY(listened.wants_nodes())) {
      tell_ran(listened, *op.facts, inputs_of(self, arguments...), self);
    }
    const c10::TensorImpl& impl = *self.unsafeGetTensorImpl();
    const bool follows = (watch == Watch::kGrad || watch == Watch::kNoGrad) &&
                         (state::requires_grad(impl) || any_may_be_known(arguments...));
    if (follows) {
      safely([&] {
        if (writes_are_noteworthy(*op.facts, impl)) {
          note_flow_into(watch, *op.facts, self, inputs_of(arguments...), scope.stack());
        } else {
          note_given_by_write(watch, *op.facts, impl, inputs_of(arguments...), scope.stack());
        }
      });
    }
    return self;
  }
};

// Makes a kernel of one signature from what is data: see Target.
template <class Kernel, class Result, class... Arguments>
FastKernel kernel_of(
    Result (*call)(Arguments...), Result (*redispatch)(c10::DispatchKeySet, Arguments...)) {
  const auto make = [](std::unique_ptr<OpFacts> facts, AnyFunction call, AnyFunction redispatch) {
    auto kernel = std::make_unique<Kernel>();
    kernel->op = {
        facts.release(),
        reinterpret_cast<Result (*)(Arguments...)>(call),
        reinterpret_cast<Result (*)(c10::DispatchKeySet, Arguments...)>(redispatch)};
    return c10::KernelFunction::makeFromUnboxedFunctor<false, Kernel>(std::move(kernel));
  };
  return {
      make,
      reinterpret_cast<AnyFunction>(call),
      reinterpret_cast<AnyFunction>(redispatch),
      c10::impl::CppSignature::make<Result(Arguments...)>()};
}

void add(FastKernels& kernels, const char* name, const char* overload, FastKernel kernel) {
  std::string full = name;
  if (*overload != 0) {
    full += std::string(".") + overload;
  }
  kernels.emplace(std::move(full), std::move(kernel));
}

template <template <class> class Kernel, class... Ops>
void add_all(FastKernels& kernels) {
  (add(kernels,
       Ops::name,
       Ops::overload_name,
       kernel_of<Kernel<typename Ops::schema>>(&Ops::call, &Ops::redispatch)),
   ...);
}

}  // namespace

FastKernels fast_kernels() {
  FastKernels kernels;
  add_all<
      FastWrite,
      ops::copy_,
      ops::fill__Scalar,
      ops::fill__Tensor,
      ops::zero_,
      ops::add__Tensor,
      ops::sub__Tensor,
      ops::mul__Tensor,
      ops::mul__Scalar,
      ops::div__Tensor,
      ops::addcmul_,
      ops::addcdiv_,
      ops::lerp__Scalar,
      ops::clamp_,
      ops::masked_fill__Scalar,
      ops::logical_and_,
      ops::relu_,
      ops::sqrt_,
      ops::neg_>(kernels);
  add_all<
      FastView,
      ops::t,
      ops::transpose_int,
      ops::permute,
      ops::view,
      ops::_reshape_alias,
      ops::select_int,
      ops::slice_Tensor,
      ops::expand,
      ops::unsqueeze,
      ops::squeeze,
      ops::squeeze_dim,
      ops::as_strided,
      ops::detach,
      ops::lift_fresh,
      ops::alias,
      ops::diagonal,
      ops::unbind_int,
      ops::split_Tensor,
      ops::split_with_sizes>(kernels);
  add_all<
      FastResult,
      ops::add_Tensor,
      ops::sub_Tensor,
      ops::rsub_Scalar,
      ops::mul_Tensor,
      ops::div_Tensor,
      ops::add_Scalar,
      ops::sub_Scalar,
      ops::mul_Scalar,
      ops::div_Scalar,
      ops::remainder_Scalar,
      ops::neg,
      ops::abs,
      ops::exp,
      ops::log,
      ops::sqrt,
      ops::rsqrt,
      ops::reciprocal,
      ops::sin,
      ops::cos,
      ops::erf,
      ops::tanh,
      ops::sigmoid,
      ops::relu,
      ops::gelu,
      ops::silu,
      ops::elu,
      ops::leaky_relu,
      ops::hardtanh,
      ops::softplus,
      ops::pow_Tensor_Scalar,
      ops::pow_Tensor_Tensor,
      ops::clamp,
      ops::clamp_min,
      ops::maximum,
      ops::minimum,
      ops::where_self,
      ops::masked_fill_Scalar,
      ops::lerp_Tensor,
      ops::addcmul,
      ops::addcdiv,
      ops::mm,
      ops::bmm,
      ops::addmm,
      ops::baddbmm,
      ops::linear,
      ops::mv,
      ops::dot,
      ops::convolution,
      ops::sum,
      ops::sum_dim_IntList,
      ops::mean,
      ops::mean_dim,
      ops::var_correction,
      ops::std_correction,
      ops::max,
      ops::max_dim,
      ops::amax,
      ops::cumsum,
      ops::linalg_vector_norm,
      ops::_softmax,
      ops::_log_softmax,
      ops::nll_loss_forward,
      ops::mse_loss,
      ops::binary_cross_entropy,
      ops::native_layer_norm,
      ops::native_batch_norm,
      ops::native_dropout,
      ops::embedding,
      ops::index_Tensor,
      ops::index_select,
      ops::gather,
      ops::scatter_add,
      ops::cat,
      ops::stack,
      ops::clone,
      ops::_unsafe_view,
      ops::_to_copy,
      ops::constant_pad_nd,
      ops::avg_pool2d,
      ops::max_pool2d_with_indices,
      ops::repeat,
      ops::tril,
      ops::triu,
      ops::arange,
      ops::arange_start,
      ops::arange_start_step,
      ops::empty_memory_format,
      ops::empty_strided,
      ops::full,
      ops::ones,
      ops::zeros,
      ops::scalar_tensor,
      ops::argmax,
      ops::logical_and,
      ops::logical_or,
      ops::isnan,
      ops::_is_all_true,
      ops::any,
      ops::all,
      ops::all_dim,
      ops::logsumexp,
      ops::multinomial,
      ops::ne_Scalar,
      ops::bitwise_or_Tensor,
      ops::bitwise_not,
      ops::new_zeros,
      ops::zeros_like,
      ops::ones_like,
      ops::empty_like,
      ops::bernoulli_p,
      ops::tanh_backward,
      ops::sigmoid_backward,
      ops::threshold_backward,
      ops::gelu_backward,
      ops::silu_backward,
      ops::_softmax_backward_data,
      ops::_log_softmax_backward_data,
      ops::nll_loss_backward,
      ops::mse_loss_backward,
      ops::native_layer_norm_backward,
      ops::native_batch_norm_backward,
      ops::native_dropout_backward,
      ops::convolution_backward,
      ops::embedding_dense_backward,
      ops::eq_Tensor,
      ops::eq_Scalar,
      ops::ne_Tensor,
      ops::lt_Tensor,
      ops::lt_Scalar,
      ops::le_Tensor,
      ops::ge_Tensor,
      ops::gt_Tensor,
      ops::gt_Scalar,
      ops::le_Scalar,
      ops::ge_Scalar,
      ops::logical_not,
      ops::bitwise_and_Tensor,
      ops::_scaled_dot_product_flash_attention_for_cpu,
      ops::_scaled_dot_product_flash_attention_for_cpu_backward>(kernels);
  using Exit = ops::_local_scalar_dense;
  add(kernels,
      Exit::name,
      Exit::overload_name,
      kernel_of<FastExit>(&Exit::call, &Exit::redispatch));
  return kernels;
}

}  // namespace gradext::recorder
