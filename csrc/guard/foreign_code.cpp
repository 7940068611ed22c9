#include "guard/foreign_code.h"

#include "graph/saved_items.h"
#include "graph/visited.h"
#include "guard/live_nodes.h"

#include <algorithm>
#include <cstddef>

namespace gradext::guard {
namespace {

constexpr size_t kMostWalked = 200'000;

// A hook of the program's on this node, or a formula that is not torch's.
bool has_foreign_code(Node& node) {
  if (!graph::class_of(node).is_torchs) {
    return true;
  }
  const auto is_not_ours = [](const auto& hook) {
    return dynamic_cast<const LiveNode*>(hook.get()) == nullptr;
  };
  const auto& before = node.pre_hooks();
  return std::any_of(before.begin(), before.end(), is_not_ours) || !node.post_hooks().empty() ||
         !node.tensor_pre_hooks().empty() || node.tensor_post_acc_grad_hooks() != nullptr;
}

}  // namespace

bool any_foreign_code(const std::vector<Node*>& roots, Reach& reach) {
  static thread_local graph::Visited seen;
  static thread_local std::vector<Node*> pending;
  seen.clear();
  pending.clear();
  size_t count = 0;
  bool are_own = true;
  const auto add = [&](Node* node) {
    if (node != nullptr && seen.insert(node)) {
      pending.push_back(node);
      ++count;
    }
  };
  std::for_each(roots.begin(), roots.end(), add);
  while (!pending.empty()) {
    Node* node = pending.back();
    pending.pop_back();
    if (has_foreign_code(*node) || count > kMostWalked) {
      return true;
    }
    are_own &= is_of_this_thread(*node) || is_of_a_leaf(*node);
    for (const auto& edge : node->next_edges()) {
      add(edge.function ? &*edge.function : nullptr);
    }
  }
  reach = are_own ? Reach::kOwn : Reach::kUnknown;
  return false;
}

}  // namespace gradext::guard
