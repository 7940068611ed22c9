// Reads the autograd graph: its nodes, and what each of them saved. Runs no hook, unpacks nothing,
// rebuilds no node.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace gradext::graph {

// What owns a node: which pointer it is differs by version of torch.
using NodePtr = decltype(std::declval<torch::autograd::Node&>().getptr());

struct GraphNode {
  torch::autograd::Node* node;
  c10::SmallVector<int64_t, 3> next;  // indices of its inputs' nodes; -1 where there is none
  int64_t inner_of = -1;              // the CopySlices that this node hides in
  // Of a root, and of a node within a CopySlices, which lets go of it when a backward has run it:
  // perhaps now, on another thread. All others are kept by these.
  NodePtr held;
};

// All nodes reachable from `roots`, each once, roots first. `whole` is false where it stopped after
// `most`, or where a CopySlices is being run right now, so that nobody can say what is in it. To be
// let go of under the GIL and under no lock.
std::vector<GraphNode> walk_graph(
    const std::vector<torch::autograd::Node*>& roots, size_t most, bool& whole);

// Leaves so many of the first nodes that none of the paths among them is longer than `longest`
// nodes, and nearly as many as can be; true where those are all.
bool cut_paths(std::vector<GraphNode>& nodes, size_t longest);

// The node of a tensor as it is: a view whose base was written since keeps its stale one.
torch::autograd::Node* node_of(const at::Tensor& tensor);

struct SavedFacts {
  // "none": None was saved. "freed": its backward ran. "hooked": packed by saved-tensor hooks,
  // which switch torch's check off.
  const char* kind = "none";
  at::Tensor tensor;
  uint32_t saved_version = 0;
  uint32_t output_nr = 0;
  bool is_original = false;
  bool is_output = false;
  bool is_leaf = false;
};

SavedFacts saved_facts(const torch::autograd::SavedVariable& saved);

}  // namespace gradext::graph
