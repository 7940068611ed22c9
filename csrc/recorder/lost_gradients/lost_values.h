// Notes values with a history that left the graph, and leaves that were given such values, until a
// backward reaches what lies behind them in another way.
#pragma once

#include "recorder/lost_gradients/flows.h"

#include <atomic>
#include <vector>

namespace gradext::recorder {

// A value with these leaves behind it has left the graph, as a number or as a constant, and no
// backward has reached them: the next one is worth a look. Under the mutex of the origins.
void add_lost(const Flow& flow);
// Whether such a value was added since the last call, and still no backward has reached what lies
// behind it. True once for each place of the program, and each time after it was reported.
bool has_lost();
// Values that were lost at these places have been reported.
void lost_was_told(const std::vector<StackId>& stacks);
// `leaf.data = value`, of a value that has a history.
void note_given(uint32_t op, const at::Tensor& leaf, const at::Tensor& value);
// `leaf` was written from `inputs`, of which one has a history.
void note_given(uint32_t op, const c10::TensorImpl& leaf, const Inputs& inputs, StackId stack);
// How often the program has taken `.data` of a leaf with grad mode on.
extern std::atomic<uint64_t> aliases_of_leaves;
// The living leaf of which this, or what it is a view of, is the `.data`; null where it is none.
const c10::TensorImpl* leaf_of_alias(const c10::TensorImpl& impl);
void forget_lost_values();

}  // namespace gradext::recorder
