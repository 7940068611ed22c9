// Whether anything but torch's own formulas gets the gradients of a backward: where nothing does,
// nobody can write one while others are still to use it (GX403), and nobody has to look.
#pragma once

#include "guard/engine_calls.h"
#include "guard/guard.h"

#include <vector>

namespace gradext::guard {

// True also where there are too many nodes to know. `reach` is set where all have been looked at.
bool any_foreign_code(const std::vector<Node*>& roots, Reach& reach);

}  // namespace gradext::guard
