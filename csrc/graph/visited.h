// A set of graph nodes, for walks over a graph.
#pragma once

#include <torch/csrc/autograd/function.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace gradext::graph {

// A set of node addresses that is filled anew for every backward: open addressing, no allocation
// after the first few.
class Visited {
 public:
  void clear() {
    std::fill(slots_.begin(), slots_.end(), nullptr);
    count_ = 0;
  }
  bool insert(const torch::autograd::Node* node) {
    if (slots_.size() < 2 * (count_ + 1)) {
      grow();
    }
    if (!place(slots_, node)) {
      return false;
    }
    ++count_;
    return true;
  }

 private:
  static bool place(
      std::vector<const torch::autograd::Node*>& slots, const torch::autograd::Node* node) {
    const size_t mask = slots.size() - 1;
    size_t at = (reinterpret_cast<uintptr_t>(node) * 0x9e3779b97f4a7c15ull >> 20) & mask;
    while (slots[at] != nullptr) {
      if (slots[at] == node) {
        return false;
      }
      at = (at + 1) & mask;
    }
    slots[at] = node;
    return true;
  }
  void grow() {
    std::vector<const torch::autograd::Node*> larger(
        std::max<size_t>(64, slots_.size() * 2), nullptr);
    for (const torch::autograd::Node* node : slots_) {
      if (node != nullptr) {
        place(larger, node);
      }
    }
    slots_ = std::move(larger);
  }
  std::vector<const torch::autograd::Node*> slots_;
  size_t count_ = 0;
};

}  // namespace gradext::graph
