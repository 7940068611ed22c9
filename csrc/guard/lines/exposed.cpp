#include "guard/lines/exposed.h"

#include "base/hold.h"

#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <atomic>
#include <iterator>
#include <unordered_map>
#include <unordered_set>
#include <utility>

namespace gradext::guard {
namespace {

struct Exposure {
  base::Hold held;
  By by;
};

struct Exposed {
  base::Mutex<base::Rank::kExposed>
      mutex;  // guards what follows; never held while the GIL is waited for
  std::unordered_map<const void*, std::vector<std::weak_ptr<Entry>>> by_storage;
  std::unordered_map<const void*, Exposure> exposed;
  std::atomic<bool> exposed_any{false};  // read without the mutex
  std::unordered_set<const void*> watched;
  std::atomic<bool> watches_any{false};  // read without the mutex
  size_t entries = 0;
  size_t since_sweep = 0;
};

// Never destroyed: threads may outlive main().
Exposed& all() {
  static Exposed* instance = new Exposed;
  return *instance;
}

// Where it is known already that the storage is exposed; under the mutex.
By known_by(Exposed& state, const void* storage) {
  auto found = state.exposed.find(storage);
  if (found == state.exposed.end()) {
    return By::kNobody;
  }
  if (found->second.held.is_dead()) {
    state.exposed.erase(found);
    return By::kNobody;
  }
  return found->second.by;
}

// Whether that is more than was known; under the mutex.
bool add(Exposed& state, const c10::StorageImpl* storage, By by) {
  const By known = known_by(state, storage);
  if (known >= by) {
    return false;
  }
  state.exposed.erase(storage);
  state.exposed.emplace(storage, Exposure{base::Hold(static_cast<const void*>(storage)), by});
  state.exposed_any = true;
  return known == By::kNobody;
}

bool is_of_use(const Entry& entry) {
  return !entry.change.seen && !entry.is_told.load(std::memory_order_relaxed) &&
         entry.tensor.use_count() > 0;
}

void sweep(Exposed& state) {
  state.since_sweep = 0;
  state.entries = 0;
  for (auto place = state.by_storage.begin(); place != state.by_storage.end();) {
    auto& list = place->second;
    list.erase(
        std::remove_if(
            list.begin(),
            list.end(),
            [](const std::weak_ptr<Entry>& at) {
              auto entry = at.lock();
              return !entry || !is_of_use(*entry);
            }),
        list.end());
    state.entries += list.size();
    place = list.empty() ? state.by_storage.erase(place) : std::next(place);
  }
  for (auto place = state.exposed.begin(); place != state.exposed.end();) {
    place = place->second.held.is_dead() ? state.exposed.erase(place) : std::next(place);
  }
}

}  // namespace

bool is_foreign(const c10::StorageImpl& storage) {
  static const c10::DeleterFnPtr ours = c10::GetDefaultCPUAllocator()->raw_deleter();
  return storage.device_type() == c10::DeviceType::CPU && storage.nbytes() > 0 &&
         storage.data_ptr().get_deleter() != ours;
}

bool expose(const c10::StorageImpl* storage, By by) {
  Exposed& state = all();
  std::lock_guard lock(state.mutex);
  return add(state, storage, by);
}

By exposed_by(const c10::StorageImpl* storage) {
  Exposed& state = all();
  if (!state.exposed_any.load(std::memory_order_relaxed)) {
    return By::kNobody;
  }
  std::lock_guard lock(state.mutex);
  return known_by(state, storage);
}

By add_entry(const std::shared_ptr<Entry>& entry, const c10::StorageImpl* storage) {
  Exposed& state = all();
  std::lock_guard lock(state.mutex);
  if (++state.since_sweep > 256 + state.entries) {
    sweep(state);
  }
  ++state.entries;
  state.by_storage[storage].push_back(entry);
  if (is_foreign(*storage)) {
    add(state, storage, By::kHands);
  }
  return known_by(state, storage);
}

Entries entries_in(const void* storage) {
  Exposed& state = all();
  Entries found;
  std::lock_guard lock(state.mutex);
  const auto place = state.by_storage.find(storage);
  if (place != state.by_storage.end()) {
    for (const auto& at : place->second) {
      auto entry = at.lock();
      if (entry && is_of_use(*entry)) {
        found.push_back(std::move(entry));
      }
    }
  }
  return found;
}

Entries open_entries(const std::vector<const void*>* storages) {
  Exposed& state = all();
  Entries found;
  std::lock_guard lock(state.mutex);
  const auto look_in = [&](const void* storage) {
    auto place = state.by_storage.find(storage);
    if (place == state.by_storage.end()) {
      return;
    }
    for (const auto& at : place->second) {
      auto entry = at.lock();
      if (entry && entry->is_taken.load(std::memory_order_acquire) && is_of_use(*entry)) {
        found.push_back(std::move(entry));
      }
    }
  };
  if (storages != nullptr) {
    for (const void* storage : *storages) {
      look_in(storage);
    }
    return found;
  }
  for (auto place = state.exposed.begin(); place != state.exposed.end();) {
    if (place->second.held.is_dead()) {
      place = state.exposed.erase(place);
      continue;
    }
    if (place->second.by == By::kHands) {
      look_in(place->first);
    }
    ++place;
  }
  return found;
}

void watch_storage(const void* storage) {
  Exposed& state = all();
  std::lock_guard lock(state.mutex);
  state.watched.insert(storage);
  state.watches_any = true;
}

bool is_watched(const void* storage) {
  Exposed& state = all();
  std::lock_guard lock(state.mutex);
  return state.watched.count(storage) > 0;
}

bool watches_any() {
  return all().watches_any;
}

bool is_first_change(Entry& entry, const Value& now) {
  std::lock_guard lock(all().mutex);
  if (now == entry.last) {
    return false;
  }
  entry.last = now;
  return !entry.change.seen;
}

void keep_change(Entry& entry, const Change& change) {
  std::lock_guard lock(all().mutex);
  if (!entry.change.seen) {
    entry.change = change;
    entry.change.seen = true;
  }
}

Change change_of(const Entry& entry) {
  std::lock_guard lock(all().mutex);
  return entry.change;
}

void forget_exposed() {
  Exposed& state = all();
  std::lock_guard lock(state.mutex);
  state.by_storage.clear();
  state.watched.clear();
  state.watches_any = false;
  state.exposed.clear();
  state.exposed_any = false;
  state.entries = 0;
}

ExposedCounts exposed_counts() {
  Exposed& state = all();
  std::lock_guard lock(state.mutex);
  return {state.entries, state.exposed.size()};
}

base::Mutex<base::Rank::kExposed>& exposed_mutex() {
  return all().mutex;
}

}  // namespace gradext::guard
