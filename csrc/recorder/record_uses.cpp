#include "recorder/record_uses.h"

#include "graph/graph.h"
#include "graph/saved_items.h"
#include "recorder/record_writes.h"
#include "recorder/switch.h"
#include "state/state.h"

#include <algorithm>
#include <cstring>
#include <mutex>

namespace gradext::recorder {

using torch::autograd::Node;

std::atomic<int> recordings_with_uses{0};

namespace {

constexpr size_t kMostUsingNodes = 1 << 16;  // of one backward

struct FoundUse {
  Use use;
  at::Tensor tensor;
};

void add_use(
    std::vector<FoundUse>& into,
    const graph::SavedItem& item,
    const at::Tensor& tensor,
    const Use& of_node,
    bool is_hooked) {
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  const int64_t version = state::version(impl);
  Use use = of_node;
  use.attribute = intern_name(item.label());
  use.version = static_cast<uint32_t>(std::max<int64_t>(version, 0));
  use.saved_version = is_hooked ? use.version : item.facts.saved_version;
  use.extent = extent_of(impl);
  use.flags = (item.facts.is_leaf ? kUseOfLeaf : 0u) | (item.facts.is_output ? kUseOfOutput : 0u) |
              (is_hooked ? kUseHooked : 0u) | (version < 0 ? kUseUncounted : 0u);
  into.push_back(FoundUse{use, tensor});
}

}  // namespace

void want_uses(int step, size_t bytes) {
  if (step > 0) {
    Journal::get().set_room_for_uses(bytes);
  }
  recordings_with_uses += step;
}

void note_uses(const std::vector<Node*>& roots, uint64_t order, StackId stack) {
  bool whole = true;
  const std::vector<graph::GraphNode> nodes = graph::walk_graph(roots, kMostUsingNodes, whole);
  std::vector<FoundUse> found;
  for (const graph::GraphNode& at : nodes) {
    if (graph::is_outer(*at.node)) {
      continue;  // the node within it is in the list as well
    }
    const Node& counted = at.inner_of >= 0 ? *nodes[at.inner_of].node : *at.node;
    Use of_node;
    of_node.order = order;
    of_node.sequence = counted.sequence_nr();
    of_node.thread = counted.thread_id();
    of_node.stack = stack;
    for (const graph::SavedItem& item : graph::saved_items(*at.node)) {
      if (of_node.op == 0) {
        of_node.op = intern_name(at.node->name());
      }
      if (std::strcmp(item.facts.kind, "tensor") == 0 && item.facts.tensor.defined()) {
        add_use(found, item, item.facts.tensor, of_node, false);
      }
      for (const at::Tensor& tensor : item.packed) {
        add_use(found, item, tensor, of_node, true);
      }
    }
  }
  Journal& journal = Journal::get();
  std::lock_guard lock(journal.mutex);
  for (const FoundUse& each : found) {
    const c10::TensorImpl& impl = *each.tensor.unsafeGetTensorImpl();
    Use& use = journal.uses.push(each.use);
    use.storage = journal.identify(state::storage(impl), order);
    use.counter = journal.identify(state::counter_address(impl), order);
  }
}

}  // namespace gradext::recorder
