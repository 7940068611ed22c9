// Stores the events of recordings, the newest within a bound of memory. Knows nothing of dispatch
// or Python: the recorder appends, readers copy out.
#pragma once

#include "base/locks.h"
#include "journal/events.h"
#include "journal/identities.h"
#include "journal/ring.h"

#include <c10/core/StorageImpl.h>
#include <c10/core/TensorImpl.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace gradext::journal {

// The saves of one thread. Only that thread appends; readers lock.
struct SaveLog {
  uint64_t thread = 0;
  base::Mutex<base::Rank::kSaveLog> mutex;
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
  // Room for what only some recordings ask for, on top of that memory.
  void set_room_for_uses(size_t bytes);
  void set_room_for_moments(size_t bytes);
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
  base::Mutex<base::Rank::kJournal> mutex;
  // The number of a storage or a counter, 0 for null, that the event of this order names. Drops the
  // oldest events if there are too many numbers.
  uint64_t identify(const void* target, uint64_t order);
  // Of a tensor that is not one dense block, for a write that is the latest: 0 where there is no
  // room.
  uint32_t intern_geometry(const c10::TensorImpl& impl);
  Identities identities;
  // `writes`, `views` ...: a ring for each kind of event of GRADEXT_RINGS.
#define GRADEXT_RING(table, Event, COLUMNS, sixteenths) Ring<Event> table;
  GRADEXT_RINGS(GRADEXT_RING)
#undef GRADEXT_RING
  std::deque<Backward> backwards;
  std::deque<Refused> refused;
  Budget save_blocks;
  std::vector<std::shared_ptr<SaveLog>> save_logs;
  std::vector<std::vector<int64_t>> geometries;  // itemsize, sizes..., strides...
  size_t backward_nodes = 0;
  size_t backwards_dropped = 0;
  size_t refused_dropped = 0;

  // visit(name, ring, sixteenths) for each ring.
  template <class Visit>
  void each_ring(Visit&& visit) {
#define GRADEXT_RING(table, Event, COLUMNS, sixteenths) visit(#table, table, sixteenths);
    GRADEXT_RINGS(GRADEXT_RING)
#undef GRADEXT_RING
  }

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

// What one save costs.
constexpr size_t kSaveBytes = sizeof(Save);
// What one known storage or counter costs: an entry and its place in a table.
constexpr size_t kIdentityBytes = 64;

}  // namespace gradext::journal
