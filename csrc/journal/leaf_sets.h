// Numbers sets of leaves (parameters, inputs that require grad), and knows of each leaf whether a
// backward has reached it. A cut of a gradient path names the set that lies behind it: whether the
// cut does harm depends on whether these leaves get a gradient by another way.
#pragma once

#include "base/hold.h"

#include <c10/core/TensorImpl.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace gradext::journal {

// Guarded by the mutex of the origins, but for what is atomic.
class LeafSets {
 public:
  void set_memory(size_t bytes);
  size_t bytes() const;
  // 0 where there are none, or too many to keep. Where there is no room for one more set the sets
  // that there are are forgotten, and the leaves that have died.
  uint32_t number_of(const std::vector<const c10::TensorImpl*>& leaves);
  // Whether a number still names its set; the number 0 never names a set.
  bool is_known(uint32_t set) const {
    return set == 0 || (set > forgotten_ && set - forgotten_ <= sets_.size());
  }
  // Whether a backward has reached every leaf of a set. True of the unknown set, 0, so that nothing
  // is reported of it.
  bool are_reached(uint32_t set) const;
  // `thread`: of the backward that reaches it.
  void reached(const c10::TensorImpl& leaf, uint64_t thread);
  // A backward of `thread` came to this leaf and brought no gradient: it counts as not reached,
  // whatever its graphs say, until one does, or until another thread's backward comes to it.
  void starved(const c10::TensorImpl& leaf, uint64_t thread);
  // Of those that are starved by `thread`, what has got a gradient by now is reached. Leaves of
  // other threads are not looked at. `kept`: gets what was looked at, for that may die meanwhile;
  // to be let go of when the mutex is free.
  using Kept = std::vector<c10::intrusive_ptr<c10::intrusive_ptr_target>>;
  void look_at_starved(uint64_t thread, Kept& kept);
  std::vector<int64_t> starved_leaves() const;
  std::atomic<size_t> starved_count{0};
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
  // The leaf with this address, null where it is none that is known or it has died.
  const c10::TensorImpl* living(int64_t tensor) const;
  void clear();

 private:
  struct Leaf {
    base::Hold hold;  // keeps its address from being used again, and nothing else
    bool is_reached = false;
    bool is_starved = false;
    uint64_t starved_by = 0;  // a thread
  };
  const std::vector<uint32_t>* set_of(uint32_t number) const {
    return number != 0 && is_known(number) ? &sets_[number - forgotten_ - 1] : nullptr;
  }
  void make_room();

  std::vector<Leaf> leaves_;
  std::unordered_map<const void*, uint32_t> by_address_;  // index into `leaves_`
  std::vector<std::vector<uint32_t>> sets_;            // set number - forgotten - 1: sorted indices
  std::unordered_multimap<size_t, uint32_t> numbers_;  // by a hash of the set
  uint32_t forgotten_ = 0;                             // up to here sets are forgotten
  size_t indices_ = 0;                                 // in all sets together
  size_t most_indices_ = 1 << 18;
};

}  // namespace gradext::journal
