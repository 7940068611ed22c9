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

struct Exposed {
  base::Mutex<base::Rank::kExposed>
      mutex;  // guards what follows; never held while the GIL is waited for
  std::unordered_map<const void*, std::vector<std::weak_ptr<Entry>>> by_storage;
  std::unordered_map<const void*, base::Hold> exposed;
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

// Memory that came from somewhere else: numpy, DLPack, a file, another process.
bool is_foreign(const c10::StorageImpl& storage) {
  return storage.device_type() == c10::DeviceType::CPU && storage.nbytes() > 0 &&
         storage.data_ptr().get_deleter() != c10::GetDefaultCPUAllocator()->raw_deleter();
}

bool is_exposed(Exposed& state, const void* storage) {
  auto found = state.exposed.find(storage);
  if (found == state.exposed.end()) {
    return false;
  }
  if (found->second.is_dead()) {
    state.exposed.erase(found);
    return false;
  }
  return true;
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
              return !entry || entry->change.seen || entry->tensor.use_count() == 0;
            }),
        list.end());
    state.entries += list.size();
    place = list.empty() ? state.by_storage.erase(place) : std::next(place);
  }
  for (auto place = state.exposed.begin(); place != state.exposed.end();) {
    place = place->second.is_dead() ? state.exposed.erase(place) : std::next(place);
  }
}

}  // namespace

bool expose(const c10::StorageImpl* storage) {
  Exposed& state = all();
  std::lock_guard lock(state.mutex);
  state.exposed.try_emplace(storage, static_cast<const void*>(storage));
  return is_exposed(state, storage) && state.by_storage.count(storage) > 0;
}

bool add_entry(const std::shared_ptr<Entry>& entry, const c10::StorageImpl* storage) {
  Exposed& state = all();
  std::lock_guard lock(state.mutex);
  if (++state.since_sweep > 256 + state.entries) {
    sweep(state);
  }
  ++state.entries;
  state.by_storage[storage].push_back(entry);
  if (is_exposed(state, storage)) {
    return true;
  }
  if (is_foreign(*storage)) {
    state.exposed.try_emplace(storage, static_cast<const void*>(storage));
    return true;
  }
  return false;
}

Entries open_entries(const std::vector<const void*>* storages) {
  Exposed& state = all();
  Entries found;
  std::lock_guard lock(state.mutex);
  const auto add = [&](const void* storage) {
    auto place = state.by_storage.find(storage);
    if (place == state.by_storage.end()) {
      return;
    }
    for (const auto& at : place->second) {
      auto entry = at.lock();
      if (entry && !entry->change.seen && entry->tensor.use_count() > 0) {
        found.push_back(std::move(entry));
      }
    }
  };
  if (storages != nullptr) {
    for (const void* storage : *storages) {
      add(storage);
    }
    return found;
  }
  for (auto place = state.exposed.begin(); place != state.exposed.end();) {
    if (place->second.is_dead()) {
      place = state.exposed.erase(place);
    } else {
      add(place->first);
      ++place;
    }
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

void forget_exposed() {
  Exposed& state = all();
  std::lock_guard lock(state.mutex);
  state.by_storage.clear();
  state.watched.clear();
  state.watches_any = false;
  state.exposed.clear();
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
