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

// A value with these leaves behind it has left the graph, as a number or as a constant, and no
// backward has reached them: the next one is worth a look. Under the mutex of the origins.
void add_lost(const Flow& flow);
// Whether there has been such a value since the last call, and still no backward reaches what lies
// behind it. Of one place of the program once, and from then on if it was told.
bool has_lost();
// Something was said of what is lost at these places.
void lost_was_told(const std::vector<StackId>& stacks);
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
// `leaf.data = value`, of a value that has a history.
void note_given(uint32_t op, const at::Tensor& leaf, const at::Tensor& value);
// `leaf` was written from `inputs`, of which one has a history.
void note_given(uint32_t op, const c10::TensorImpl& leaf, const Inputs& inputs, StackId stack);
// How often the program has taken `.data` of a leaf with grad mode on.
extern std::atomic<uint64_t> aliases_of_leaves;
// The living leaf of which this, or what it is a view of, is the `.data`; null where it is none.
const c10::TensorImpl* leaf_of_alias(const c10::TensorImpl& impl);
// The program set `requires_grad`.
void note_flag(const at::Tensor& tensor, bool value);

}  // namespace gradext::recorder
