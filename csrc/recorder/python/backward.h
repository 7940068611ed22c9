// Records each call of the backward engine, and says before it runs whether it is worth a look.
#pragma once

#include "base/hold.h"
#include "journal/events.h"

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

namespace gradext::recorder {

using journal::NodeId;

// Why a backward is worth a look before it runs.
enum Suspicion : uint32_t {
  kUncountedWrite = 1,  // a write that torch's check cannot see came after a part of the graph
  kLeafRoot = 2,        // backward() of a tensor that has no history
  kConstantTerm = 4,    // a term that should have a gradient was added as a number
  kRebuiltLeaf = 8,     // requires_grad was set on a value that had been to Python
  kLostLeaves = 16,     // a value left the graph, and no backward has reached what is behind it
  kStarvedLeaves = 32,  // it has ended: a Function's backward() gave leaves of its no gradient
  kHeldLeaves = 64,     // it takes in constants, behind which leaves lie that none has reached
  kTraining = 128,      // it has ended: somebody asked to look at what is trained by now
};
// Called before the engine runs on the graph below `roots` (tensors or GradientEdges); returns the
// bits of Suspicion that hold. `accumulates`: it is backward(), not grad(). `to_fill`: gets the
// leaves that are to be looked at when it has ended.
uint32_t enter_backward(
    pybind11::handle roots,
    bool keeps_graph,
    bool creates_graph,
    bool accumulates,
    std::vector<base::Hold>& to_fill);
// The node of the first of `roots` that has one.
NodeId first_node(pybind11::handle roots);

}  // namespace gradext::recorder
