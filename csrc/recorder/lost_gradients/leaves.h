// Finds the leaves (parameters, inputs that require grad) behind a value that is about to lose its
// gradient, while its graph is there: nothing else keeps that graph.
#pragma once

#include "base/hold.h"
#include "journal/events.h"
#include "recorder/lost_gradients/flows.h"

#include <torch/csrc/autograd/function.h>

#include <cstdint>
#include <vector>

namespace gradext::recorder {

using journal::NodeId;

// The number (LeafSets) of the leaves behind those of `inputs` that require grad; 0 where that is
// not known. At one place of the program a graph is walked a few times, and then taken for the same
// as before: parameters stay. Not under the mutex of the origins.
uint32_t leaves_behind(const Inputs& inputs, StackId place);
// Whether there is a leaf behind some cut that no backward has reached yet.
bool leaves_are_awaited();
// A backward is about to run below `roots` that reaches these.
void note_reached(
    const std::vector<torch::autograd::Node*>& roots,
    const std::vector<torch::autograd::Node*>& accumulators);
// An autograd.Function of the program's was applied here: what its backward() gives is looked at in
// the next few backwards. Not under the mutex.
void note_function(StackId place);
bool functions_are_awaited();
// The leaves among these that have no gradient yet, held weakly: those that a backward is to fill.
std::vector<base::Hold> without_gradient(const std::vector<torch::autograd::Node*>& accumulators);
// Whether there is a leaf that a backward came to and left without a gradient.
bool leaves_are_starved();
// That backward has ended: whether some of these have no gradient still. With the GIL, and not
// under the mutex.
bool note_filled(const std::vector<base::Hold>& leaves);
// Under the mutex of the origins: a node through which only zeros go.
void add_flat_node(const NodeId& node);
// Under the mutex of the origins.
void forget_leaves();

}  // namespace gradext::recorder
