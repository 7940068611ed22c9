#include "state/state.h"

#include <torch/csrc/autograd/functions/accumulate_grad.h>

namespace gradext::state {

const at::Tensor* leaf_of(const torch::autograd::Node& node) {
  const auto* adds = dynamic_cast<const torch::autograd::AccumulateGrad*>(&node);
  return adds != nullptr ? &adds->variable : nullptr;
}

}  // namespace gradext::state
