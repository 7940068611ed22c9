// Finds GX403: a gradient that several nodes use, written by one of them (a backward formula or a
// hook) before the others have read it. A node that hands one tensor to several others (an addition
// does) makes a record; a write in it is reported when one of those that have not run yet comes to
// use it.
#pragma once

#include "base/locks.h"
#include "guard/guard.h"

#include <ATen/core/Tensor.h>

#include <mutex>
#include <vector>

namespace gradext::guard {

// Before a node's formula, and after it with the gradients that it hands on.
void gradients_before(Node& node);
// Whether there is a gradient that somebody is still to use.
bool knows_gradients();
void gradients_after(Node& node, const std::vector<at::Tensor>& outgoing);
void forget_gradients();
base::Mutex<base::Rank::kGradients>& gradients_mutex();  // for fork

}  // namespace gradext::guard
