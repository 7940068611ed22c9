// Keeps which fingerprinted tensors lie in memory that the program can write without an op: memory
// that it got hold of itself (numpy, a pointer, a storage), or that came from elsewhere.
#pragma once

#include "base/locks.h"
#include "guard/entry.h"
#include "state/state.h"

#include <ATen/core/Tensor.h>
#include <c10/core/StorageImpl.h>

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

namespace gradext::guard {

// By what a storage can be written from now on without a version counter showing it.
enum class By : uint8_t {
  kNobody,
  kOps,   // an op; the recorder sees it before it writes
  kHands  // whoever has the memory itself
};
// Marks the storage as one that can be written without a version counter. Returns whether it was
// not marked before.
bool expose(const c10::StorageImpl* storage, By by);
By exposed_by(const c10::StorageImpl* storage);
// Memory that came from somewhere else: numpy, DLPack, a file, another process.
bool is_foreign(const c10::StorageImpl& storage);
// Registers the entry under its storage. Returns how that storage is exposed.
By add_entry(const std::shared_ptr<Entry>& entry, const c10::StorageImpl* storage);
// The entries that are taken, whose memory is in other hands (null: in any storage; else in these,
// exposed or not), and of which somebody may still read.
Entries open_entries(const std::vector<const void*>* storages);
// All that lie in the storage, taken or not.
Entries entries_in(const void* storage);

// The program wants this storage unchanged: it is compared after every op that gets it.
void watch_storage(const void* storage);
bool is_watched(const void* storage);
bool watches_any();

void forget_exposed();
struct ExposedCounts {
  size_t entries, exposed;
};
ExposedCounts exposed_counts();
base::Mutex<base::Rank::kExposed>& exposed_mutex();  // for fork

// Whether the bytes are not those that were last seen, and no change of them is known; `now` is
// what was last seen from here on. Two threads may look at one entry: one of them is told.
bool is_first_change(Entry& entry, const Value& now);
void keep_change(Entry& entry, const Change& change);
Change change_of(const Entry& entry);

// Compares each entry with its memory; calls mark(change) for the first change of one. How many are
// alive.
template <class Mark>
size_t compare(const std::vector<std::shared_ptr<Entry>>& entries, Mark&& mark) {
  size_t alive = 0;
  for (const auto& entry : entries) {
    at::Tensor tensor = locked(entry->tensor);
    // A tensor whose memory was exchanged is looked at when it is used.
    if (!tensor.defined() || !fingerprint::can_fingerprint(tensor) ||
        state::storage(*tensor.unsafeGetTensorImpl()) != entry->storage) {
      continue;
    }
    ++alive;
    const Value now = bytes_in(tensor);
    if (is_first_change(*entry, now)) {
      Change change;
      mark(change);
      keep_change(*entry, change);
    }
  }
  return alive;
}

}  // namespace gradext::guard
