#include "graph/graph.h"

#include "state/identity.h"

#include <c10/util/flat_hash_map.h>
#include <torch/csrc/autograd/functions/tensor.h>

#include <algorithm>
#include <mutex>
#include <utility>

namespace gradext::graph {
namespace {

using torch::autograd::CopySlices;
using torch::autograd::Node;
using torch::autograd::SavedVariable;

// SavedVariable keeps its facts private and unpack(), the public way to them, runs hooks and
// raises. An explicit instantiation may name private members, and the compiler checks them against
// the headers of the torch that this is built for.
template <class Tag, typename Tag::type Member>
struct Open {
  friend typename Tag::type member(Tag) {
    return Member;
  }
};
#define GRADEXT_OPEN(Name, Type)        \
  struct field_##Name {                 \
    using type = Type SavedVariable::*; \
    friend type member(field_##Name);   \
  };                                    \
  template struct Open<field_##Name, &SavedVariable::Name##_>

GRADEXT_OPEN(data, at::Tensor);
GRADEXT_OPEN(saved_version, uint32_t);
GRADEXT_OPEN(output_nr, uint32_t);
GRADEXT_OPEN(was_default_constructed, bool);
GRADEXT_OPEN(saved_original, bool);
GRADEXT_OPEN(is_output, bool);
GRADEXT_OPEN(is_leaf, bool);
#undef GRADEXT_OPEN

// The node within a CopySlices; a backward that releases it does so under the mutex. Null also
// where the mutex is held right now (`is_busy`).
NodePtr node_within(CopySlices& slices, bool& is_busy) {
  std::unique_lock<std::mutex> lock(state::mutex_of(slices), std::try_to_lock);
  is_busy = !lock.owns_lock();
  return is_busy || !slices.fn ? NodePtr() : slices.fn->getptr();
}

// How many nodes the longest path among the first `count` nodes has; without recursion.
size_t longest_path(const std::vector<GraphNode>& nodes, size_t count) {
  const auto is_within = [&](int64_t next) {
    return next >= 0 && static_cast<size_t>(next) < count;
  };
  std::vector<size_t> above(count, 0), length(count, 1), ready;
  for (size_t k = 0; k < count; ++k) {
    for (const int64_t next : nodes[k].next) {
      if (is_within(next)) {
        ++above[static_cast<size_t>(next)];
      }
    }
  }
  for (size_t k = 0; k < count; ++k) {
    if (above[k] == 0) {
      ready.push_back(k);
    }
  }
  while (!ready.empty()) {
    const size_t at = ready.back();
    ready.pop_back();
    for (const int64_t to : nodes[at].next) {
      if (is_within(to)) {
        const auto next = static_cast<size_t>(to);
        length[next] = std::max(length[next], length[at] + 1);
        if (--above[next] == 0) {
          ready.push_back(next);
        }
      }
    }
  }
  return length.empty() ? 0 : *std::max_element(length.begin(), length.end());
}

}  // namespace

bool cut_paths(std::vector<GraphNode>& nodes, size_t longest) {
  size_t count = longest;
  while (count < nodes.size()) {
    const size_t path = longest_path(nodes, count);
    const size_t left = path < longest ? longest - path : 0;
    if (left == 0 || left < longest / 16) {
      break;
    }
    count += left;  // that many more nodes make no path longer than `longest`
  }
  if (count >= nodes.size()) {
    return true;
  }
  nodes.resize(count);
  for (GraphNode& at : nodes) {
    for (int64_t& next : at.next) {
      next = next < static_cast<int64_t>(count) ? next : -1;
    }
    at.inner_of = at.inner_of < static_cast<int64_t>(count) ? at.inner_of : -1;
  }
  return false;
}

std::vector<GraphNode> walk_graph(const std::vector<Node*>& roots, size_t most, bool& whole) {
  std::vector<GraphNode> nodes;
  ska::flat_hash_map<Node*, int64_t> index;
  whole = true;
  const auto number = [&](Node* node) -> int64_t {
    if (node == nullptr) {
      return -1;
    }
    auto [place, is_new] = index.emplace(node, static_cast<int64_t>(nodes.size()));
    if (is_new) {
      if (nodes.size() >= most) {
        whole = false;
        index.erase(place);
        return -1;
      }
      nodes.push_back(GraphNode{node, {}, -1, {}});
    }
    return place->second;
  };
  for (Node* root : roots) {
    const int64_t place = number(root);
    if (place >= 0) {
      nodes[static_cast<size_t>(place)].held = root->getptr();
    }
  }
  for (size_t k = 0; k < nodes.size(); ++k) {
    Node* node = nodes[k].node;
    decltype(GraphNode::next) next;
    for (const auto& edge : node->next_edges()) {
      next.push_back(number(edge.function ? &*edge.function : nullptr));
    }
    nodes[k].next = std::move(next);
    if (auto* slices = dynamic_cast<CopySlices*>(node)) {
      bool is_busy = false;
      NodePtr within = node_within(*slices, is_busy);
      whole &= !is_busy;
      const int64_t inner = number(within ? &*within : nullptr);
      if (inner >= 0) {
        nodes[static_cast<size_t>(inner)].inner_of = static_cast<int64_t>(k);
        nodes[static_cast<size_t>(inner)].held = std::move(within);
      }
    }
  }
  return nodes;
}

Node* node_of(const at::Tensor& tensor) {
  auto node = torch::autograd::impl::grad_fn_unsafe(tensor);
  return node ? &*node : nullptr;
}

SavedFacts saved_facts(const SavedVariable& saved) {
  SavedFacts facts;
  if (saved.has_hooks()) {
    facts.kind = "hooked";
    return facts;
  }
  facts.tensor = saved.*member(field_data{});
  if (!facts.tensor.defined()) {
    facts.kind = saved.*member(field_was_default_constructed{}) ? "none" : "freed";
    return facts;
  }
  facts.kind = "tensor";
  facts.saved_version = saved.*member(field_saved_version{});
  facts.output_nr = saved.*member(field_output_nr{});
  facts.is_original = saved.*member(field_saved_original{});
  facts.is_output = saved.*member(field_is_output{});
  facts.is_leaf = saved.*member(field_is_leaf{});
  return facts;
}

}  // namespace gradext::graph
