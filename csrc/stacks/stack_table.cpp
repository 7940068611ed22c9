#include "stacks/stack_table.h"

#include <algorithm>

namespace gradext::stacks {
namespace {

constexpr size_t kNodeBytes = 48;    // with its place in the table
constexpr size_t kCodeBytes = 1024;  // a small function's code object
constexpr size_t kLeastMemory = size_t{4} << 20;
constexpr size_t kMostPins = 1 << 14;
// What a process has before it records.
constexpr size_t kUsualMemory = size_t{64} << 20;

}  // namespace

// Never destroyed: threads may still capture while the process ends.
StackTable& StackTable::get() {
  static StackTable* instance = [] {
    auto* table = new StackTable;
    table->set_memory(kUsualMemory);
    return table;
  }();
  return *instance;
}

// Beside the events' own: at most as much for frames, and a quarter for code that would be gone
// without the recorder. Between two collections a quarter is added, and lives until the next.
void StackTable::set_memory(size_t bytes) {
  std::lock_guard lock(mutex_);
  bytes = std::max(bytes, kLeastMemory);
  most_nodes_ = bytes / kNodeBytes;
  most_codes_ = bytes / 4 / kCodeBytes;
  interval_ = bytes / 4;
}

const StackTable::Node* StackTable::find(StackId stack) const {
  const size_t at = position(stack);
  return at < nodes_.size() ? &nodes_[at] : nullptr;
}

size_t StackTable::position(StackId stack) const {
  const auto at =
      std::lower_bound(nodes_.begin(), nodes_.end(), stack, [](const Node& node, StackId id) {
        return node.id < id;
      });
  return at != nodes_.end() && at->id == stack ? static_cast<size_t>(at - nodes_.begin())
                                               : nodes_.size();
}

// Where such a frame is, or the free slot where it would go.
size_t StackTable::slot_of(StackId parent, uint32_t code, int32_t instruction) const {
  const size_t mask = slots_.size() - 1;
  const uint64_t caller = (static_cast<uint64_t>(parent) << 32) | code;
  size_t at = mix(caller, static_cast<uint32_t>(instruction)) & mask;
  for (; slots_[at] != 0; at = (at + 1) & mask) {
    const Node& node = nodes_[slots_[at] - 1];
    if (node.parent == parent && node.code == code && node.instruction == instruction) {
      break;
    }
  }
  return at;
}

void StackTable::rehash(size_t slots) {
  slots_.assign(slots, 0);
  for (size_t k = 0; k < nodes_.size(); ++k) {
    const Node& node = nodes_[k];
    if (node.code != kNoCode) {  // that will not be asked for again
      slots_[slot_of(node.parent, node.code, node.instruction)] = static_cast<uint32_t>(k + 1);
    }
  }
}

void StackTable::count_new(size_t bytes) {
  new_bytes_ += bytes;
  if (new_bytes_ >= interval_) {
    is_due_ = true;
  }
}

StackId StackTable::intern(PyCodeObject* code, int32_t instruction, StackId parent) {
  std::unique_lock lock(mutex_);
  auto known = code_index_.find(code);
  if (known == code_index_.end()) {
    // A reference needs the GIL, and the GIL must not be waited for under the mutex.
    lock.unlock();
    const PyGILState_STATE gil = PyGILState_Ensure();
    const uint32_t index = keep_code(code);
    PyGILState_Release(gil);
    lock.lock();
    known = code_index_.find(code);
    if (known == code_index_.end() || known->second != index) {
      return 0;
    }
  }
  if (slots_.size() < 2 * (nodes_.size() + 1)) {
    rehash(std::max<size_t>(1024, slots_.size() * 2));
  }
  const size_t slot = slot_of(parent, known->second, instruction);
  if (slots_[slot] != 0) {
    Node& node = nodes_[slots_[slot] - 1];
    node.seen = age();
    return node.id;
  }
  if (nodes_.size() >= most_nodes_ || last_ == UINT32_MAX) {
    ++dropped_;
    is_due_ = true;
    return 0;
  }
  nodes_.push_back(Node{++last_, parent, known->second, instruction, age()});
  slots_[slot] = static_cast<uint32_t>(nodes_.size());
  count_new(kNodeBytes);
  return last_;
}

uint32_t StackTable::keep_code(PyCodeObject* code) {
  Py_INCREF(code);
  uint32_t index = 0;
  bool are_codes_due = false;
  {
    std::lock_guard lock(mutex_);
    const auto [place, is_new] = code_index_.emplace(code, static_cast<uint32_t>(codes_.size()));
    if (is_new) {
      codes_.push_back(code);
      count_new(kCodeBytes);
    } else {
      garbage_.push_back(code);
    }
    index = place->second;
    are_codes_due = are_codes_due_;
  }
  if (are_codes_due) {
    give_up_codes();
  }
  release_garbage();
  return index;
}

// Of the code that nobody else holds, the oldest beyond the limit. Its frames stay in the table
// without it, and are left out of the stacks that go through them.
void StackTable::give_up_codes() {
  std::lock_guard lock(mutex_);
  are_codes_due_ = false;
  const size_t before = dropped_;
  size_t held = 0;
  // The newest is the caller's.
  for (size_t k = codes_.size() - 1; k-- > 1;) {
    if (codes_[k] != nullptr && Py_REFCNT(codes_[k]) == 1 && ++held > most_codes_) {
      code_index_.erase(codes_[k]);
      garbage_.push_back(codes_[k]);
      codes_[k] = nullptr;
      ++dropped_;
    }
  }
  if (dropped_ != before) {
    // Other code may come to lie at these addresses, which threads remember for an age.
    age_.fetch_add(1, std::memory_order_release);
  }
}

void StackTable::release_garbage() {
  std::vector<PyCodeObject*> garbage;
  {
    std::lock_guard lock(mutex_);
    garbage.swap(garbage_);
  }
  if (garbage.empty()) {
    return;
  }
  // A weak reference to code may call a function of the program's.
  PyObject *type = nullptr, *value = nullptr, *trace = nullptr;
  PyErr_Fetch(&type, &value, &trace);
  for (PyCodeObject* code : garbage) {
    Py_DECREF(code);
  }
  PyErr_Restore(type, value, trace);
}

void StackTable::pin(StackId stack) {
  std::lock_guard lock(mutex_);
  if (pins_.size() < kMostPins) {
    pins_.insert(stack);
  }
}

// Kept is what was asked for in this age (a thread may be about to name it), then what events name,
// the latest seen first, up to half of what the table may hold; and the callers of all these.
void StackTable::collect(std::vector<StackId>&& roots) {
  std::sort(roots.begin(), roots.end());
  roots.erase(std::unique(roots.begin(), roots.end()), roots.end());
  std::lock_guard lock(mutex_);
  if (!is_due_) {
    return;  // another thread has just done it
  }
  const uint32_t now = age();
  std::vector<bool> kept(nodes_.size(), false);
  size_t count = 0;
  const auto keep = [&](size_t at) {
    while (at < nodes_.size() && !kept[at]) {
      kept[at] = true;
      ++count;
      at = position(nodes_[at].parent);
    }
  };
  for (size_t k = 0; k < nodes_.size(); ++k) {
    if (nodes_[k].seen == now) {
      keep(k);
    }
  }
  for (StackId pinned : pins_) {
    keep(position(pinned));
  }
  std::vector<size_t> named;
  size_t at = 0;
  for (StackId root : roots) {
    while (at < nodes_.size() && nodes_[at].id < root) {
      ++at;
    }
    if (at < nodes_.size() && nodes_[at].id == root) {
      named.push_back(at);
    }
  }
  std::stable_sort(named.begin(), named.end(), [&](size_t a, size_t b) {
    return nodes_[a].seen != nodes_[b].seen ? nodes_[a].seen > nodes_[b].seen : a > b;
  });
  for (size_t node : named) {
    if (count >= most_nodes_ / 2) {
      dropped_ += !kept[node];
    } else {
      keep(node);
    }
  }
  if (pins_.size() >= kMostPins) {
    pins_.clear();  // a program that enters modes at ever new stacks
  }
  compact(kept);
  new_bytes_ = 0;
  are_codes_due_ = true;
  is_due_ = false;
  age_.store(now + 1, std::memory_order_release);
}

void StackTable::compact(const std::vector<bool>& kept) {
  std::vector<uint32_t> renumbered(codes_.size(), kNoCode);
  decltype(codes_) codes{nullptr};
  for (size_t k = 0; k < nodes_.size(); ++k) {
    if (kept[k] && codes_[nodes_[k].code] != nullptr) {
      renumbered[nodes_[k].code] = 1;
    }
  }
  for (size_t k = 1; k < codes_.size(); ++k) {  // in their order: the oldest first
    if (codes_[k] == nullptr) {
      continue;
    }
    if (renumbered[k] != 0) {
      renumbered[k] = static_cast<uint32_t>(codes.size());
      code_index_[codes_[k]] = renumbered[k];
      codes.push_back(codes_[k]);
    } else {
      code_index_.erase(codes_[k]);
      garbage_.push_back(codes_[k]);
    }
  }
  codes_.swap(codes);
  decltype(nodes_) nodes;
  nodes.reserve(static_cast<size_t>(std::count(kept.begin(), kept.end(), true)) + 1024);
  for (size_t k = 0; k < nodes_.size(); ++k) {
    if (kept[k]) {
      nodes.push_back(nodes_[k]);
      nodes.back().code = renumbered[nodes_[k].code];
    }
  }
  nodes_.swap(nodes);
  size_t slots = 1024;
  while (slots < 2 * (nodes_.size() + 1)) {
    slots *= 2;
  }
  rehash(slots);
}

StackId StackTable::parent(StackId stack) {
  std::lock_guard lock(mutex_);
  const Node* node = find(stack);
  return node != nullptr && node->parent > kCut ? node->parent : 0;
}

PyCodeObject* StackTable::code(StackId stack) {
  std::lock_guard lock(mutex_);
  const Node* node = find(stack);
  return node != nullptr ? codes_[node->code] : nullptr;
}

std::vector<Frame> StackTable::frames(StackId stack) {
  std::lock_guard lock(mutex_);
  std::vector<Frame> frames;
  const Node* node = find(stack);
  while (node != nullptr) {
    if (codes_[node->code] != nullptr) {
      frames.push_back(Frame{codes_[node->code], node->instruction});
    }
    stack = node->parent;
    node = find(stack);
  }
  if (stack == kCut && !frames.empty()) {
    frames.push_back(Frame{nullptr, 0});
  }
  return frames;
}

StackStats StackTable::stats() {
  std::lock_guard lock(mutex_);
  const size_t per_code = 7 * sizeof(void*);
  return {
      nodes_.size(),
      code_index_.size(),
      nodes_.capacity() * sizeof(Node) + slots_.size() * sizeof(uint32_t) +
          codes_.size() * per_code,
      dropped_};
}

}  // namespace gradext::stacks
