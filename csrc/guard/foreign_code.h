// Finds whether code other than torch's own formulas gets the gradients of a backward. Where none
// does, nothing can write a gradient that others are still to use (GX403), and nothing is compared.
#pragma once

#include "guard/engine_calls.h"
#include "guard/guard.h"

#include <vector>

namespace gradext::guard {

// True also where there are too many nodes to know. `reach` is set where all have been looked at.
bool any_foreign_code(const std::vector<Node*>& roots, Reach& reach);

}  // namespace gradext::guard
