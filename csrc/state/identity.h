// Reads who a tensor is, for a diagnosis that looks through the tensors of a running program.
//
// The rule: what gradext looks at may be in use by other threads, and only the GIL is held. Torch
// writes a tensor's C++ state without the GIL (an op that runs, the engine's AccumulateGrad), so
//
// - of any tensor, only words are read: addresses and flags that lie in the TensorImpl and in its
//   AutogradMeta, which live as long as the tensor. An address is compared and never followed: what
//   it names may be gone by the next instruction. That is all words_of() does.
//   (A view's base is the one tensor that it looks at in turn: the view holds it while it lives.)
// - `.grad` is read under the locks that the engine takes as well. AccumulateGrad::apply holds its
//   node's mutex while it exchanges the gradient (Note [Thread Safety on Autograd Node] in
//   torch/csrc/autograd/node.h), and AutogradMeta::mutex_ guards the way to that node (variable.h).
//   Both are only tried: who holds them may be waiting for the GIL.
// - what a node has saved is read under that node's mutex, which release_variables() takes
//   (graph/saved_items.cpp).
// - versions, sizes and nodes are read of tensors only that the failing call was given, or that
//   have the storage or version counter of one that its graph holds.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function.h>

#include <cstdint>
#include <mutex>

namespace gradext::state {

struct Words {
  int64_t id = 0;
  int64_t counter = 0;  // 0: none
  int64_t node = 0;     // of grad_fn as it stands
  int64_t storage = 0;
  int64_t grad = 0;  // 0 also where it cannot be had without waiting
  bool requires_grad = false;
  bool is_leaf = true;
  bool is_inference = false;
  bool is_view = false;
};
Words words_of(const c10::TensorImpl& impl);

// The mutex that a node's apply() and release_variables() hold.
std::mutex& mutex_of(torch::autograd::Node& node);

}  // namespace gradext::state
