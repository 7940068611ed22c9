// Fingerprints what a node saved, and again when the engine is about to run the node: when its op
// has run, or, of memory that only torch can write, when that comes to be exposed (exposure.h).
#pragma once

#include "guard/guard.h"

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <atomic>
#include <cstdint>
#include <vector>

namespace gradext::guard {

// Fingerprints what the node of `result` saved, if this thread has made it, and none before `first`
// (autograd's sequence number): what is older, another thread may be running.
void note_saves(const at::Tensor& result, uint64_t first);
// The same of all nodes that an op has made, as recorder::OpTaps::ran() tells of it.
void note_nodes(
    c10::ArrayRef<const c10::TensorImpl*> inputs,
    const at::Tensor& result,
    uint64_t first,
    bool is_aten);
// Puts the guard's hooks on all nodes that the engine is about to run, where something may write
// the gradients on their way; save on those that another call of the engine may be running.
void put_hooks_below(const std::vector<Node*>& roots);
// Fingerprints that were taken at a save; for tests.
inline std::atomic<uint64_t> taken_at_saves{0};

}  // namespace gradext::guard
