// Keeps what the recorder remembers of each thread: the writing op that runs, where grad mode was
// switched off, the values that have left for Python, the thread's saves.
#pragma once

#include "base/hold.h"
#include "journal/journal.h"
#include "recorder/op_facts.h"

#include <ATen/record_function.h>
#include <c10/util/SmallVector.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace gradext::recorder {

using journal::SaveLog;
using stacks::StackId;

// A writing op that is running on this thread.
struct Enclosing {
  const OpFacts* op;
  uint32_t inner_op = 0;
  const void* const* counters = nullptr;
  size_t counter_count = 0;
  Enclosing* outer;
  bool is_wrapper = false;  // its ops on the tensor inside are writes of their own
};

// Where this thread's grad mode was switched off.
struct GradModeOff {
  StackId stack = 0;
  bool in_function = false;  // by the forward() of an autograd.Function
  // Perhaps nobody means a constant: a bare call may have been left on, a generator may wait within
  // its block, and what a distribution draws has its own block in sample().
  bool is_doubtful = false;
};

// A `with` block that set grad mode, whether or not that changed it.
struct GradModeBlock {
  const void* frame = nullptr;  // that has the block
  GradModeOff before;
};

// A value that went to Python.
struct Exit {
  uint64_t number = 0;  // of its flow
  double value = 0;     // NaN: it was not one number
  int64_t numel = 0;
  uint64_t epoch = 0;
  uint64_t recording = 0;
  // The memory that numpy was given: an origin lives as long as its memory, and no longer.
  const char* begin = nullptr;
  const char* end = nullptr;
  std::shared_ptr<base::Hold> storage;
};

struct ThreadState {
  uint64_t id = at::RecordFunction::currentThreadId();
  Enclosing* enclosing = nullptr;
  int watched_ops = 0;  // that are running, each within the one before
  GradModeOff off;
  c10::SmallVector<GradModeBlock, 4> blocks;
  // By the last call if it was no block's: set_grad_enabled() sets the mode before its block
  // begins.
  GradModeBlock last_set;
  uint64_t grad_mode_recording = 0;  // what these are from
  std::vector<StackId>
      inference;               // where inference mode was entered; 0: where it was left for a while
  std::array<Exit, 64> exits;  // the latest values that have left the graph for Python
  size_t exit_count = 0;
  uint64_t epoch = 0;  // calls of backward so far
  std::shared_ptr<SaveLog> log;
  ~ThreadState() {
    if (log) {
      log->alive = false;
    }
  }
};

inline ThreadState& thread_state() {
  static thread_local ThreadState state;
  return state;
}

}  // namespace gradext::recorder
