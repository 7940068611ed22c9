#include "recorder/lost_gradients/held_values.h"

#include "recorder/lost_gradients/flows_detail.h"
#include "recorder/lost_gradients/python_crossings.h"

#include <atomic>
#include <cstdint>
#include <iterator>
#include <set>
#include <utility>

namespace gradext::recorder {

using namespace detail;

namespace {

constexpr size_t kMostTaken = 4096;
constexpr uint64_t kAlways = 3;  // backwards that are looked at without a pause between

// Nodes that kTakesHeld flows name, for takes_held(); guarded by the mutex of the origins.
std::set<std::pair<uint64_t, uint64_t>>& taking_nodes() {
  static auto* nodes = new std::set<std::pair<uint64_t, uint64_t>>;
  return *nodes;
}

// The leaves that such values hold constant, as sets; guarded likewise.
std::set<uint32_t>& held_sets() {
  static auto* sets = new std::set<uint32_t>;
  return *sets;
}

std::atomic<uint64_t> pending_taken{0};
// The first backward is one of them: a program that only evaluates pays nothing for this.
constexpr uint64_t kFirst = 1;
std::atomic<uint64_t> backwards_to_skip{kFirst};
uint64_t looked_at = 0;  // the number of the last backward that was looked at; guarded likewise

}  // namespace

bool held_are_wanted() {
  return backwards_to_skip.load(std::memory_order_relaxed) == 0;
}

void note_held(Origins& origins, Flow& flow, uint32_t leaves) {
  if (held_are_wanted() && !origins.leaves.are_reached(leaves)) {
    flow.held = leaves;
    flow.flags |= kTaintHeld;
    if (held_sets().size() < kMostTaken) {
      held_sets().insert(leaves);
    }
    ++pending_python;  // from here on it is noted what takes it in
  }
}

void note_taken(const OpFacts& op, const std::vector<uint32_t>& known, const NodeId& node) {
  Flow flow;
  flow.flags = kTakesHeld;
  for (size_t k = 0; k < known.size() && k < kMaxParents; ++k) {
    flow.parents[k] = known[k];
  }
  flow.source_sequence = node.sequence;
  flow.source_thread = static_cast<uint32_t>(node.thread);
  complete(flow, op.name);
  Origins& origins = Origins::get();
  std::lock_guard lock(origins.mutex);
  keep_past(origins, flow);
  if (taking_nodes().size() >= kMostTaken) {
    taking_nodes().clear();
  }
  taking_nodes().emplace(node.thread, node.sequence);
  ++pending_taken;
}

bool takes_held(const std::vector<NodeId>& nodes) {
  const uint64_t rest = backwards_to_skip.load(std::memory_order_relaxed);
  if (rest > 0) {
    backwards_to_skip = rest - 1;
    return false;
  }
  if (pending_taken.load(std::memory_order_relaxed) == 0) {
    return false;
  }
  Origins& origins = Origins::get();
  std::lock_guard lock(origins.mutex);
  auto& taking = taking_nodes();
  bool found = false;
  for (const NodeId& node : nodes) {
    found |= taking.erase({node.thread, node.sequence}) != 0;
  }
  pending_taken = taking.size();
  for (auto set = held_sets().begin(); found && set != held_sets().end();) {
    set = origins.leaves.are_reached(*set) ? held_sets().erase(set) : std::next(set);
  }
  found &= !held_sets().empty();
  if (found && ++looked_at > kAlways) {
    // A loop's rounds may have several backwards: another one of them each time.
    backwards_to_skip = looked_at - 1 + looked_at % 3;
    looked_at += backwards_to_skip;
    taking.clear();
    pending_taken = 0;
  }
  return found;
}

void forget_held() {
  taking_nodes().clear();
  held_sets().clear();
  pending_taken = 0;
  backwards_to_skip = kFirst;
  looked_at = 0;
}

}  // namespace gradext::recorder
