#include "journal/leaf_sets.h"

#include "journal/origins.h"
#include "state/state.h"

#include <c10/util/hash.h>

#include <algorithm>
#include <utility>

namespace gradext::journal {
namespace {

constexpr size_t kMostLeaves = 50'000;
constexpr size_t kMostSets = 1024;

// The tensor that is held; to be looked into only while it lives.
const c10::TensorImpl& impl_of(const base::Hold& hold) {
  return *static_cast<const c10::TensorImpl*>(
      static_cast<const c10::intrusive_ptr_target*>(hold.target()));
}

}  // namespace

void LeafSets::set_memory(size_t bytes) {
  most_indices_ = bytes / sizeof(uint32_t);
}

size_t LeafSets::bytes() const {
  return leaves_.capacity() * sizeof(Leaf) + by_address_.size() * 4 * sizeof(void*) +
         sets_.capacity() * sizeof(sets_[0]) + indices_ * sizeof(uint32_t) +
         numbers_.size() * 4 * sizeof(void*);
}

uint32_t LeafSets::number_of(const std::vector<const c10::TensorImpl*>& leaves) {
  if (leaves.empty() || leaves.size() > most_indices_) {
    return 0;
  }
  if (leaves_.size() + leaves.size() > kMostLeaves || sets_.size() >= kMostSets ||
      indices_ + leaves.size() > most_indices_) {
    make_room();
  }
  std::vector<uint32_t> set;
  for (const c10::TensorImpl* leaf : leaves) {
    const void* address = as_target(*leaf);
    auto known = by_address_.find(address);
    if (known == by_address_.end()) {
      if (leaves_.size() >= kMostLeaves) {
        return 0;
      }
      known = by_address_.emplace(address, static_cast<uint32_t>(leaves_.size())).first;
      leaves_.push_back(Leaf{base::Hold(address)});
      ++unreached;
    }
    set.push_back(known->second);
  }
  std::sort(set.begin(), set.end());
  set.erase(std::unique(set.begin(), set.end()), set.end());
  size_t hash = set.size();
  for (uint32_t leaf : set) {
    hash = c10::hash_combine(hash, leaf);
  }
  const auto [first, last] = numbers_.equal_range(hash);
  for (auto known = first; known != last; ++known) {
    if (*set_of(known->second) == set) {
      return known->second;
    }
  }
  indices_ += set.size();
  sets_.push_back(std::move(set));
  const auto number = forgotten_ + static_cast<uint32_t>(sets_.size());
  numbers_.emplace(hash, number);
  return number;
}

// What is known of the leaves that live stays: one that a backward has reached was reached.
void LeafSets::make_room() {
  forgotten_ += static_cast<uint32_t>(sets_.size());
  sets_.clear();
  numbers_.clear();
  indices_ = 0;
  by_address_.clear();
  std::vector<Leaf> living;
  size_t awaited = 0;
  for (Leaf& leaf : leaves_) {
    if (!leaf.hold.is_dead()) {
      by_address_.emplace(leaf.hold.target(), static_cast<uint32_t>(living.size()));
      awaited += !leaf.is_reached;
      living.push_back(std::move(leaf));
    }
  }
  leaves_.swap(living);
  starved_count = static_cast<size_t>(std::count_if(
      leaves_.begin(), leaves_.end(), [](const Leaf& leaf) { return leaf.is_starved; }));
  unreached = awaited;
}

bool LeafSets::are_reached(uint32_t set) const {
  const std::vector<uint32_t>* indices = set_of(set);
  return indices == nullptr || std::all_of(indices->begin(), indices->end(), [&](uint32_t leaf) {
           return leaves_[leaf].is_reached;
         });
}

void LeafSets::reached(const c10::TensorImpl& leaf, uint64_t thread) {
  const auto known = by_address_.find(as_target(leaf));
  if (known == by_address_.end()) {
    return;
  }
  Leaf& at = leaves_[known->second];
  if (at.is_starved && at.starved_by != thread) {
    at.is_starved = false;
    --starved_count;
  }
  if (!at.is_reached && !at.is_starved) {
    at.is_reached = true;
    --unreached;
  }
}

void LeafSets::starved(const c10::TensorImpl& leaf, uint64_t thread) {
  (void)number_of({&leaf});
  const auto known = by_address_.find(as_target(leaf));
  if (known == by_address_.end() || leaves_[known->second].is_starved) {
    return;
  }
  Leaf& at = leaves_[known->second];
  unreached += at.is_reached;
  at.is_reached = false;
  at.is_starved = true;
  at.starved_by = thread;
  ++starved_count;
}

void LeafSets::look_at_starved(uint64_t thread, Kept& kept) {
  for (Leaf& leaf : leaves_) {
    if (!leaf.is_starved || leaf.starved_by != thread) {
      continue;
    }
    auto alive = leaf.hold.alive();
    if (!alive) {
      leaf.is_starved = false;
      --starved_count;
      continue;
    }
    kept.push_back(std::move(alive));
    const auto* meta = state::autograd_meta(impl_of(leaf.hold));
    if (meta != nullptr && meta->grad_.defined()) {
      leaf.is_starved = false;
      leaf.is_reached = true;
      --starved_count;
      --unreached;
    }
  }
}

std::vector<int64_t> LeafSets::starved_leaves() const {
  std::vector<int64_t> found;
  for (const Leaf& leaf : leaves_) {
    if (leaf.is_starved && !leaf.hold.is_dead()) {
      found.push_back(state::opaque_id(&impl_of(leaf.hold)));
    }
  }
  return found;
}

std::vector<LeafSets::Facts> LeafSets::facts_of(uint32_t set) const {
  std::vector<Facts> found;
  if (const std::vector<uint32_t>* indices = set_of(set)) {
    for (uint32_t index : *indices) {
      const Leaf& leaf = leaves_[index];
      found.push_back(
          Facts{state::opaque_id(&impl_of(leaf.hold)), leaf.is_reached, !leaf.hold.is_dead()});
    }
  }
  return found;
}

bool LeafSets::is_reached(int64_t tensor) const {
  const auto known = by_address_.find(as_target(*reinterpret_cast<const c10::TensorImpl*>(tensor)));
  return known != by_address_.end() && leaves_[known->second].is_reached;
}

const c10::TensorImpl* LeafSets::living(int64_t tensor) const {
  const auto* impl = reinterpret_cast<const c10::TensorImpl*>(tensor);
  const auto known = by_address_.find(as_target(*impl));
  return known != by_address_.end() && !leaves_[known->second].hold.is_dead() ? impl : nullptr;
}

void LeafSets::clear() {
  std::vector<Leaf>().swap(leaves_);
  by_address_.clear();
  std::vector<std::vector<uint32_t>>().swap(sets_);
  numbers_.clear();
  indices_ = 0;
  forgotten_ = 0;
  starved_count = 0;
  unreached = 0;
}

}  // namespace gradext::journal
