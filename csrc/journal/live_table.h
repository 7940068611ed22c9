// Keeps facts about living objects by their address. It holds the objects weakly, so that an
// address is not given to another one meanwhile, and forgets those that have died. Knows nothing of
// tensors.
//
// Most tensors die within a few ops. So the newest entries are looked through often, while they are
// in the cache, and what outlives that is looked through when as much again has been added: what is
// left of a dead tensor lies in the heap among the blocks of others and must go soon.
#pragma once

#include "base/hold.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace gradext::journal {

using base::Hold;

inline size_t hash_of(const void* target) {
  return reinterpret_cast<uintptr_t>(target) * 0x9e3779b97f4a7c15ull >> 24;
}

// Tells without a lock that a table has no entry for an object: how many entries there are whose
// addresses have the same few bits of a hash. Most tensors are in no table, and a kernel that knows
// it takes no mutex.
class Presence {
 public:
  bool may_have(const void* target) const {
    return count(target).load(std::memory_order_relaxed) != 0;
  }
  // Under the mutex of the table. A count that has come to its limit stays there.
  void add(const void* target) {
    change(target, 1);
  }
  void remove(const void* target) {
    change(target, -1);
  }
  void clear() {
    for (Count& each : counts_) {
      each.store(0, std::memory_order_relaxed);
    }
  }

 private:
  using Count = std::atomic<uint16_t>;
  const Count& count(const void* target) const {
    return counts_[hash_of(target) % counts_.size()];
  }
  void change(const void* target, int step) {
    Count& at = counts_[hash_of(target) % counts_.size()];
    const uint16_t was = at.load(std::memory_order_relaxed);
    if (was != UINT16_MAX) {
      at.store(static_cast<uint16_t>(was + step), std::memory_order_relaxed);
    }
  }
  std::array<Count, 4096> counts_{};
};

// `kYoung`: how many of the newest are looked through at once.
template <class Value, size_t kYoung = 32>
class LiveTable {
 public:
  // Entries that the table may have; beyond that the oldest go, by the `order` of their values.
  void set_capacity(size_t entries) {
    capacity_ = entries;
  }

  Value* find(const void* target) {
    if (entries_.empty()) {
      return nullptr;
    }
    const uint32_t slot = slots_[place(target)];
    return slot == 0 ? nullptr : &entries_[slot - 1].value;
  }

  // False where it has no entry. Needs no mutex: who has an object from another thread has with it
  // what that thread put here before.
  bool may_have(const void* target) const {
    return presence_.may_have(target);
  }

  // The entry of `target`, a new one if it has none. `forget` is called with the values of the dead
  // that are found on the way. Whatever find() or put() has returned before is invalid after it.
  template <class Forget>
  Value* put(const void* target, bool& is_new, Forget&& forget) {
    is_new = false;
    if (Value* known = find(target)) {
      return known;
    }
    if (entries_.size() - old_ >= kYoung) {
      sweep(old_, forget);
      old_ = entries_.size();
    }
    if (old_ - swept_ > std::max<size_t>(kYoung, swept_ / 4) || entries_.size() >= capacity_) {
      sweep(0, forget);
      old_ = swept_ = entries_.size();
    }
    if (entries_.size() >= capacity_) {
      drop_oldest();
      old_ = swept_ = entries_.size();
    }
    if (2 * (entries_.size() + 1) > slots_.size()) {
      grow();
    }
    is_new = true;
    entries_.push_back(Entry{Hold(target), Value{}});
    presence_.add(target);
    slots_[place(target)] = static_cast<uint32_t>(entries_.size());
    return &entries_.back().value;
  }

  // The order of the last value that has to go when one more comes; 0 while there is room.
  uint64_t oldest_if_full() {
    if (entries_.size() < capacity_) {
      return 0;
    }
    const auto none = [](const Value&) {};
    sweep(0, none);
    old_ = swept_ = entries_.size();
    return entries_.size() < capacity_ ? 0 : oldest();
  }

