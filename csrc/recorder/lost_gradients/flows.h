// Notes how values go on after a gradient path was cut: the results of ops that do not require grad
// although an input did, views and aliases of them, and the births of inference tensors.
#pragma once

#include "recorder/op_facts.h"
#include "recorder/switch.h"
#include "recorder/thread_state.h"
#include "state/state.h"

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <cstdint>
#include <string>

namespace gradext::recorder {

// The inputs of an op, looked at when it has run.
using Inputs = c10::SmallVector<const c10::TensorImpl*, 6>;

// False where nothing that add_inputs() would say of a result comes from this input: it has no
// gradient, is no inference tensor, and no flow is known of it. Takes no mutex.
inline bool may_be_known(const c10::TensorImpl& impl) {
  return state::requires_grad(impl) || state::is_inference(impl) ||
         Origins::get().flows.may_have(as_target(impl));
}

inline bool any_may_be_known(const Inputs& inputs) {
  return std::any_of(inputs.begin(), inputs.end(), [](const c10::TensorImpl* impl) {
    return may_be_known(*impl);
  });
}
// Whether there may be anything to note of an op's results. Without grad mode it is not of most
// ops, and that is found without a mutex; with it, the results themselves are asked.
inline bool may_be_followed(Watch watch, const OpFacts& op, const Inputs& inputs) {
  return watch != Watch::kNoGrad || (op.carries_data && any_may_be_known(inputs));
}

// A view without a node of its own stands for its base.
const c10::TensorImpl& with_history_of(const c10::TensorImpl& impl);

void note_results(
    Watch watch, const OpFacts& op, const Inputs& inputs, c10::ArrayRef<at::Tensor> results);
// What apply() of an autograd.Function returned, where it does not require grad.
void note_function_result(
    uint32_t op, const Inputs& inputs, const at::Tensor& result, bool is_checkpoint);
// `self` has been written from `inputs`. Here and below, `stack` is where the op was called, if
// that is known already.
void note_flow_into(
    Watch watch,
    const OpFacts& op,
    const at::Tensor& self,
    const Inputs& inputs,
    StackId stack = 0);
// `impl` has been written from `inputs`: noted where that gave a leaf a value with a history, which
// the leaf does not take over.
void note_given_by_write(
    Watch watch,
    const OpFacts& op,
    const c10::TensorImpl& impl,
    const Inputs& inputs,
    StackId stack);
// Whether note_flow_into() must be called for a tensor that was just written.
inline bool writes_are_noteworthy(const OpFacts& op, const c10::TensorImpl& impl) {
  return op.is_additive || op.is_flat || !state::requires_grad(impl);
}
// A view that inherits what is known of its base; or a detach.
void note_view(
    Watch watch,
    const OpFacts& op,
    const at::Tensor& base,
    const at::Tensor& view,
    StackId stack = 0);
// `tensor` had a history, which detach_() has taken from it.
void note_detached(const OpFacts& op, const at::Tensor& tensor);
// `.data`: an alias without history.
void note_alias(uint32_t op, const at::Tensor& of, const at::Tensor& alias);
// An op refused to save or write one of these because it is (or was) an inference tensor.
void note_misuse(const OpFacts& op, const Inputs& inputs, const c10::Error& error);
void note_misuse(uint32_t op, const Inputs& inputs, const std::string& what);

}  // namespace gradext::recorder
