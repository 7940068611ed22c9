#include "recorder/lost_gradients/lost_values.h"

#include "recorder/lost_gradients/flows_detail.h"
#include "recorder/lost_gradients/leaves.h"
#include "state/state.h"

#include <unordered_map>
#include <unordered_set>

namespace gradext::recorder {

using namespace detail;

std::atomic<uint64_t> aliases_of_leaves{0};

namespace {

constexpr size_t kMostLost = 1024;

struct Lost {
  uint32_t behind = 0;
  bool is_new = false;  // since the last backward
  bool was_looked_at = false;
  bool was_told = false;  // it is counted each time
};

// By where it was lost; guarded by the mutex of the origins.
std::unordered_map<StackId, Lost>& lost_values() {
  static auto* values = new std::unordered_map<StackId, Lost>;
  return *values;
}

// The sets of leaves that were told of as lost: one line has another stack where Python has begun
// to run it in a faster way, and what is lost there is the same. Guarded likewise.
std::unordered_set<uint32_t>& told_sets() {
  static auto* sets = new std::unordered_set<uint32_t>;
  return *sets;
}

}  // namespace

void add_lost(const Flow& flow) {
  if (Origins::get().leaves.are_reached(flow.behind)) {
    return;
  }
  auto& lost = lost_values();
  if (lost.size() >= kMostLost && lost.count(flow.stack) == 0) {
    return;
  }
  Lost& at = lost[flow.stack];
  at.behind = flow.behind;
  at.is_new = true;
}

bool has_lost() {
  Origins& origins = Origins::get();
  std::lock_guard lock(origins.mutex);
  bool found = false;
  for (auto& [stack, lost] : lost_values()) {
    const bool was_told = lost.was_told || told_sets().count(lost.behind) != 0;
    const bool is_asked = lost.is_new && (was_told || !lost.was_looked_at);
    if (is_asked && !origins.leaves.are_reached(lost.behind)) {
      lost.was_looked_at = true;
      found = true;
    }
    lost.is_new = false;
  }
  return found;
}

void lost_was_told(const std::vector<StackId>& stacks) {
  std::lock_guard lock(Origins::get().mutex);
  for (const StackId stack : stacks) {
    const auto known = lost_values().find(stack);
    if (known != lost_values().end()) {
      known->second.was_told = true;
      if (told_sets().size() < kMostLost) {
        told_sets().insert(known->second.behind);
      }
    }
  }
}

namespace {

// `leaf.data = value.data`, of a value that has a history: vector_to_parameters().
void note_given_alias(uint32_t op, const c10::TensorImpl& leaf, const c10::TensorImpl& alias) {
  static const uint32_t data = intern_name("Tensor.data");
  Origins& origins = Origins::get();
  Flow flow;
  flow.flags = kWritten;
  {
    std::lock_guard lock(origins.mutex);
    const Flow* known = origins.flows.find(as_target(alias));
    if (known == nullptr || known->op != data || (known->flags & kCut) == 0 ||
        (known->flags & kSourceIsLeaf) != 0 || origins.leaves.are_reached(known->behind)) {
      return;
    }
    flow.flags |= known->flags & kTaints;
    flow.parents[0] = low(known->number);
    flow.behind = known->behind;
  }
  complete(flow, op);
  std::lock_guard lock(origins.mutex);
  add_lost(flow);
  keep(origins, leaf, flow);
}

}  // namespace

void note_given(uint32_t op, const at::Tensor& leaf, const at::Tensor& value) {
  const c10::TensorImpl& impl = *leaf.unsafeGetTensorImpl();
  const c10::TensorImpl& given = *value.unsafeGetTensorImpl();
  if (!cuts_are_on() || !c10::GradMode::is_enabled() || in_backward() || !state::is_leaf(impl)) {
    return;
  }
  if (has_history(Inputs{&given})) {
    note_given(op, impl, Inputs{&given}, 0);
  } else if (is_wanted(impl) && is_wanted(given)) {
    note_given_alias(op, impl, given);
  }
}

void note_given(uint32_t op, const c10::TensorImpl& leaf, const Inputs& inputs, StackId stack) {
  Inputs given;  // what was computed: to copy a leaf means its value
  for (const c10::TensorImpl* impl : inputs) {
    if (is_wanted(*impl) && has_history(Inputs{impl})) {
      given.push_back(impl);
    }
  }
  if (given.empty() || !is_wanted(leaf)) {
    return;
  }
  Flow flow;
  flow.flags = kWritten;
  complete(flow, op, stack);
  flow.behind = leaves_behind(given, flow.stack);
  Origins& origins = Origins::get();
  std::lock_guard lock(origins.mutex);
  add_inputs(origins, flow, given);
  add_lost(flow);
  keep(origins, leaf, flow);
}

const c10::TensorImpl* leaf_of_alias(const c10::TensorImpl& impl) {
  static const uint32_t data = intern_name("Tensor.data");
  static const uint32_t detach = intern_name("aten::detach");
  const c10::TensorImpl* base = state::base(impl);
  Origins& origins = Origins::get();
  std::lock_guard lock(origins.mutex);
  const Flow* flow = origins.flows.find(as_target(base != nullptr ? *base : impl));
  const bool is_alias =
      flow != nullptr && (flow->op == data || flow->op == detach) && (flow->flags & kSourceIsLeaf);
  return is_alias ? origins.leaves.living(flow->source) : nullptr;
}

void forget_lost_values() {
  lost_values().clear();
  told_sets().clear();
  aliases_of_leaves = 0;
}

}  // namespace gradext::recorder
