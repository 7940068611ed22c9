// Copies an autograd graph, with what its nodes saved: numbers only, which hold no node and no
// tensor. A node becomes a Python object when Python asks for it.
#pragma once

#include <pybind11/pybind11.h>

namespace gradext::graph {

// Adds the class GraphCopy to the module.
void bind_graph_copy(pybind11::module_& m);

}  // namespace gradext::graph
