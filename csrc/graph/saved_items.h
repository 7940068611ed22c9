// Lists what a graph node saved, without making a Python object for the node, running a hook or
// unpacking anything. All of it needs the GIL.
#pragma once

#include "graph/graph.h"

#include <Python.h>
#include <c10/util/SmallVector.h>

#include <string>
#include <vector>

namespace gradext::graph {

// One saved tensor of a node.
struct SavedItem {
  const char* attribute = "";  // the node's name for it; lives as long as the process
  int index = -1;              // within a list of them
  SavedFacts facts;
  // With saved-tensor hooks: the tensors in what the pack hook returned, as far as plain containers
  // show them. A hook that packed a copy, or something else, has none of the program's memory.
  std::vector<at::Tensor> packed;
  const PyObject* hooked_with = nullptr;  // what it returned; an address to compare

  std::string label() const;
};

// Most nodes saved two or fewer, and a graph has many nodes.
using SavedItems = c10::SmallVector<SavedItem, 2>;

// Whether the node is that of an autograd.Function written in Python.
bool is_python_function(const torch::autograd::Node& node);

// In an order that is the same at every call for one node. Read under the node's mutex, which the
// thread holds that runs the node or releases what it saved; nothing where it is held right now
// (`is_busy`, if given, says so).
SavedItems saved_items(torch::autograd::Node& node, bool* is_busy = nullptr);

// What is known of all nodes of one C++ class.
struct NodeClass {
  bool may_save = true;       // a tensor
  bool is_generated = false;  // torch's code generator has made it, for one of torch's own ops
  bool is_alias = false;   // and it may return its argument's memory without being known as a view
  bool is_torchs = false;  // its formula is torch's own, and no Function of C++ or Python
};
// Asks for the GIL once for each class and thread.
const NodeClass& class_of(torch::autograd::Node& node);

// Tensors that an autograd.Function of the program's keeps as attributes of its ctx, also in plain
// containers: torch does not check them. `name`: "weight", "cache[0]".
struct ContextItem {
  std::string name;
  at::Tensor tensor;
};
std::vector<ContextItem> context_items(torch::autograd::Node& node);

// A CopySlices, which saves nothing itself; saved_items() gives what the node within it has saved.
bool is_outer(torch::autograd::Node& node);

// Whether torch gave the node's class no Python type of its own, as it does to those that it
// generates; the C++ Functions of extensions share one, which shows nothing of what they saved.
bool is_nameless(torch::autograd::Node& node);

// Whether a backward has released what the node saved.
bool is_freed(torch::autograd::Node& node, const SavedItems& items);

// A batch norm in training saves its running statistics, changes them and does not read them in
// backward.
bool is_unused(torch::autograd::Node& node, const SavedItem& item);
// Whether the node may have such a one.
bool has_unused(torch::autograd::Node& node);

}  // namespace gradext::graph
