#include "journal/journal.h"

#include "state/state.h"

#include <algorithm>
#include <unordered_map>

namespace gradext::journal {
namespace {

constexpr size_t kMaxRefused = 64;
constexpr size_t kMaxBackwards = 256;
constexpr size_t kMaxDeadLogs = 64;

// Once as a list and once as a key, and its place in a table.
size_t bytes_of_geometry(const std::vector<int64_t>& facts) {
  return 2 * facts.size() * sizeof(int64_t) + 160;
}

}  // namespace

Journal& Journal::get() {
  static Journal* journal = new Journal;  // never destroyed: threads may outlive main()
  return *journal;
}

// The shares of the tables are in events.h (births, flows and flags take theirs in
// Origins::set_memory). One more sixteenth is for what memory held before some of the writes
// (before_writes.h in the recorder's room), and two for what events name: storages and counters
// (one and a half), shapes (a half).
constexpr size_t kSixteenthsOfNames = 2;
static_assert(kSixteenthsOfTables + 1 + kSixteenthsOfNames == 16);

void Journal::set_memory(size_t bytes) {
  std::lock_guard lock(mutex);
  memory_ = bytes;
  most_identities_ = bytes / 32 * 3 / kIdentityBytes;
  identities.set_capacity(most_identities_);
  each_ring([&](const char*, auto& ring, size_t sixteenths) {
    if (sixteenths > 0) {
      ring.set_capacity(bytes / 16 * sixteenths / ring.event_bytes());
    }
  });
  save_blocks.limit =
      std::max<size_t>(1, bytes / 16 * Sixteenths::saves / sizeof(decltype(SaveLog::saves)::Block));
}

void Journal::set_room_for_uses(size_t bytes) {
  std::lock_guard lock(mutex);
  uses.set_capacity(bytes / sizeof(Use));
}

void Journal::set_room_for_moments(size_t bytes) {
  std::lock_guard lock(mutex);
  moments.set_capacity(bytes / sizeof(Moment));
}

void Journal::clear() {
  std::lock_guard lock(mutex);
  each_ring([](const char*, auto& ring, size_t) { ring.clear(); });
  backwards.clear();
  refused.clear();
  backward_nodes = backwards_dropped = refused_dropped = 0;
  identities.clear();
  geometries.clear();
  geometry_index_.clear();
  free_geometries_.clear();
  geometry_bytes_ = geometries_refused_ = 0;
  for (const auto& log : save_logs) {
    std::lock_guard log_lock(log->mutex);
    log->clear();
  }
  save_logs.erase(
      std::remove_if(
          save_logs.begin(), save_logs.end(), [](const auto& log) { return !log->alive; }),
      save_logs.end());
}

std::shared_ptr<SaveLog> Journal::new_save_log(uint64_t thread) {
  auto log = std::make_shared<SaveLog>();
  log->thread = thread;
  log->saves.set_capacity(SIZE_MAX);
  log->saves.set_budget(&save_blocks);
  std::lock_guard lock(mutex);
  // A program that starts a thread per request must not collect their logs for ever, nor leave the
  // living without room.
  const auto is_dead = [](const auto& known) { return !known->alive; };
  while (true) {
    const auto dead = std::count_if(save_logs.begin(), save_logs.end(), is_dead);
    if (dead == 0 || (static_cast<size_t>(dead) <= kMaxDeadLogs &&
                      save_blocks.used * 4 < save_blocks.limit * 3)) {
      break;
    }
    save_logs.erase(std::find_if(save_logs.begin(), save_logs.end(), is_dead));
  }
  save_logs.push_back(log);
  return log;
}

uint64_t Journal::identify(const void* target, uint64_t order) {
  if (identities.size() >= most_identities_) {
    make_room_for_identities();
  }
  return identities.of(target, order);
}

// A program that writes to very many tensors needs more of them, and has room for fewer writes.
void Journal::make_room_for_identities() {
  const uint64_t oldest = identities.too_old();
  if (oldest == 0) {
    return;  // many had died
  }
  const size_t room = memory_ / 16 * (Sixteenths::writes + kSixteenthsOfNames);
  const size_t more = most_identities_ + most_identities_ / 8;
  if (writes.capacity_bytes() + more * kIdentityBytes < room) {
    most_identities_ = more;
    identities.set_capacity(more);
    writes.set_capacity((room - more * kIdentityBytes) / sizeof(Write));
    return;
  }
  each_ring([&](const char*, auto& ring, size_t) { ring.drop_through(oldest); });
}

uint32_t Journal::intern_geometry(const c10::TensorImpl& impl) {
  const auto sizes = impl.sizes();
  const auto strides = impl.strides();
  std::vector<int64_t> facts{static_cast<int64_t>(impl.itemsize())};
  facts.insert(facts.end(), sizes.begin(), sizes.end());
  facts.insert(facts.end(), strides.begin(), strides.end());
  const std::string key(
      reinterpret_cast<const char*>(facts.data()), facts.size() * sizeof(int64_t));
  auto found = geometry_index_.find(key);
  if (found != geometry_index_.end()) {
    return found->second;
  }
  if (geometry_bytes_ >= memory_ / 32) {
    if (geometries_refused_ > 0) {
      --geometries_refused_;
      return 0;
    }
    forget_geometries();
    if (geometry_bytes_ >= memory_ / 32) {
      geometries_refused_ = geometries.size() / 8;  // before it is tried again
      return 0;
    }
  }
  geometry_bytes_ += bytes_of_geometry(facts);
  uint32_t number = 0;
  if (!free_geometries_.empty()) {
    number = free_geometries_.back();
    free_geometries_.pop_back();
    geometries[number - 1] = std::move(facts);
  } else {
    geometries.push_back(std::move(facts));
    number = static_cast<uint32_t>(geometries.size());
  }
  geometry_index_.emplace(key, number);
  return number;
}

// Those that no write names any more.
void Journal::forget_geometries() {
  std::vector<bool> is_named(geometries.size() + 1, false);
  writes.each([&](const Write& write) { is_named[write.geometry] = true; });
  for (auto at = geometry_index_.begin(); at != geometry_index_.end();) {
    if (is_named[at->second]) {
      ++at;
      continue;
    }
    std::vector<int64_t>& facts = geometries[at->second - 1];
    geometry_bytes_ -= bytes_of_geometry(facts);
    facts.resize(1);
    facts.shrink_to_fit();
    free_geometries_.push_back(at->second);
    at = geometry_index_.erase(at);
  }
}

void Journal::push_backward(Backward&& backward) {
  std::lock_guard lock(mutex);
  backward_nodes += backward.nodes.size();
  backwards.push_back(std::move(backward));
  while (backwards.size() > kMaxBackwards ||
         (backward_nodes * sizeof(NodeId) > memory_ / 16 && backwards.size() > 1)) {
    backward_nodes -= backwards.front().nodes.size();
    backwards.pop_front();
    ++backwards_dropped;
  }
}

void Journal::push_refused(Refused&& event) {
  std::lock_guard lock(mutex);
  refused.push_back(std::move(event));
  if (refused.size() > kMaxRefused) {
    refused.pop_front();
    ++refused_dropped;
  }
}

}  // namespace gradext::journal
