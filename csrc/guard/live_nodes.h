// Knows the nodes that live and whose saved tensors nobody has looked at, without holding them:
// what they saved is listed when some memory comes to be exposed, and not before. Most nodes are
// gone by then.
#pragma once

#include "base/locks.h"
#include "graph/graph.h"
#include "guard/guard.h"

#include <mutex>
#include <utility>
#include <vector>

namespace gradext::guard {

using graph::NodePtr;

// A part of a hook on the node, which dies with the node.
class LiveNode {
 public:
  explicit LiveNode(Node* node) : node_(node) {}
  LiveNode(const LiveNode&) = delete;
  LiveNode& operator=(const LiveNode&) = delete;
  virtual ~LiveNode();
  // Adds this node to those that taken_live_nodes() returns.
  void link();
  // Keeps what the node saved for being compared. Under the GIL.
  virtual void list() = 0;

 protected:
  Node* node_;

 private:
  friend struct LiveNodes;
  LiveNode* before_ = nullptr;
  LiveNode* after_ = nullptr;
  bool is_linked_ = false;
};

// All that are linked, each with its node, which is held; they are linked no more. Under the GIL,
// and so to be let go.
std::vector<std::pair<NodePtr, LiveNode*>> taken_live_nodes();
void forget_live_nodes();
base::Mutex<base::Rank::kLiveNodes>& live_nodes_mutex();  // for fork

}  // namespace gradext::guard
