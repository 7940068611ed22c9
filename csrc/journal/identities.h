// Gives storages and version counters numbers that are never used twice: nothing of the program's
// is kept alive, and no new object is taken for an old one.
#pragma once

#include "journal/live_table.h"

#include <cstddef>
#include <cstdint>

namespace gradext::journal {

// Numbers for storages and counters. An object keeps its number for as long as events name it; a
// weak reference sees to it that its address does not come to mean another object meanwhile. Weak
// references to dead objects are dropped soon: each keeps a small StorageImpl header allocated,
// which fragments the heap.
class Identities {
 public:
  // 0 for null. `order`: of the event that names it.
  uint64_t of(const void* target, uint64_t order);
  // 0 where it has none.
  uint64_t known(const void* target);
  // visit(address, number) for what lives.
  template <class Visit>
  void each(Visit&& visit) const {
    known_.each([&](const void* target, const Known& known) { visit(target, known.number); });
  }
  // Null where what has the number is gone. Looks at all of them.
  const void* address_of(uint64_t number) const {
    const void* found = nullptr;
    known_.each([&](const void* target, const Known& known) {
      found = number != 0 && known.number == number ? target : found;
    });
    return found;
  }
  void set_capacity(size_t entries) {
    known_.set_capacity(entries);
  }
  // When there is no room for one more: the order up to which the events have to go, else 0.
  uint64_t too_old() {
    return known_.oldest_if_full();
  }
  void clear() {
    known_.clear();
  }
  size_t size() const {
    return known_.size();
  }
  size_t bytes() const {
    return known_.bytes();
  }

 private:
  struct Known {
    uint64_t order = 0;  // of the last event that names it
    uint64_t number = 0;
  };
  LiveTable<Known, 8> known_;
  uint64_t last_ = 0;
};

}  // namespace gradext::journal
