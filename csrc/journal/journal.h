// The bounded store of events. Knows nothing of dispatch or Python: the observer appends, readers
// copy out. Events name storages and counters by numbers that are never given twice, so nothing of
// the user's is kept alive and no new object is taken for an old one.
#pragma once

#include "base/hold.h"
#include "base/system_memory.h"
#include "journal/live_table.h"
#include "stacks/stacks.h"

#include <c10/core/StorageImpl.h>
#include <c10/core/TensorImpl.h>
#include <c10/util/intrusive_ptr.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <vector>

namespace gradext::recorder {

// Numbers for storages and counters. An object keeps its number for as long as events name it; a
// weak reference sees to it that its address does not come to mean another object meanwhile. The
// references of the dead are given back soon: what is left of a storage lies in the heap among the
// blocks of tensors, and would keep their memory from being used again.
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

// The bytes of a tensor within its storage: from the first to one past the last.
struct Extent {
  int64_t begin = 0;
  int64_t end = 0;
};

enum WriteFlags : uint32_t {
  kDeclaredOnly = 1,     // the schema says that it writes, and no counter moved
  kSharedStorage = 2,    // the storage belongs to tensors that this counter does not cover
  kInferenceTensor = 4,  // no counter
  kGradMode = 8,
  kNote = 16,   // no write: a Python call that moves a counter (mark_dirty, increment_version ...)
  kHoles = 32,  // there are elements of others between its own, and it is not known which
};

struct Write {
  uint64_t order = 0;
  uint64_t storage = 0;  // of Journal::identities
  uint64_t counter = 0;
  Extent extent;
  uint64_t sequence = 0;  // autograd's sequence number on this thread at the time
  uint32_t thread = 0;
  StackId stack = 0;
  uint32_t op = 0;
  uint32_t inner_op = 0;  // the op that `op` called to do the writing, 0 if none
  uint32_t version_before = 0;
  uint32_t version_after = 0;
  uint32_t geometry = 0;  // sizes and strides where they are not one dense block, else 0 (kHoles)
  uint16_t argument = 0;
  uint16_t flags = 0;
};

// A view that no graph node remembers: made without grad mode, or one of many of its op.
struct View {
  uint64_t order = 0;
  uint64_t storage = 0;
  Extent extent;
  uint64_t sequence = 0;
  int64_t tensor = 0;  // its address: a hint, it may have come to mean another tensor
  uint32_t thread = 0;
  StackId stack = 0;
  uint32_t op = 0;
  uint32_t flags = 0;  // creation_meta
};

// From this sequence number on (of one thread), nodes were made at `stack`.
struct Save {
  uint64_t sequence;
  StackId stack;
  uint32_t origin;  // index into the origins: the forward node that was being differentiated
};

struct NodeId {
  uint64_t thread;
  uint64_t sequence;
};

// One call of the backward engine.
struct Backward {
  uint64_t order = 0;
  uint64_t thread = 0;
  StackId stack = 0;
  bool keeps_graph = false;
  bool creates_graph = false;
  bool whole = true;  // false when the graph was too large to list
  std::vector<NodeId> nodes;
};

// A write that torch refused, or a use of an inference tensor.
struct Refused {
  uint64_t order = 0;
  uint64_t storage = 0;
  Extent extent;
  int64_t tensor = 0;
  int64_t base = 0;
  uint64_t thread = 0;
  StackId stack = 0;
  uint32_t op = 0;
  int32_t creation_meta = -1;
  bool is_view = false;
  bool is_leaf = false;
  bool requires_grad = false;
  bool base_is_leaf = false;
  bool is_inference = false;
  bool is_leftover =
      false;  // an inference tensor once: it has no counter, and no flag that says so
  bool grad_mode = false;
  std::string what;
  // The nodes from the refused tensor towards its base, nearest first.
  std::vector<std::pair<std::string, NodeId>> chain;
};

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
      blocks_.push_back(make_mapped<Block>());
      if (budget_ != nullptr) {
        ++budget_->used;
      }
    }
    used_ = 0;
  }

  std::deque<Mapped<Block>> blocks_;
  Budget* budget_ = nullptr;
  size_t blocks_limit_ = 64;
  size_t used_ = 0;
  size_t dropped_ = 0;
};

// The saves of one thread. Only that thread appends; readers lock.
struct SaveLog {
  uint64_t thread = 0;
  std::mutex mutex;
  Ring<Save, 256> saves;  // 256 saves are a page of memory
  std::deque<NodeId> origins;
  size_t origins_dropped = 0;
  Save* last = nullptr;  // the newest of `saves`
  std::atomic<bool> alive{true};

  void clear() {
    saves.clear();
    origins.clear();
    last = nullptr;
  }
};

class Journal {
 public:
  static Journal& get();

  void set_memory(size_t bytes);
  size_t memory() const {
    return memory_;
  }
  void clear();

  uint64_t next_order() {
    return ++order_;
  }
  uint64_t order() const {
    return order_;
  }

  std::shared_ptr<SaveLog> new_save_log(uint64_t thread);

  // Everything below is guarded by `mutex`.
  std::mutex mutex;
  // The number of a storage or a counter, 0 for null, that the event of this order names. Drops the
  // oldest events if there are too many numbers.
  uint64_t identify(const void* target, uint64_t order);
  // Of a tensor that is not one dense block, for a write that is the latest: 0 where there is no
  // room.
  uint32_t intern_geometry(const c10::TensorImpl& impl);
  Identities identities;
  Ring<Write> writes;
  Ring<View> views;
  std::deque<Backward> backwards;
  std::deque<Refused> refused;
  Budget save_blocks;
  std::vector<std::shared_ptr<SaveLog>> save_logs;
  std::vector<std::vector<int64_t>> geometries;  // itemsize, sizes..., strides...
  size_t backward_nodes = 0;
  size_t backwards_dropped = 0;
  size_t refused_dropped = 0;

  size_t geometry_bytes() const {
    return geometry_bytes_;
  }
  void push_backward(Backward&& backward);
  void push_refused(Refused&& refused);

 private:
  std::atomic<uint64_t> order_{0};
  size_t memory_ = 0;
  size_t most_identities_ = 0;
  void make_room_for_identities();
  void forget_geometries();
  std::unordered_map<std::string, uint32_t> geometry_index_;
  std::vector<uint32_t> free_geometries_;
  size_t geometry_bytes_ = 0;
  size_t geometries_refused_ = 0;  // how many more are refused before old ones are looked for
};

// What one event costs.
constexpr size_t kWriteBytes = sizeof(Write);
constexpr size_t kViewBytes = sizeof(View);
constexpr size_t kSaveBytes = sizeof(Save);
// What one known storage or counter costs: an entry and its place in a table.
constexpr size_t kIdentityBytes = 64;

}  // namespace gradext::recorder
