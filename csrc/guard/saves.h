// Fingerprints what a node saved when its op has run, and again when the engine is about to run the
// node.
#pragma once

#include "guard/guard.h"

#include <ATen/core/Tensor.h>

#include <vector>

namespace gradext::guard {

// Fingerprints what the node of `result` saved, if it is new.
void note_saves(const at::Tensor& result);
// Puts the guard's hooks on all nodes that the engine is about to run.
void put_hooks_below(const std::vector<Node*>& roots);

}  // namespace gradext::guard
