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
// Whether there has been such a value since the last call, and still no backward reaches what lies
// behind it. Of one place of the program once, and from then on if it was told.
bool has_lost();
// Something was said of what is lost at these places.
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
