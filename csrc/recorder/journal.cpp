#include "journal.h"

#include "state/state.h"

#include <algorithm>
#include <unordered_map>

namespace gradext::recorder {
namespace {

constexpr size_t kMaxGeometries = 1 << 16;
constexpr size_t kMaxRefused = 64;
constexpr size_t kMaxBackwards = 256;
constexpr size_t kMaxDeadLogs = 64;

}  // namespace

uint64_t Identities::of(const void* target) {
  if (target == nullptr) {
    return 0;
  }
  const auto known = by_address_.find(target);
  if (known != by_address_.end()) {
    return entries_[known->second].number;
  }
  // An eighth of the living, so that a sweep costs a new object a few looks; few, so that little
  // memory waits for it.
  if (++since_sweep_ > std::max<size_t>(8, entries_.size() / 8)) {
    sweep();
  }
  by_address_.emplace(target, entries_.size());
  by_number_.emplace(++last_, entries_.size());
  entries_.push_back(Entry{Hold(target), last_});
  return last_;
}

const void* Identities::address_of(uint64_t number) const {
  const auto known = by_number_.find(number);
  return known == by_number_.end() ? nullptr : entries_[known->second].hold.target();
}

void Identities::sweep() {
  since_sweep_ = 0;
  for (size_t k = 0; k < entries_.size();) {
    if (!entries_[k].hold.is_dead()) {
      ++k;
      continue;
    }
    by_address_.erase(entries_[k].hold.target());
    by_number_.erase(entries_[k].number);
    if (k + 1 < entries_.size()) {
      entries_[k] = std::move(entries_.back());
      by_address_[entries_[k].hold.target()] = k;
      by_number_[entries_[k].number] = k;
    }
    entries_.pop_back();
  }
}

uint64_t Identities::known(const void* target) const {
  const auto found = target != nullptr ? by_address_.find(target) : by_address_.end();
  return found != by_address_.end() ? entries_[found->second].number : 0;
}

// Numbers are not given again, not even after this.
void Identities::clear() {
  entries_.clear();
  by_address_.clear();
  by_number_.clear();
  since_sweep_ = 0;
}

Journal& Journal::get() {
  static Journal* journal = new Journal;  // never destroyed: threads may outlive main()
  return *journal;
}

// Half for writes, an eighth each for views and for the saves of all threads (a save takes 16
// bytes); the rest is for births and cuts (Origins::set_memory).
void Journal::set_memory(size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex);
  memory_ = bytes;
  writes.set_capacity(bytes / 2 / kWriteBytes);
  views.set_capacity(bytes / 8 / kViewBytes);
  save_blocks.limit = std::max<size_t>(1, bytes / 8 / sizeof(decltype(SaveLog::saves)::Block));
}

void Journal::clear() {
  std::lock_guard<std::mutex> lock(mutex);
  writes.clear();
  views.clear();
  backwards.clear();
  refused.clear();
  backward_nodes = backwards_dropped = refused_dropped = 0;
  identities.clear();
  geometries.clear();
  geometry_index_.clear();
  for (const auto& log : save_logs) {
    std::lock_guard<std::mutex> log_lock(log->mutex);
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
  std::lock_guard<std::mutex> lock(mutex);
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
  if (geometries.size() >= kMaxGeometries) {
    return 0;
  }
  geometries.push_back(std::move(facts));
  const auto number = static_cast<uint32_t>(geometries.size());
  geometry_index_.emplace(key, number);
  return number;
}

void Journal::push_backward(Backward&& backward) {
  std::lock_guard<std::mutex> lock(mutex);
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
  std::lock_guard<std::mutex> lock(mutex);
  refused.push_back(std::move(event));
  if (refused.size() > kMaxRefused) {
    refused.pop_front();
    ++refused_dropped;
  }
}

}  // namespace gradext::recorder
