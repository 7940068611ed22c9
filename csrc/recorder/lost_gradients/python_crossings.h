// Notes where values leave or enter the autograd graph without an op that says so: to Python
// numbers and back, as gradients without a graph, as constants added to a loss, by `requires_grad`
// set by hand.
#pragma once

#include "recorder/lost_gradients/flows.h"

#include <atomic>
#include <utility>
#include <vector>

namespace gradext::recorder {

// What a backward is looked at for before it runs.
extern std::atomic<uint64_t> pending_merges;       // values that went in as constants, not yet used
extern std::atomic<uint64_t> pending_rebuilt;      // leaves that were made of what came from Python
extern std::atomic<uint64_t> pending_python;       // values that have come back from Python
extern std::atomic<uint64_t> pending_checkpoints;  // results that are kTaintCheckpoint
void forget_crossings();
// Whether it is noted of every op what constants it takes in, and not of sums alone.
inline bool notes_all_merges() {
  return pending_python.load(std::memory_order_relaxed) > 0 ||
         pending_checkpoints.load(std::memory_order_relaxed) > 0;
}

// A value went to Python.
void note_exit(uint32_t op, const at::Tensor& tensor, double value);
// Whether the last value that went to Python from here and now was this number.
bool has_just_left(double value);
// numpy was given the memory of a tensor without gradient, and may write to it.
void note_shared(uint32_t op, const at::Tensor& tensor);
// A tensor was made by a function of Python's that no op shows. `inputs`: tensors among its data.
void note_entry(uint32_t op, const at::Tensor& result, const Inputs& inputs, double value);
// Gradients that autograd.grad() returned without create_graph, of the graph below `root`.
// `by`: for each, the id of the tensor that it is with respect to, and whether that is a parameter.
void note_gradients(
    uint32_t op,
    c10::ArrayRef<at::Tensor> gradients,
    const std::vector<std::pair<int64_t, bool>>& by,
    NodeId root);
// A value without gradient went into `result`, which has one: noted if it should have had one too.
void note_merge(
    Watch watch, const OpFacts& op, const Inputs& inputs, const c10::TensorImpl& result);
// A step function was taken of what requires grad: noted if that has no gradient in another way.
void note_flat(const OpFacts& op, const Inputs& inputs, const c10::TensorImpl& result);
// Whether some merge since the last call made one of these nodes.
bool uses_merge(const std::vector<NodeId>& nodes);
// Marks call sites as already diagnosed: later merges at the same sites are not recorded.
void judged(const std::vector<StackId>& stacks);
// The program set `requires_grad`.
void note_flag(const at::Tensor& tensor, bool value);

}  // namespace gradext::recorder
