// Stores Python stacks as a tree of frames under their callers, and gives each frame a number
// (stacks.h). Numbers are never given twice. What no event names and no thread has been seen at for
// a while is forgotten, so that a program that makes new code, or that recurs in ever new ways,
// does not fill the memory; a number that is forgotten means no frame from then on.
#pragma once

#include "base/locks.h"
#include "base/system_memory.h"
#include "stacks/stacks.h"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace gradext::stacks {

using base::FromSystem;

// The caller of the outermost frame kept, where the stack went on.
constexpr StackId kCut = 1;

inline uint64_t mix(uint64_t a, uint64_t b) {
  uint64_t h = a * 0x9e3779b97f4a7c15ull ^ b;
  h ^= h >> 32;
  h *= 0xd6e8feb86659fd93ull;
  return h ^ (h >> 29);
}

class StackTable {
 public:
  static StackTable& get();

  // How often frames have been forgotten. Numbers that were found in an earlier age are asked for
  // again: that is how the table knows which frames are in use.
  uint32_t age() const {
    return age_.load(std::memory_order_acquire);
  }
  bool is_collection_due() const {
    return is_due_.load(std::memory_order_relaxed);
  }
  void set_memory(size_t bytes);

  // The number of the frame under its caller; 0 where the table is full. Without the GIL: it is
  // taken for a code object that is new.
  StackId intern(PyCodeObject* code, int32_t instruction, StackId parent);
  // Keeps the frame although no event names it.
  void pin(StackId stack);
  // Forgets what may be forgotten. `roots`: the stacks that events name.
  void collect(std::vector<StackId>&& roots);

  std::vector<Frame> frames(StackId stack);
  StackId parent(StackId stack);
  PyCodeObject* code(StackId stack);
  StackStats stats();

  // For fork.
  base::Mutex<base::Rank::kStacks>& mutex() {
    return mutex_;
  }

 private:
  struct Node {
    StackId id;
    StackId parent;  // the calling frame
    uint32_t code;   // index into `codes_`
    int32_t instruction;
    uint32_t seen;  // the age in which it was last asked for
  };
  static constexpr uint32_t kNoCode = 0;  // given up: there were too many that nobody else holds

  // Under the mutex:
  const Node* find(StackId stack) const;
  size_t position(StackId stack) const;  // of a number that is known; else nodes_.size()
  size_t slot_of(StackId parent, uint32_t code, int32_t instruction) const;
  void rehash(size_t slots);
  void compact(const std::vector<bool>& kept);
  void count_new(size_t bytes);

  // Under the GIL, not under the mutex:
  uint32_t keep_code(PyCodeObject* code);
  void give_up_codes();
  void release_garbage();

  base::Mutex<base::Rank::kStacks> mutex_;
  std::vector<Node, FromSystem<Node>>
      nodes_;  // by number; a caller's is lower than that of what it calls
  std::vector<uint32_t, FromSystem<uint32_t>>
      slots_;  // open addressing: index into `nodes_` + 1, 0 free
  std::vector<PyCodeObject*, FromSystem<PyCodeObject*>> codes_{nullptr};
  std::unordered_map<PyCodeObject*, uint32_t> code_index_;
  std::vector<PyCodeObject*> garbage_;  // references to give back
  std::unordered_set<StackId> pins_;
  StackId last_ = kCut;
  size_t most_nodes_ = 0;
  size_t most_codes_ = 0;  // that nobody else holds
  size_t interval_ = 0;    // bytes of new frames and code between two collections
  size_t new_bytes_ = 0;
  size_t dropped_ = 0;
  bool are_codes_due_ = false;
  std::atomic<uint32_t> age_{1};
  std::atomic<bool> is_due_{false};
};

}  // namespace gradext::stacks
