#include "guard/live_nodes.h"

#include <c10/util/intrusive_ptr.h>

#include <atomic>
#include <type_traits>

namespace gradext::guard {

// A list that is linked through its members.
struct LiveNodes {
  base::Mutex<base::Rank::kLiveNodes> mutex;
  LiveNode* first = nullptr;
  std::atomic<bool> any{false};  // read without the mutex

  // Both under the mutex.
  void add(LiveNode* node) {
    node->after_ = first;
    node->before_ = nullptr;
    if (first != nullptr) {
      first->before_ = node;
    }
    first = node;
    node->is_linked_ = true;
    any = true;
  }
  void remove(LiveNode* node) {
    if (!node->is_linked_) {
      return;
    }
    (node->before_ != nullptr ? node->before_->after_ : first) = node->after_;
    if (node->after_ != nullptr) {
      node->after_->before_ = node->before_;
    }
    node->is_linked_ = false;
    any = first != nullptr;
  }
  // Never destroyed: nodes may outlive main().
  static LiveNodes& get() {
    static LiveNodes* instance = new LiveNodes;
    return *instance;
  }
  static Node* node_of(const LiveNode& node) {
    return node.node_;
  }
};

namespace {

// Null where the node is being destroyed: its hooks, which wait for the mutex, are still there.
template <class AnyNode>
auto hold(AnyNode& node) {
  if constexpr (std::is_base_of_v<c10::intrusive_ptr_target, AnyNode>) {
    return decltype(node.getptr())::reclaim(c10::raw::weak_intrusive_ptr::lock(&node));
  } else {
    return node.weak_from_this().lock();
  }
}

}  // namespace

LiveNode::~LiveNode() {
  LiveNodes& all = LiveNodes::get();
  std::lock_guard lock(all.mutex);
  all.remove(this);
}

void LiveNode::link() {
  LiveNodes& all = LiveNodes::get();
  std::lock_guard lock(all.mutex);
  all.add(this);
}

std::vector<std::pair<NodePtr, LiveNode*>> taken_live_nodes() {
  LiveNodes& all = LiveNodes::get();
  std::vector<std::pair<NodePtr, LiveNode*>> found;
  if (!all.any) {
    return found;
  }
  std::lock_guard lock(all.mutex);
  while (all.first != nullptr) {
    LiveNode* node = all.first;
    all.remove(node);
    if (NodePtr held = hold(*LiveNodes::node_of(*node))) {
      found.emplace_back(std::move(held), node);
    }
  }
  return found;
}

void forget_live_nodes() {
  LiveNodes& all = LiveNodes::get();
  std::lock_guard lock(all.mutex);
  while (all.first != nullptr) {
    all.remove(all.first);
  }
}

base::Mutex<base::Rank::kLiveNodes>& live_nodes_mutex() {
  return LiveNodes::get().mutex;
}

}  // namespace gradext::guard
