#include "journal/leaf_sets.h"

#include "journal/origins.h"
#include "state/state.h"

#include <algorithm>

namespace gradext::journal {
namespace {

constexpr size_t kMostLeaves = 50'000;
constexpr size_t kMostSets = 1024;

}  // namespace

uint32_t LeafSets::number_of(const std::vector<const c10::TensorImpl*>& leaves) {
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
  if (set.empty()) {
    return 0;
  }
  std::sort(set.begin(), set.end());
  set.erase(std::unique(set.begin(), set.end()), set.end());
  if (const auto known = numbers_.find(set); known != numbers_.end()) {
    return known->second;
  }
  if (sets_.size() >= kMostSets) {
    return 0;
  }
  sets_.push_back(set);
  const auto number = static_cast<uint32_t>(sets_.size());
  numbers_.emplace(std::move(set), number);
  return number;
}

bool LeafSets::are_reached(uint32_t set) const {
  if (set == 0 || set > sets_.size()) {
    return true;
  }
  const auto& indices = sets_[set - 1];
  return std::all_of(
      indices.begin(), indices.end(), [&](uint32_t leaf) { return leaves_[leaf].is_reached; });
}

void LeafSets::reached(const c10::TensorImpl& leaf) {
  const auto known = by_address_.find(as_target(leaf));
  if (known != by_address_.end() && !leaves_[known->second].is_reached) {
    leaves_[known->second].is_reached = true;
    --unreached;
  }
}

std::vector<LeafSets::Facts> LeafSets::facts_of(uint32_t set) const {
  std::vector<Facts> found;
  if (set != 0 && set <= sets_.size()) {
    for (uint32_t index : sets_[set - 1]) {
      const Leaf& leaf = leaves_[index];
      found.push_back(
          Facts{
              state::opaque_id(
                  static_cast<const c10::TensorImpl*>(
                      static_cast<const c10::intrusive_ptr_target*>(leaf.hold.target()))),
              leaf.is_reached,
              !leaf.hold.is_dead()});
    }
  }
  return found;
}

bool LeafSets::is_reached(int64_t tensor) const {
  const auto known = by_address_.find(as_target(*reinterpret_cast<const c10::TensorImpl*>(tensor)));
  return known != by_address_.end() && leaves_[known->second].is_reached;
}

void LeafSets::clear() {
  std::vector<Leaf>().swap(leaves_);
  by_address_.clear();
  sets_.clear();
  numbers_.clear();
  unreached = 0;
}

}  // namespace gradext::journal
