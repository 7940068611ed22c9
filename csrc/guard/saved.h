// What a graph node saved, read natively: no Python object is made for the node, no hook runs and
// nothing is unpacked. All of it needs the GIL.
#pragma once

#include "state/graph.h"

#include <Python.h>

#include <string>
#include <vector>

namespace gradext::guard {

// One saved tensor of a node.
struct SavedItem {
  const char* attribute = "";  // the node's name for it; lives as long as the process
  int index = -1;              // within a list of them
  state::SavedFacts facts;
  // With saved-tensor hooks: the tensors in what the pack hook returned, as far as plain containers
  // show them. A hook that packed a copy, or something else, has none of the program's memory.
  std::vector<at::Tensor> packed;

  std::string label() const;
};

// Whether the node is that of an autograd.Function written in Python.
bool is_python_function(const torch::autograd::Node& node);

// In an order that is the same at every call for one node.
std::vector<SavedItem> saved_items(torch::autograd::Node& node);

// A batch norm in training saves its running statistics, changes them and does not read them in
// backward.
bool is_unused(torch::autograd::Node& node, const SavedItem& item);

}  // namespace gradext::guard