  void clear() {
    std::vector<Entry>().swap(entries_);
    std::vector<uint32_t>().swap(slots_);
    presence_.clear();
    old_ = swept_ = dropped_ = 0;
  }
  size_t size() const {
    return entries_.size();
  }
  size_t dropped() const {
    return dropped_;
  }
  size_t bytes() const {
    return entries_.capacity() * sizeof(Entry) + slots_.size() * sizeof(uint32_t);
  }
  // visit(address, value) for each that lives.
  template <class Visit>
  void each(Visit&& visit) const {
    for (const Entry& entry : entries_) {
      if (!entry.hold.is_dead()) {
        visit(entry.hold.target(), entry.value);
      }
    }
  }
  // visit(value) for all, dead or alive.
  template <class Visit>
  void each_value(Visit&& visit) const {
    for (const Entry& entry : entries_) {
      visit(entry.value);
    }
  }
  template <class Visit>
  void each_dead(Visit&& visit) const {
    for (const Entry& entry : entries_) {
      if (entry.hold.is_dead()) {
        visit(entry.value);
      }
    }
  }

 private:
  struct Entry {
    Hold hold;
    Value value;
  };

  // Where `target` is, or the free slot where it would go.
  size_t place(const void* target) const {
    const size_t mask = slots_.size() - 1;
    size_t at = hash_of(target) & mask;
    while (slots_[at] != 0 && entries_[slots_[at] - 1].hold.target() != target) {
      at = (at + 1) & mask;
    }
    return at;
  }
  void grow() {
    slots_.assign(std::max<size_t>(128, slots_.size() * 2), 0);
    for (size_t k = 0; k < entries_.size(); ++k) {
      slots_[place(entries_[k].hold.target())] = static_cast<uint32_t>(k + 1);
    }
  }
  // Frees the slot `at` and moves up what was pushed behind it.
  void vacate(size_t at) {
    const size_t mask = slots_.size() - 1;
    size_t free = at;
    for (size_t next = (at + 1) & mask; slots_[next] != 0; next = (next + 1) & mask) {
      const size_t home = hash_of(entries_[slots_[next] - 1].hold.target()) & mask;
      // Stays where it is if its home lies between the free slot and itself, cyclically.
      if (((next - home) & mask) >= ((next - free) & mask)) {
        slots_[free] = slots_[next];
        free = next;
      }
    }
    slots_[free] = 0;
  }
  template <class Forget>
  void sweep(size_t from, const Forget& forget) {
    for (size_t k = from; k < entries_.size();) {
      if (!entries_[k].hold.is_dead()) {
        ++k;
        continue;
      }
      forget(entries_[k].value);
      erase(k);
    }
  }
  void erase(size_t k) {
    presence_.remove(entries_[k].hold.target());
    vacate(place(entries_[k].hold.target()));
    if (k + 1 < entries_.size()) {
      const size_t moved = place(entries_.back().hold.target());
      entries_[k] = std::move(entries_.back());
      slots_[moved] = static_cast<uint32_t>(k + 1);
    }
    entries_.pop_back();
  }
  // The order of the last of the oldest eighth: a new entry of a full table costs a few looks.
  uint64_t oldest() const {
    std::vector<uint64_t> orders;
    orders.reserve(entries_.size());
    for (const Entry& entry : entries_) {
      orders.push_back(entry.value.order);
    }
    const auto last = orders.begin() + static_cast<ptrdiff_t>(orders.size() / 8);
    std::nth_element(orders.begin(), last, orders.end());
    return *last;
  }
  void drop_oldest() {
    const uint64_t last = oldest();
    for (size_t k = 0; k < entries_.size();) {
      if (entries_[k].value.order > last) {
        ++k;
        continue;
      }
      erase(k);
      ++dropped_;
    }
  }

  std::vector<Entry> entries_;  // up to `old_` those that outlived a first look
  Presence presence_;
  std::vector<uint32_t> slots_;  // open addressing: index into `entries_` + 1, 0 free
  size_t old_ = 0;
  size_t swept_ = 0;  // how many were left by the last look at all
  size_t capacity_ = 1 << 16;
  size_t dropped_ = 0;
};

}  // namespace gradext::journal
