// The recorder's part of the pybind11 door.
#pragma once

#include <pybind11/pybind11.h>

namespace gradext::recorder {

// The engine is about to run on the graph below `roots` (tensors or GradientEdges). True when a
// write that torch's check cannot see came after a part of the graph was made.
bool enter_backward(pybind11::handle roots, bool keeps_graph, bool creates_graph);

void bind(pybind11::module_& m);

}  // namespace gradext::recorder
