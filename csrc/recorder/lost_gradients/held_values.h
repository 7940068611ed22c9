// Notes leaves whose values go into a graph as constants, made without grad mode or by detach(),
// while no backward has reached them: parameters that are used and not trained.
#pragma once

#include "recorder/lost_gradients/flows.h"

#include <vector>

namespace gradext::recorder {

using journal::NodeId;

// Whether the next backward is to be looked at, so that such values are to be noted.
bool held_are_wanted();
// `flow` keeps this set of leaves from a gradient. Under the mutex of the origins.
void note_held(Origins& origins, Flow& flow, uint32_t leaves);
// A value that is kTaintHeld (`known`) went into what `node` has made.
void note_taken(const OpFacts& op, const std::vector<uint32_t>& known, const NodeId& node);
// A backward is about to use these nodes: whether it takes in such values, and is one of those
// that are looked at: not the first, the next few, and then each at twice the number of the last.
bool takes_held(const std::vector<NodeId>& nodes);
void forget_held();

}  // namespace gradext::recorder
