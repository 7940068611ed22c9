// Findings about values that lost their gradient: what they were made of, from birth to birth, as
// gradext.rules.wording.chains follows it.
#pragma once

#include "findings/findings.h"
#include "journal/leaf_sets.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace gradext::findings {

// An input of autograd.grad(), and whether the outputs were computed from it.
struct Unused {
  int64_t tensor;
  bool is_in_graph;
};
// In the order of `inputs`; what `finding` says is known is where they and the outputs were made.
std::vector<Unused> unused(
    const Roots& roots, const std::vector<const at::Tensor*>& inputs, Finding& finding);
// Tensors that backward() was asked about and that have no history: what they were made of.
Finding cut(const std::vector<const at::Tensor*>& tensors);
// What is below `roots` that hides that it lost its gradient; `why` as `enter_backward` says it.
Finding hidden(const Roots& roots, const std::vector<const at::Tensor*>& tensors, uint32_t why);
// The leaves behind a cut, by the low half of the number of its flow; none where it is not known.
std::vector<journal::LeafSets::Facts> leaves_behind(uint32_t number, bool held);
// The living leaves that a backward has come to and brought no gradient.
std::vector<int64_t> starved();
// Those of `leaves`, ids of leaves behind cuts, that no backward has reached.
std::vector<int64_t> unreached(const std::vector<int64_t>& leaves);
}  // namespace gradext::findings
