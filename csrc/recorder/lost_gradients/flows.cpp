#include "recorder/lost_gradients/flows.h"

#include "recorder/lost_gradients/flows_detail.h"
#include "recorder/lost_gradients/held_values.h"
#include "recorder/lost_gradients/leaves.h"
#include "recorder/lost_gradients/lost_values.h"
#include "recorder/lost_gradients/python_crossings.h"

#include "state/state.h"

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>

namespace gradext::recorder {

namespace detail {

// Tensors of tracing and of functorch stand for others.
bool is_wanted(const c10::TensorImpl& impl) {
  return !state::is_stand_in(impl) && !state::stands_on_another(impl);
}

uint32_t low(uint64_t number) {
  return static_cast<uint32_t>(number);
}

bool in_backward() {
  return static_cast<bool>(torch::autograd::get_current_node());
}

// What is the same for every flow. The stack is taken outside the mutex: a code object that is new
// to it needs the GIL.
void complete(Flow& flow, uint32_t op, StackId stack) {
  flow.stack = stack != 0 ? stack : current_stack();
  flow.op = op;
  flow.thread = static_cast<uint32_t>(thread_state().id);
}

}  // namespace detail

// torch says of a view that was made without grad mode that it requires grad where its base does.
const c10::TensorImpl& with_history_of(const c10::TensorImpl& impl) {
  const auto* meta = state::autograd_meta(impl);
  const c10::TensorImpl* base = meta != nullptr && !meta->grad_fn_ ? state::base(impl) : nullptr;
  return base != nullptr && state::requires_grad(*base) ? *base : impl;
}

using namespace detail;

namespace {

struct Source {
  int64_t tensor = 0;
  NodeId node{0, 0};
  bool is_leaf = false;
};

Source source_of(const c10::TensorImpl& viewed) {
  const c10::TensorImpl& impl = with_history_of(viewed);
  const auto* meta = state::autograd_meta(impl);
  const auto* node = meta != nullptr ? meta->grad_fn_.get() : nullptr;
  if (node == nullptr) {
    return {state::opaque_id(&impl), {0, 0}, true};
  }
  return {state::opaque_id(&impl), {node->thread_id(), node->sequence_nr()}, false};
}

void add_values(Origins& origins, Flow& flow, const OpFacts& op, const Inputs& inputs) {
  if (op.carries_data) {
    add_inputs(origins, flow, inputs);
  }
}

void number(Origins& origins, Flow& flow) {
  flow.order = Journal::get().next_order();
  flow.number = ++origins.last_number;
}

bool any_requires_grad(const Inputs& inputs) {
  return std::any_of(inputs.begin(), inputs.end(), [](const c10::TensorImpl* impl) {
    return state::requires_grad(*impl);
  });
}

// Under no_grad a constant is meant, but where nobody may have meant the mode (GradModeOff), and in
// a draw of what was computed with grad mode on.
bool may_be_mistaken(const OpFacts& op, const ThreadState& thread, const Inputs& inputs) {
  return thread.off.is_doubtful || (op.is_draw && has_history(inputs));
}

// Of a flow without grad mode: the leaves behind it, where they may be lost by mistake.
void add_mistaken(const OpFacts& op, const ThreadState& thread, Flow& flow, const Inputs& inputs) {
  if ((flow.flags & kCut) == 0 || !may_be_mistaken(op, thread, inputs)) {
    return;
  }
  flow.behind = leaves_behind(inputs, flow.stack);
  Origins& origins = Origins::get();
  std::lock_guard lock(origins.mutex);
  if (!origins.leaves.are_reached(flow.behind)) {
    flow.flags |= kTaintDecision;
    ++pending_python;
  }
}

// Of a flow without grad mode: the leaves that it keeps from a gradient, where no backward has
// reached some of them.
void add_held(const ThreadState& thread, Flow& flow, const Inputs& inputs) {
  if ((flow.flags & kCut) == 0 || thread.off.in_function || !held_are_wanted()) {
    return;
  }
  std::vector<const c10::TensorImpl*> leaves;
  bool has_graph = false;
  for (const c10::TensorImpl* impl : inputs) {
    if (state::requires_grad(*impl)) {
      const c10::TensorImpl& whole = with_history_of(*impl);
      state::is_leaf(whole) ? leaves.push_back(&whole) : void(has_graph = true);
    }
  }
  uint32_t behind = has_graph ? leaves_behind(inputs, flow.stack) : 0;
  Origins& origins = Origins::get();
  std::lock_guard lock(origins.mutex);
  if (!has_graph) {
    // Nearly always: there is room for few sets.
    if (std::all_of(leaves.begin(), leaves.end(), [&](const c10::TensorImpl* leaf) {
          return origins.leaves.is_reached(state::opaque_id(leaf));
        })) {
      return;
    }
    behind = origins.leaves.number_of(leaves);
  }
  note_held(origins, flow, behind);
}

bool is_known(const Flow& flow) {
  return (flow.flags & kCut) != 0 || flow.parents[0] != 0;
}

}  // namespace

namespace detail {

bool has_history(const Inputs& inputs) {
  return std::any_of(inputs.begin(), inputs.end(), [](const c10::TensorImpl* impl) {
    return state::requires_grad(*impl) && !state::is_leaf(with_history_of(*impl));
  });
}

// Under no_grad there is no graph to look at, and a constant is meant.
void add_leaves(Watch watch, Flow& flow, const Inputs& inputs) {
  if (watch == Watch::kGrad && (flow.flags & kCut) != 0) {
    flow.behind = leaves_behind(inputs, flow.stack);
  }
}

// What the inputs say of a result; the mutex is held.
void add_inputs(Origins& origins, Flow& flow, const Inputs& inputs) {
  size_t parents = 0;
  while (parents < kMaxParents && flow.parents[parents] != 0) {
    ++parents;
  }
  const auto add_parent = [&](uint64_t number, bool matters) {
    const uint32_t parent = low(number);
    if (std::find(flow.parents, flow.parents + parents, parent) != flow.parents + parents) {
      return;
    }
    if (parents < kMaxParents) {
      flow.parents[parents++] = parent;
    } else if (matters) {
      flow.parents[kMaxParents - 1] = parent;
    }
  };
  for (const c10::TensorImpl* impl : inputs) {
    if (state::requires_grad(*impl)) {
      const Source source = source_of(*impl);
      const bool is_first = (flow.flags & kCut) == 0;
      // What has a history loses more than a leaf does, and the latest of it the most.
      const bool is_better =
          is_first || (!source.is_leaf && ((flow.flags & kSourceIsLeaf) != 0 ||
                                           source.node.sequence > flow.source_sequence));
      if (is_better) {
        flow.source = source.tensor;
        flow.source_thread = static_cast<uint32_t>(source.node.thread);
        flow.source_sequence = source.node.sequence;
        flow.flags = source.is_leaf ? flow.flags | kSourceIsLeaf : flow.flags & ~kSourceIsLeaf;
      }
      flow.flags |= kCut | kTaintCut;
      if (!state::is_inference(*impl)) {
        continue;
      }
    }
    if (state::is_inference(*impl)) {
      flow.flags |= kFromInference;
      if (const Birth* birth = origins.birth_of(*impl)) {
        add_parent(birth->number, true);
      }
    }
    if (const Flow* known = origins.flows.find(as_target(*impl))) {
      add_parent(known->number, (known->flags & (kCut | kTaints)) != 0);
      flow.flags |= known->flags & kTaints;
      flow.behind = flow.behind == 0 ? known->behind : flow.behind;
    }
  }
}

uint32_t mode_flags(Watch watch, const ThreadState& thread, StackId& mode) {
  if (watch == Watch::kNoGrad) {
    mode = thread.off.stack;
    return kNoGradMode | (thread.off.in_function ? kInFunction : 0);
  }
  if (watch == Watch::kBirths) {
    mode = thread.inference.empty() ? 0 : thread.inference.back();
    return kInference;
  }
  return 0;
}

void keep_past(Origins& origins, Flow& flow) {
  number(origins, flow);
  origins.past.push(flow);
}

// Keeps the flow of a living tensor in the place of the one that it had.
void keep(Origins& origins, const c10::TensorImpl& impl, Flow& flow) {
  number(origins, flow);
  bool is_new = false;
  Flow* place = origins.flows.put(
      as_target(impl), is_new, [&](const Flow& gone) { origins.past.push(gone); });
  if (place == nullptr) {
    return;
  }
  if (!is_new) {
    origins.past.push(*place);  // what was computed from it before names it
  }
  flow.tensor = state::opaque_id(&impl);
  *place = flow;
}

// `renames`: a function of Python's that has just made the tensor by an op. `of_tensor`: it is an
// alias that is to be known by itself, for its storage may be exchanged (a parameter).
void note_birth(
    const c10::TensorImpl& impl, uint32_t op, const Inputs& inputs, bool renames, bool of_tensor) {
  const ThreadState& thread = thread_state();
  const StackId stack = current_stack();
  Origins& origins = Origins::get();
  std::lock_guard lock(origins.mutex);
  bool gradient = false;
  for (const c10::TensorImpl* input : inputs) {
    if (!gradient) {
      const Birth* before = state::is_inference(*input) ? origins.birth_of(*input) : nullptr;
      gradient =
          state::requires_grad(*input) || (before != nullptr && before->has_gradient_behind != 0);
    }
  }
  bool is_new = false;
  Birth* birth = origins.births.put(
      of_tensor ? as_target(impl) : birth_target(impl), is_new, [](const Birth&) {});
  if (birth == nullptr || !(is_new || (renames && birth->stack == stack))) {
    return;
  }
  birth->order = Journal::get().next_order();
  birth->number = ++origins.last_number;
  birth->tensor = state::opaque_id(&impl);
  birth->stack = stack;
  birth->mode = thread.inference.empty() ? 0 : thread.inference.back();
  birth->op = op;
  birth->thread = static_cast<uint32_t>(thread.id);
  birth->has_gradient_behind = gradient ? 1 : 0;
}

}  // namespace detail

void note_results(
    Watch watch, const OpFacts& op, const Inputs& inputs, c10::ArrayRef<at::Tensor> results) {
  for (const at::Tensor& result : results) {
    if (!result.defined() || !is_wanted(*result.unsafeGetTensorImpl())) {
      continue;
    }
    const c10::TensorImpl& impl = *result.unsafeGetTensorImpl();
    if (watch == Watch::kBirths) {
      if (state::is_inference(impl)) {
        note_birth(impl, op.name, inputs);
      }
      continue;
    }
    if (state::requires_grad(impl)) {
      if (op.is_flat && watch == Watch::kGrad) {
        note_flat(op, inputs, impl);
      }
      if (op.is_additive || notes_all_merges()) {
        note_merge(watch, op, inputs, impl);
      }
      continue;
    }
    if (watch == Watch::kGrad && in_backward()) {
      return;
    }
    Flow flow;
    Origins& origins = Origins::get();
    flow.flags = mode_flags(watch, thread_state(), flow.mode);
    if (!at::isFloatingType(result.scalar_type()) && !at::isComplexType(result.scalar_type())) {
      flow.flags |= kNotFloating;
    }
    if (watch == Watch::kGrad) {
      complete(flow, op.name);
      if (op.carries_data && any_requires_grad(inputs)) {
        flow.behind = leaves_behind(inputs, flow.stack);
      }
      std::lock_guard lock(origins.mutex);
      if (!origins.leaves.are_reached(flow.behind)) {
        flow.flags |= kTaintDecision;
        ++pending_python;
      }
      // What an op of the program's own is made of has been noted already, with the lines in it.
      if (op.is_aten || origins.flows.find(as_target(impl)) == nullptr) {
        add_values(origins, flow, op, inputs);
        keep(origins, impl, flow);
      }
      continue;
    }
    {
      std::lock_guard lock(origins.mutex);
      add_values(origins, flow, op, inputs);
      if (!thread_state().off.in_function) {
        flow.flags &= ~kTaintCheckpoint;  // under no_grad a constant is meant
      }
      const bool is_noted = !op.is_aten && origins.flows.find(as_target(impl)) != nullptr;
      if (!is_known(flow) || is_noted) {
        continue;  // as nearly everything in an optimizer's step
      }
    }
    complete(flow, op.name);
    add_mistaken(op, thread_state(), flow, inputs);
    add_held(thread_state(), flow, inputs);
    std::lock_guard lock(origins.mutex);
    keep(origins, impl, flow);
  }
}

void note_function_result(
    uint32_t op, const Inputs& inputs, const at::Tensor& result, bool is_checkpoint) {
  if (!result.defined() || !is_wanted(*result.unsafeGetTensorImpl()) || in_backward()) {
    return;
  }
  const c10::TensorImpl& impl = *result.unsafeGetTensorImpl();
  Flow flow;
  complete(flow, op);
  Origins& origins = Origins::get();
  std::lock_guard lock(origins.mutex);
  if (const Flow* inner = origins.flows.find(as_target(impl))) {
    // What forward() computed from tensors that it found elsewhere; the inputs come after it.
    flow.flags = kNoGradMode | kInFunction | (inner->flags & kTaints);
    flow.mode = flow.stack;
    flow.parents[0] = low(inner->number);
  }
  if (is_checkpoint && (flow.flags & kTaintCut) != 0) {
    flow.flags |= kTaintCheckpoint;
    ++pending_checkpoints;
  }
  add_inputs(origins, flow, inputs);
  if (!at::isFloatingType(result.scalar_type()) && !at::isComplexType(result.scalar_type())) {
    flow.flags |= kNotFloating;
  }
  keep(origins, impl, flow);
}

void note_flow_into(
    Watch watch, const OpFacts& op, const at::Tensor& self, const Inputs& inputs, StackId stack) {
  const c10::TensorImpl& impl = *self.unsafeGetTensorImpl();
  if (!op.is_flat) {
    note_given_by_write(watch, op, impl, inputs, stack);
  }
  if (state::requires_grad(impl)) {
    if (op.is_flat) {
      if (watch == Watch::kGrad) {
        note_flat(op, Inputs{&impl}, impl);  // its history is that of what it was
      }
      return;
    }
    const bool is_merge = op.is_additive || pending_checkpoints.load(std::memory_order_relaxed) > 0;
    if (is_merge && is_wanted(impl) && !in_backward()) {
      Inputs all = inputs;
      all.push_back(&impl);
      note_merge(watch, op, all, impl);  // `loss += penalty`
    }
    return;
  }
  if (!is_wanted(impl) || op.metadata_only || (watch == Watch::kGrad && in_backward())) {
    return;
  }
  Flow flow;
  flow.flags = mode_flags(watch, thread_state(), flow.mode) | kWritten;
  Origins& origins = Origins::get();
  {
    std::lock_guard lock(origins.mutex);
    add_inputs(origins, flow, inputs);
    if (!is_known(flow)) {
      return;
    }
    if (const Flow* before = origins.flows.find(as_target(impl))) {
      flow.flags |= before->flags & kTaints;
      for (uint32_t& parent : flow.parents) {
        if (parent == 0) {
          parent = low(before->number);
          break;
        }
      }
    }
  }
  complete(flow, op.name, stack);
  std::lock_guard lock(origins.mutex);
  keep(origins, impl, flow);
  // A write through a view is a write to its base.
  if (const auto* view = state::backward_view_meta(impl)) {
    const c10::TensorImpl& base = *view->get_backward_view().base_.unsafeGetTensorImpl();
    if (!state::requires_grad(base)) {
      keep(origins, base, flow);
    }
  }
}

void note_given_by_write(
    Watch watch,
    const OpFacts& op,
    const c10::TensorImpl& impl,
    const Inputs& inputs,
    StackId stack) {
  if (!has_history(inputs) || op.metadata_only) {
    return;
  }
  if (watch == Watch::kNoGrad) {
    const c10::TensorImpl* base = state::base(impl);
    const c10::TensorImpl& whole = base != nullptr ? *base : impl;
    if (state::requires_grad(whole) && state::is_leaf(whole) && !in_backward()) {
      note_given(op.name, whole, inputs, stack);
    }
  } else if (watch == Watch::kGrad && aliases_of_leaves.load(std::memory_order_relaxed) > 0) {
    const c10::TensorImpl* leaf = leaf_of_alias(impl);
    if (leaf != nullptr && !in_backward()) {
      note_given(op.name, *leaf, inputs, stack);
    }
  }
}

void note_detached(const OpFacts& op, const at::Tensor& tensor) {
  Flow flow;
  flow.flags = kCut | kTaintCut | kWritten;
  complete(flow, op.name);
  Origins& origins = Origins::get();
  std::lock_guard lock(origins.mutex);
  keep(origins, *tensor.unsafeGetTensorImpl(), flow);
}

void note_view(
    Watch watch, const OpFacts& op, const at::Tensor& base, const at::Tensor& view, StackId stack) {
  if (!view.defined() || !base.defined() || !is_wanted(*view.unsafeGetTensorImpl())) {
    return;
  }
  const c10::TensorImpl& impl = *view.unsafeGetTensorImpl();
  if (watch == Watch::kBirths) {
    if (state::is_inference(impl)) {
      note_birth(impl, op.name, Inputs{base.unsafeGetTensorImpl()}, false, true);
    }
    return;
  }
  if (state::requires_grad(impl) || (watch == Watch::kGrad && in_backward())) {
    return;
  }
  Flow flow;
  flow.flags = mode_flags(watch, thread_state(), flow.mode) | kIsView;
  Origins& origins = Origins::get();
  {
    std::lock_guard lock(origins.mutex);
    add_inputs(origins, flow, Inputs{base.unsafeGetTensorImpl()});
  }
  static const uint32_t detach = intern_name("aten::detach");
  if (op.name == detach) {
    flow.flags &= ~kTaintCheckpoint;  // a constant is meant
  }
  if (!is_known(flow)) {
    return;
  }
  complete(flow, op.name, stack);
  add_leaves(watch, flow, Inputs{base.unsafeGetTensorImpl()});
  if (watch == Watch::kNoGrad) {
    add_mistaken(op, thread_state(), flow, Inputs{base.unsafeGetTensorImpl()});
    add_held(thread_state(), flow, Inputs{base.unsafeGetTensorImpl()});
  }
  std::lock_guard lock(origins.mutex);
  if (watch == Watch::kGrad && (flow.flags & kCut) != 0) {
    add_lost(flow);  // a parameter may be made of it
    note_held(origins, flow, op.name == detach ? flow.behind : 0);
    aliases_of_leaves += op.name == detach && (flow.flags & kSourceIsLeaf) != 0;
  }
  keep(origins, impl, flow);
}

void note_alias(uint32_t op, const at::Tensor& of, const at::Tensor& alias) {
  const c10::TensorImpl& impl = *alias.unsafeGetTensorImpl();
  if (!cuts_are_on() || !is_wanted(impl)) {
    return;
  }
  Flow flow;
  flow.flags = kIsView;
  Origins& origins = Origins::get();
  {
    std::lock_guard lock(origins.mutex);
    add_inputs(origins, flow, Inputs{of.unsafeGetTensorImpl()});
  }
  if (!is_known(flow)) {
    return;
  }
  complete(flow, op);
  const bool has_graph = c10::GradMode::is_enabled();
  add_leaves(has_graph ? Watch::kGrad : Watch::kNoGrad, flow, Inputs{of.unsafeGetTensorImpl()});
  if (!has_graph) {
    add_held(thread_state(), flow, Inputs{of.unsafeGetTensorImpl()});
  }
  std::lock_guard lock(origins.mutex);
  if (flow.behind != 0 && (flow.flags & kSourceIsLeaf) != 0 &&
      !origins.leaves.are_reached(flow.behind)) {
    flow.flags |= kTaintDecision;  // a penalty on weights may be computed from it
  }
  if (has_graph && (flow.flags & kCut) != 0) {
    add_lost(flow);
    note_held(origins, flow, flow.behind);
    aliases_of_leaves += (flow.flags & kSourceIsLeaf) != 0;
  }
  keep(origins, impl, flow);
}

void note_misuse(uint32_t op, const Inputs& inputs, const std::string& what) {
  // A refused write names the tensor itself (WriteScope::refused).
  if (what.find("nference tensor") == std::string::npos ||
      what.find("Inplace update") != std::string::npos) {
    return;
  }
  Journal& journal = Journal::get();
  const uint64_t order = journal.next_order();  // one for all that this call refuses
  for (const c10::TensorImpl* impl : inputs) {
    const bool leftover = !state::is_inference(*impl) && state::version(*impl) < 0;
    if (!state::is_inference(*impl) && !leftover) {
      continue;
    }
    Refused event;
    event.order = order;
    {
      std::lock_guard lock(journal.mutex);
      event.storage = journal.identify(state::storage(*impl), event.order);
    }
    event.tensor = state::opaque_id(impl);
    event.thread = thread_state().id;
    event.stack = current_stack();
    event.op = op;
    event.is_leaf = state::is_leaf(*impl);
    event.requires_grad = state::requires_grad(*impl);
    event.is_inference = !leftover;
    event.is_leftover = leftover;
    event.grad_mode = c10::GradMode::is_enabled();
    event.what = what;
    journal.push_refused(std::move(event));
  }
}

void note_misuse(const OpFacts& op, const Inputs& inputs, const c10::Error& error) {
  note_misuse(op.name, inputs, error.what_without_backtrace());
}

}  // namespace gradext::recorder
