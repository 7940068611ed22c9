// Converts between the graph and Python objects: finds the nodes that a Python object names, gives
// the facts of what a node saved as a dict. Adds graph and saved to gradext._C.
#pragma once

#include "graph/graph.h"

#include <pybind11/pybind11.h>
#include <torch/csrc/autograd/function.h>

#include <vector>

namespace gradext::graph {

// The nodes of `roots` (tensors or GradientEdges), as torch.autograd takes them.
std::vector<torch::autograd::Node*> root_nodes(pybind11::handle roots);
pybind11::list list_of(c10::ArrayRef<int64_t> numbers);
// Whether the sizes of a saved tensor are told, and whether its strides and offset are as well.
bool has_plain_sizes(const c10::TensorImpl& impl);
bool is_strided(const c10::TensorImpl& impl);
// As gradext.rules.graph_copy reads it.
pybind11::dict facts_of_saved(const SavedFacts& facts);

void bind(pybind11::module_& m);

}  // namespace gradext::graph
