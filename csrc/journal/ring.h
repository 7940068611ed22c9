// Keeps the latest events up to a number, and forgets the oldest.
#pragma once

#include "base/system_memory.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <new>
#include <type_traits>
#include <utility>

namespace gradext::journal {

// Blocks that several rings share.
struct Budget {
  std::atomic<size_t> used{0};
  std::atomic<size_t> limit{0};
};

// The latest events, up to a number, allocated block by block as they come. With a budget, a ring
// that finds it used up goes on with the blocks that it has, and with one if it has none.
template <class Event, size_t kBlock = 1024>
class Ring {
 public:
  Ring() = default;
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  ~Ring() {
    clear();
  }

  // Fewer than there are: no more blocks are added, and those that there are stay.
  void set_capacity(size_t events) {
    blocks_limit_ = std::max<size_t>(1, events / kBlock);
  }
  void set_budget(Budget* budget) {
    budget_ = budget;
  }
  Event& push(const Event& event = Event{}) {
    if (blocks_.empty() || used_ == kBlock) {
      next_block();
    }
    return *new (blocks_.back()->at(used_++)) Event(event);
  }
  void clear() {
    if (budget_ != nullptr) {
      budget_->used -= blocks_.size();
    }
    blocks_.clear();
    used_ = 0;
    dropped_ = 0;
  }
  size_t size() const {
    return blocks_.empty() ? 0 : (blocks_.size() - 1) * kBlock + used_;
  }
  static constexpr size_t event_bytes() {
    return sizeof(Event);
  }
  size_t capacity_bytes() const {
    return blocks_.size() * sizeof(Block);
  }
  size_t dropped() const {
    return dropped_;
  }
  // Drops the blocks with events up to this order, but for the one that is being filled.
  void drop_through(uint64_t order) {
    while (blocks_.size() > 1 && blocks_.front()->at(0)->order <= order) {
      dropped_ += kBlock;
      blocks_.pop_front();
    }
  }
  template <class Visit>
  void each(Visit&& visit) const {
    for (size_t b = 0; b < blocks_.size(); ++b) {
      const size_t count = b + 1 == blocks_.size() ? used_ : kBlock;
      for (size_t k = 0; k < count; ++k) {
        visit(*blocks_[b]->at(k));
      }
    }
  }

  // By age, the oldest first.
  const Event& at(size_t index) const {
    return *blocks_[index / kBlock]->at(index % kBlock);
  }

  // Room for events, of which only those that were pushed have a value: a new block is not written
  // before it is needed, which would drive the program's own data out of the cache.
  class Block {
   public:
    Event* at(size_t index) {
      return std::launder(reinterpret_cast<Event*>(room_) + index);
    }

   private:
    static_assert(std::is_trivially_copyable_v<Event> && std::is_trivially_destructible_v<Event>);
    alignas(Event) unsigned char room_[kBlock * sizeof(Event)];
  };

 private:
  void next_block() {
    const bool is_full =
        blocks_.size() >= blocks_limit_ ||
        (budget_ != nullptr && !blocks_.empty() && budget_->used >= budget_->limit);
    if (is_full) {
      // Events are released where they are overwritten, not all at once.
      dropped_ += kBlock;
      blocks_.push_back(std::move(blocks_.front()));
      blocks_.pop_front();
    } else {
      blocks_.push_back(base::make_mapped<Block>());
      if (budget_ != nullptr) {
        ++budget_->used;
      }
    }
    used_ = 0;
  }

  std::deque<base::Mapped<Block>> blocks_;
  Budget* budget_ = nullptr;
  size_t blocks_limit_ = 64;
  size_t used_ = 0;
  size_t dropped_ = 0;
};

}  // namespace gradext::journal
