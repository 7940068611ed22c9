#include "recorder/python/backward.h"

#include "graph/bind.h"
#include "graph/visited.h"
#include "recorder/lost_gradients/held_values.h"
#include "recorder/lost_gradients/leaves.h"
#include "recorder/lost_gradients/lost_values.h"
#include "recorder/lost_gradients/python_crossings.h"
#include "recorder/record_uses.h"
#include "recorder/switch.h"
#include "recorder/thread_state.h"
#include "recorder/uncounted_writes.h"
#include "state/state.h"

#include <ATen/record_function.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <vector>

namespace py = pybind11;

namespace gradext::recorder {
namespace {

using torch::autograd::Node;

constexpr size_t kMaxBackwardNodes = 200'000;

// The numbers of all nodes below `roots`: what the engine is about to use.
// And the nodes that fill `.grad`, which have no number, where they are asked for.
std::vector<NodeId> node_ids(
    const std::vector<Node*>& roots, bool& whole, std::vector<Node*>* accumulators) {
  static thread_local graph::Visited visited;
  static thread_local std::vector<Node*> pending;
  visited.clear();
  pending.clear();
  std::vector<NodeId> ids;
  const auto add = [&](Node* node) {
    if (node == nullptr) {
      return;
    }
    if (node->sequence_nr() == UINT64_MAX) {
      if (accumulators != nullptr && visited.insert(node)) {
        accumulators->push_back(node);
      }
    } else if (visited.insert(node)) {
      pending.push_back(node);
      ids.push_back(NodeId{node->thread_id(), node->sequence_nr()});
    }
  };
  for (Node* root : roots) {
    add(root);
  }
  whole = true;
  while (!pending.empty()) {
    if (ids.size() >= kMaxBackwardNodes) {
      whole = false;
      break;
    }
    Node* node = pending.back();
    pending.pop_back();
    for (const auto& edge : node->next_edges()) {
      add(edge.function ? &*edge.function : nullptr);
    }
  }
  return ids;
}

// A root that is a leaf which requires grad: backward() fills its own .grad and nothing else.
bool has_leaf_root(py::handle roots) {
  if (!PyTuple_Check(roots.ptr())) {
    return false;
  }
  for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(roots.ptr()); ++k) {
    PyObject* item = PyTuple_GET_ITEM(roots.ptr(), k);
    if (is_tensor(item)) {
      const c10::TensorImpl& impl = *THPVariable_Unpack(item).unsafeGetTensorImpl();
      if (state::requires_grad(impl) && state::is_leaf(impl)) {
        return true;
      }
    }
  }
  return false;
}

}  // namespace

NodeId first_node(py::handle roots) {
  for (Node* node : graph::root_nodes(roots)) {
    return NodeId{node->thread_id(), node->sequence_nr()};
  }
  return NodeId{0, 0};
}

uint32_t enter_backward(
    py::handle roots,
    bool keeps_graph,
    bool creates_graph,
    bool accumulates,
    std::vector<base::Hold>& to_fill) {
  Backward event;
  event.stack = capture_stack();
  event.thread = at::RecordFunction::currentThreadId();
  event.keeps_graph = keeps_graph;
  event.creates_graph = creates_graph;
  set_backward_stack(event.stack);
  sync_thread();
  std::vector<Node*> accumulators;
  const bool awaited = cuts_are_on() && leaves_are_awaited();
  const bool fills =
      accumulates && cuts_are_on() && (functions_are_awaited() || leaves_are_starved());
  const std::vector<Node*> nodes = graph::root_nodes(roots);
  event.nodes = node_ids(nodes, event.whole, awaited || fills ? &accumulators : nullptr);
  if (awaited) {
    note_reached(nodes, accumulators);
  }
  if (fills) {
    to_fill = without_gradient(accumulators);
  }
  uint32_t suspicious = spans_uncounted_write(event.nodes) ? kUncountedWrite : 0;
  if (accumulates && cuts_are_on()) {
    suspicious |= has_leaf_root(roots) ? kLeafRoot : 0;
    suspicious |= uses_merge(event.nodes) ? kConstantTerm : 0;
    suspicious |= awaited && !event.nodes.empty() && has_lost() ? kLostLeaves : 0;
    suspicious |= takes_held(event.nodes) ? kHeldLeaves : 0;
    suspicious |= pending_rebuilt.exchange(0) > 0 ? kRebuiltLeaf : 0;
    pending_python = 0;
    ++thread_state().epoch;
  }
  Journal& journal = Journal::get();
  event.order = journal.next_order();
  const uint64_t order = event.order;
  const StackId stack = event.stack;
  journal.push_backward(std::move(event));
  if (uses_are_on()) {
    note_uses(nodes, order, stack);
  }
  return suspicious;
}

}  // namespace gradext::recorder
