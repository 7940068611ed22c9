#include "recorder/lost_gradients/python_crossings.h"

#include "recorder/lost_gradients/flows_detail.h"
#include "recorder/lost_gradients/held_values.h"
#include "recorder/lost_gradients/leaves.h"
#include "recorder/lost_gradients/lost_values.h"
#include "state/state.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <set>
#include <unordered_set>

namespace gradext::recorder {

using namespace detail;

std::atomic<uint64_t> pending_merges{0};
std::atomic<uint64_t> pending_rebuilt{0};
std::atomic<uint64_t> pending_python{0};
std::atomic<uint64_t> pending_checkpoints{0};

namespace {

constexpr size_t kMostMerges = 4096;

// Nodes that kMerge events made, for uses_merge(); guarded by the origins' mutex.
std::deque<NodeId>& merge_nodes() {
  static auto* nodes = new std::deque<NodeId>;
  return *nodes;
}

// Lines that were looked at once: a loop would be looked at in each round. Guarded likewise.
std::unordered_set<StackId>& judged_stacks() {
  static auto* stacks = new std::unordered_set<StackId>;
  return *stacks;
}

// Too common to say where a number comes from.
bool is_telling(double value) {
  return value == value && value != 0 && std::abs(value) != 1 && std::abs(value) != 2 &&
         std::abs(value) != 0.5;
}

template <class Number>
bool holds(const at::Tensor& tensor, double value) {
  const auto* numbers = static_cast<const Number*>(tensor.const_data_ptr());
  return std::find(numbers, numbers + tensor.numel(), static_cast<Number>(value)) !=
         numbers + tensor.numel();
}

// Whether there is memory behind it: none is behind a wrapper of functorch's, nor behind a storage
// that was freed.
bool has_data(const c10::TensorImpl& impl) {
  c10::StorageImpl* storage = impl.unsafe_storage().unsafeGetStorageImpl();
  return storage != nullptr && storage->_mutable_data_ptr_no_checks().get() != nullptr;
}

// Whether a new small tensor has this number among its elements.
bool holds(const at::Tensor& tensor, double value) {
  if (tensor.scalar_type() == at::kFloat) {
    return holds<float>(tensor, value);
  }
  return tensor.scalar_type() == at::kDouble && holds<double>(tensor, value);
}

// Whether the memory that numpy was given is still the tensor's, and `data` lies in it.
bool is_memory_of(const Exit& left, const void* data) {
  const char* at = static_cast<const char*>(data);
  return left.storage != nullptr && left.begin <= at && at < left.end && !left.storage->is_dead();
}

// The values that have come back with `result`: the same memory or the same numbers; or, as a
// guess, an array of the same size that went to Python since the last backward.
void add_exits(Flow& flow, const at::Tensor& result, const ThreadState& thread) {
  constexpr int64_t kSmall = 64;
  const c10::TensorImpl& impl = *result.unsafeGetTensorImpl();
  const int64_t numel = state::numel(impl);
  const bool readable = state::has_strides(impl) && !state::is_wrapper_subclass(impl) &&
                        result.device().is_cpu() && result.layout() == at::kStrided &&
                        has_data(impl) && result.is_contiguous() && numel <= kSmall;
  const size_t known = std::min(thread.exit_count, thread.exits.size());
  const uint64_t recording = ended_recordings.load();
  size_t parents = 0;
  const auto add = [&](const Exit& left) {
    if (parents < kMaxParents) {
      flow.parents[parents++] = low(left.number);
    }
    flow.flags |= kTaintCut | kTaintPython;
  };
  const void* data = state::has_strides(impl) && has_data(impl) ? impl.data() : nullptr;
  for (size_t back = 1; data != nullptr && back <= known; ++back) {
    const Exit& left = thread.exits[(thread.exit_count - back) % thread.exits.size()];
    if (left.recording == recording && is_memory_of(left, data)) {
      add(left);
      return;
    }
  }
  int64_t elements = 0;  // of the arrays so far, which may have been put together
  std::array<const Exit*, kMaxParents> arrays{};
  size_t array_count = 0;
  for (size_t back = 1; back <= known; ++back) {
    const Exit& left = thread.exits[(thread.exit_count - back) % thread.exits.size()];
    if (left.recording != recording) {
      break;
    }
    if (left.value == left.value) {
      // A program that learns nothing makes the same numbers in each round, at the same line: what
      // it has read of the last one is not where this one comes from.
      if (left.made != 0 && left.made == flow.stack) {
        continue;
      }
      // The number that was handed over, or one among the elements.
      if (is_telling(left.value) &&
          (left.value == flow.value || (readable && holds(result, left.value)))) {
        add(left);
        if (static_cast<int64_t>(parents) >= numel) {
          return;  // every element is known
        }
      }
      continue;
    }
    if (left.epoch != thread.epoch || parents > 0) {
      continue;
    }
    if (left.numel == numel) {
      add(left);
      flow.flags |= kBySize;
      return;
    }
    elements += left.numel;
    if (array_count < arrays.size()) {
      arrays[array_count++] = &left;
    }
    if (elements == numel) {
      for (size_t k = 0; k < array_count; ++k) {
        add(*arrays[k]);
      }
      flow.flags |= kBySize;
      return;
    }
  }
}

}  // namespace

namespace {

void add_merge_node(const torch::autograd::Node& node) {
  merge_nodes().push_back(NodeId{node.thread_id(), node.sequence_nr()});
  if (merge_nodes().size() > kMostMerges) {
    merge_nodes().pop_front();
  } else {
    ++pending_merges;
  }
}

void add_parent(Flow& flow, uint64_t number) {
  for (uint32_t& parent : flow.parents) {
    if (parent == 0 || parent == low(number)) {
      parent = low(number);
      return;
    }
  }
}

// A number of Python's is a term of a sum: is it one that left the graph? The same number is; any
// other may have been computed from what has left since the last backward.
void add_number(Flow& flow, const c10::TensorImpl& impl) {
  const ThreadState& thread = thread_state();
  const size_t known = std::min(thread.exit_count, thread.exits.size());
  if (known == 0 || !has_data(impl)) {
    return;
  }
  const void* data = impl.unsafe_storage().data();
  const auto type = c10::typeMetaToScalarType(impl.dtype());
  if (type != at::kDouble && type != at::kLong) {
    return;
  }
  const double value = type == at::kDouble
                           ? *static_cast<const double*>(data)
                           : static_cast<double>(*static_cast<const int64_t*>(data));
  const uint64_t recording = ended_recordings.load();
  bool may_be = false;
  for (size_t back = 1; back <= known; ++back) {
    const Exit& left = thread.exits[(thread.exit_count - back) % thread.exits.size()];
    if (left.recording != recording) {
      break;
    }
    if (is_telling(value) && left.value == value) {
      flow.flags |= kMerge | kTaintCut | kTaintPython;
      add_parent(flow, left.number);
      return;
    }
    may_be |= is_telling(value) && left.epoch == thread.epoch;
  }
  if (may_be) {
    flow.value = value;
    flow.flags |= kMerge | kTaintGuess;
  }
}

}  // namespace

// A value without gradient went into something with one: does it come from what should have had
// one? Any value that was rebuilt from numbers, unless it is a weight; a term that was made of
// gradients. But `w - lr * g` is a step, of an inner loop or of an attack: the reader compares
// `source`, what the value was added to, with what the gradients were taken by.
void note_merge(
    Watch watch, const OpFacts& op, const Inputs& inputs, const c10::TensorImpl& result) {
  const auto* meta = state::autograd_meta(result);
  const auto* node = meta != nullptr ? meta->grad_fn_.get() : nullptr;
  if (watch != Watch::kGrad || node == nullptr) {
    return;
  }
  Origins& origins = Origins::get();
  Flow flow;
  std::vector<uint32_t> held;
  {
    std::lock_guard lock(origins.mutex);
    if (origins.flows.size() == 0 && thread_state().exit_count == 0) {
      return;
    }
    bool is_step = false;
    for (const c10::TensorImpl* impl : inputs) {
      if (state::requires_grad(*impl)) {
        is_step |= state::is_leaf(*impl);
        flow.source = state::opaque_id(impl);
      }
    }
    for (const c10::TensorImpl* impl : inputs) {
      if (state::requires_grad(*impl)) {
        continue;
      }
      if (impl->is_wrapped_number() && op.is_additive && state::numel(result) == 1) {
        add_number(flow, *impl);
        continue;
      }
      const Flow* known = origins.flows.find(as_target(*impl));
      if (known == nullptr) {
        continue;
      }
      const bool is_term = op.is_additive && !is_step && (known->flags & kTaintGrad) != 0;
      const bool is_python = !op.is_scaling && (known->flags & (kTaintPython | kTaintGuess)) != 0;
      constexpr uint32_t kAlways = kTaintDecision | kTaintCheckpoint;
      if (is_term || is_python || (known->flags & kAlways) != 0) {
        flow.flags |= kMerge | (known->flags & kTaints & ~kTaintHeld);
        add_parent(flow, known->number);
      }
      if ((known->flags & kTaintHeld) != 0) {
        held.push_back(low(known->number));
      }
    }
  }
  if (!held.empty()) {
    note_taken(op, held, NodeId{node->thread_id(), node->sequence_nr()});
  }
  if (flow.flags == 0) {
    return;
  }
  flow.flags |= op.is_additive && state::numel(result) == 1 ? kIsNumber : 0;
  flow.source_sequence = node->sequence_nr();
  flow.source_thread = static_cast<uint32_t>(node->thread_id());
  complete(flow, op.name);
  std::lock_guard lock(origins.mutex);
  if (judged_stacks().count(flow.stack) != 0) {
    return;
  }
  keep_past(origins, flow);
  add_merge_node(*node);
}

void note_flat(const OpFacts& op, const Inputs& inputs, const c10::TensorImpl& result) {
  const auto* meta = state::autograd_meta(result);
  const auto* node = meta != nullptr ? meta->grad_fn_.get() : nullptr;
  if (node == nullptr || !is_wanted(result) || in_backward()) {
    return;
  }
  Flow flow;
  flow.flags = kMerge | kCut | kTaintDecision;
  flow.source_sequence = node->sequence_nr();
  flow.source_thread = static_cast<uint32_t>(node->thread_id());
  complete(flow, op.name);
  flow.behind = leaves_behind(inputs, flow.stack);
  Origins& origins = Origins::get();
  std::lock_guard lock(origins.mutex);
  if (origins.leaves.are_reached(flow.behind) || judged_stacks().count(flow.stack) != 0) {
    return;
  }
  keep_past(origins, flow);
  add_merge_node(*node);
  add_flat_node(NodeId{node->thread_id(), node->sequence_nr()});
}

void note_exit(uint32_t op, const at::Tensor& tensor, double value) {
  if (!tensor.defined() || !is_wanted(*tensor.unsafeGetTensorImpl()) || in_backward()) {
    return;
  }
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  if (!may_be_known(impl)) {
    return;  // a value that never had a gradient, as is most that goes to Python
  }
  Flow flow;
  flow.flags = kToPython;
  ThreadState& thread = thread_state();
  if (c10::InferenceMode::is_enabled()) {
    flow.flags |= mode_flags(Watch::kBirths, thread, flow.mode);
  } else if (!c10::GradMode::is_enabled()) {
    flow.flags |= mode_flags(Watch::kNoGrad, thread, flow.mode);
  }
  flow.value = value;
  Origins& origins = Origins::get();
  StackId made = 0;
  {
    std::lock_guard lock(origins.mutex);
    const Flow* known = origins.flows.find(as_target(impl));
    made = known != nullptr && (known->flags & kFromPython) != 0 ? known->stack : 0;
    add_inputs(origins, flow, Inputs{&impl});
  }
  if ((flow.flags & (kTaints | kFromInference)) == 0) {
    return;
  }
  Exit left{0, value, state::numel(impl), thread.epoch, ended_recordings.load(), made};
  // Memory without an allocator of torch's was Python's before (`from_numpy`): the program has the
  // array itself, and gives it again as it was.
  if (std::isnan(value) && state::has_strides(impl) && !state::is_wrapper_subclass(impl) &&
      tensor.device().is_cpu() && has_data(impl) &&
      impl.unsafe_storage().unsafeGetStorageImpl()->allocator() != nullptr) {
    left.begin = static_cast<const char*>(impl.unsafe_storage().data());
    left.end = left.begin + impl.unsafe_storage().nbytes();
    left.storage = std::make_shared<base::Hold>(static_cast<const c10::intrusive_ptr_target*>(
        impl.unsafe_storage().unsafeGetStorageImpl()));
  }
  complete(flow, op);
  const bool has_graph = c10::GradMode::is_enabled() && !c10::InferenceMode::is_enabled();
  add_leaves(has_graph ? Watch::kGrad : Watch::kNoGrad, flow, Inputs{&impl});
  {
    std::lock_guard lock(origins.mutex);
    keep_past(origins, flow);
    if (!origins.leaves.are_reached(flow.behind)) {
      ++pending_python;
    }
    if (has_graph && at::isFloatingType(tensor.scalar_type())) {
      add_lost(flow);
    }
  }
  left.number = flow.number;
  thread.exits[thread.exit_count++ % thread.exits.size()] = std::move(left);
}

bool has_just_left(double value) {
  const ThreadState& thread = thread_state();
  if (thread.exit_count == 0) {
    return false;
  }
  const Exit& last = thread.exits[(thread.exit_count - 1) % thread.exits.size()];
  return last.value == value && last.epoch == thread.epoch &&
         last.recording == ended_recordings.load();
}

void note_shared(uint32_t op, const at::Tensor& tensor) {
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  if (!is_wanted(impl) || state::requires_grad(impl) || state::is_inference(impl) ||
      !at::isFloatingType(tensor.scalar_type()) || in_backward()) {
    return;
  }
  Origins& origins = Origins::get();
  const auto is_tainted = [&](const Flow* known) {
    return known != nullptr && (known->flags & (kTaintCut | kTaintGuess)) != 0;
  };
  if (origins.flows.may_have(as_target(impl))) {
    std::lock_guard lock(origins.mutex);
    if (is_tainted(origins.flows.find(as_target(impl)))) {
      return;  // numpy has had it before: no stack is needed
    }
  }
  Flow flow;
  flow.flags = kFromPython | kTaintGuess;
  complete(flow, op);
  std::lock_guard lock(origins.mutex);
  const Flow* known = origins.flows.find(as_target(impl));
  if (judged_stacks().count(flow.stack) == 0 && !is_tainted(known)) {
    flow.parents[0] = known != nullptr ? low(known->number) : 0;
    keep(origins, impl, flow);
  }
}

void note_entry(uint32_t op, const at::Tensor& result, const Inputs& inputs, double value) {
  if (!result.defined() || !is_wanted(*result.unsafeGetTensorImpl())) {
    return;
  }
  const c10::TensorImpl& impl = *result.unsafeGetTensorImpl();
  if (c10::InferenceMode::is_enabled()) {
    if (births_are_on() && state::is_inference(impl)) {
      note_birth(impl, op, inputs, true);
    }
    return;
  }
  if (!cuts_are_on() || in_backward()) {
    return;
  }
  const ThreadState& thread = thread_state();
  Flow flow;
  flow.flags = kFromPython;
  flow.value = value;
  complete(flow, op);
  const bool is_floating = at::isFloatingType(result.scalar_type());
  if (is_floating && thread.exit_count > 0) {
    add_exits(flow, result, thread);
  }
  Origins& origins = Origins::get();
  if (c10::GradMode::is_enabled() && std::any_of(inputs.begin(), inputs.end(), [](const auto* in) {
        return state::requires_grad(*in);
      })) {
    flow.behind = leaves_behind(inputs, flow.stack);
  }
  std::lock_guard lock(origins.mutex);
  add_inputs(origins, flow, inputs);
  if (is_floating && (flow.flags & kTaintCut) != 0) {
    flow.flags |= kTaintPython;  // also a copy of tensors themselves: torch.tensor(loss)
    ++(state::requires_grad(impl) ? pending_rebuilt : pending_python);
  } else if (is_floating && judged_stacks().count(flow.stack) == 0) {
    flow.flags |= kTaintGuess;
  }
  keep(origins, impl, flow);
}

void note_gradients(
    uint32_t op,
    c10::ArrayRef<at::Tensor> gradients,
    const std::vector<std::pair<int64_t, bool>>& by,
    NodeId root) {
  Flow flow;
  flow.source_sequence = root.sequence;
  flow.source_thread = static_cast<uint32_t>(root.thread);
  complete(flow, op);
  Origins& origins = Origins::get();
  std::lock_guard lock(origins.mutex);
  for (size_t k = 0; k < gradients.size(); ++k) {
    const at::Tensor& gradient = gradients[k];
    if (!gradient.defined() || !is_wanted(*gradient.unsafeGetTensorImpl()) ||
        state::requires_grad(*gradient.unsafeGetTensorImpl())) {
      continue;
    }
    flow.flags = kGradCall | kCut | kTaintGrad | kTaintCut;
    flow.flags |= k < by.size() && !by[k].second ? kTaintInput : 0;
    flow.source = k < by.size() ? by[k].first : 0;
    const Flow* made =
        flow.source != 0
            ? origins.flows.find(as_target(*reinterpret_cast<const c10::TensorImpl*>(flow.source)))
            : nullptr;
    flow.value = made != nullptr ? low(made->number) : 0;
    keep(origins, *gradient.unsafeGetTensorImpl(), flow);
  }
}

void note_flag(const at::Tensor& tensor, bool value) {
  if (!cuts_are_on() || !tensor.defined() || !is_wanted(*tensor.unsafeGetTensorImpl())) {
    return;
  }
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  const StackId stack = current_stack();
  Origins& origins = Origins::get();
  std::lock_guard lock(origins.mutex);
  bool is_new = false;
  const Flow* flow = origins.flows.find(as_target(impl));
  const uint32_t taints = flow != nullptr ? flow->flags & kTaints : 0;
  const uint32_t parent = flow != nullptr ? low(flow->number) : 0;
  FlagChange* change = origins.flags.put(as_target(impl), is_new, [](const FlagChange&) {});
  if (change == nullptr) {
    return;
  }
  *change = FlagChange{
      Journal::get().next_order(),
      state::opaque_id(&impl),
      stack,
      static_cast<uint32_t>(thread_state().id),
      value ? 1u : 0u,
      taints,
      parent};
  if (value && (taints & kTaintPython) != 0) {
    ++pending_rebuilt;
  }
}

bool uses_merge(const std::vector<NodeId>& nodes) {
  if (pending_merges.load(std::memory_order_relaxed) == 0) {
    return false;
  }
  Origins& origins = Origins::get();
  std::lock_guard lock(origins.mutex);
  auto& merges = merge_nodes();
  std::set<std::pair<uint64_t, uint64_t>> pending, used;  // merges are few, nodes may be many
  for (const NodeId& node : merges) {
    pending.emplace(node.sequence, node.thread);
  }
  for (const NodeId& node : nodes) {
    if (pending.count({node.sequence, node.thread}) != 0) {
      used.emplace(node.sequence, node.thread);
    }
  }
  merges.erase(
      std::remove_if(
          merges.begin(),
          merges.end(),
          [&](const NodeId& node) { return used.count({node.sequence, node.thread}) != 0; }),
      merges.end());
  pending_merges = merges.size();
  return !used.empty();
}

void judged(const std::vector<StackId>& stacks) {
  std::lock_guard lock(Origins::get().mutex);
  judged_stacks().insert(stacks.begin(), stacks.end());
}

void forget_crossings() {
  // Another thread may be in the middle of an op that it began while a recording ran.
  std::lock_guard lock(Origins::get().mutex);
  forget_leaves();
  forget_held();
  forget_lost_values();
  judged_stacks().clear();
  merge_nodes().clear();
  pending_merges = 0;
  pending_rebuilt = 0;
  pending_python = 0;
  pending_checkpoints = 0;
}

}  // namespace gradext::recorder
