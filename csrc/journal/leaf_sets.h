// Numbers sets of leaves (parameters, inputs that require grad), and knows of each leaf whether a
// backward has reached it. A cut of a gradient path names the set that lies behind it: whether the
// cut does harm depends on whether these leaves get a gradient by another way.
#pragma once

#include "base/hold.h"

#include <c10/core/TensorImpl.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <unordered_map>
#include <vector>

namespace gradext::journal {

// Guarded by the mutex of the origins, but for what is atomic.
class LeafSets {
 public:
  // 0 where there are none, or too many to keep.
  uint32_t number_of(const std::vector<const c10::TensorImpl*>& leaves);
  // Whether a backward has reached every leaf of a set. Also of the unknown set, 0: nothing is said
  // of what nobody knows.
  bool are_reached(uint32_t set) const;
  void reached(const c10::TensorImpl& leaf);
  // How many leaves no backward has reached: while there are any, backwards are looked through.
  std::atomic<size_t> unreached{0};

  struct Facts {
    int64_t tensor = 0;
    bool is_reached = false;
    bool lives = false;
  };
  std::vector<Facts> facts_of(uint32_t set) const;
  // Whether a backward has reached the leaf with this address.
  bool is_reached(int64_t tensor) const;
  void clear();

 private:
  struct Leaf {
    base::Hold hold;  // keeps its address from being used again, and nothing else
    bool is_reached = false;
  };
  std::vector<Leaf> leaves_;
  std::unordered_map<const void*, uint32_t> by_address_;  // index into `leaves_`
  std::vector<std::vector<uint32_t>> sets_;               // set number - 1: sorted indices
  std::map<std::vector<uint32_t>, uint32_t> numbers_;
};

}  // namespace gradext::journal
