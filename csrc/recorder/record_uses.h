// Notes which tensors the nodes below a backward's roots had saved, for those who ask: a walk over
// the graph at each backward, which a recording does without.
#pragma once

#include "journal/journal.h"

#include <torch/csrc/autograd/function.h>

#include <atomic>
#include <vector>

namespace gradext::recorder {

extern std::atomic<int> recordings_with_uses;

// One recording more (1) or less (-1) that wants them, with so many bytes of room.
void want_uses(int step, size_t bytes);

// As `backward` begins on the graph below `roots`. Under the GIL.
void note_uses(
    const std::vector<torch::autograd::Node*>& roots, uint64_t order, stacks::StackId stack);

inline bool uses_are_on() {
  return recordings_with_uses.load(std::memory_order_relaxed) > 0;
}

}  // namespace gradext::recorder
