// Keeps what the recorder remembers of each thread: the writing op that runs, where grad mode was
// switched off, the values that have left for Python, the thread's saves.
#pragma once

#include "base/hold.h"
#include "journal/journal.h"
#include "recorder/op_facts.h"

#include <ATen/record_function.h>
#include <c10/core/AutogradState.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
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
  // The program may not have meant to cut the gradient: a bare call may have been left on, a
  // generator may wait within its block, and what a distribution draws has its own block in
  // sample().
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
  StackId made = 0;  // where the tensor itself had come from Python
  // The memory that numpy was given: an origin lives as long as its memory, and no longer.
  const char* begin = nullptr;
  const char* end = nullptr;
  std::shared_ptr<base::Hold> storage;
};

// torch's own state of this thread, by its address: a kernel asks for it several times, and each
// time torch would look for it in another library.
class TorchState {
 public:
  const c10::AutogradState& mode() const {
    return *mode_;
  }
#if defined(_MSC_VER)  // which has no thread-local variables in the interface of a library
  c10::DispatchKeySet included() const {
    return c10::impl::tls_local_dispatch_key_set().included_;
  }
  c10::DispatchKeySet excluded() const {
    return c10::impl::tls_local_dispatch_key_set().excluded_;
  }
  void set_excluded(c10::DispatchKeySet keys) {
    c10::impl::LocalDispatchKeySet both = c10::impl::tls_local_dispatch_key_set();
    both.excluded_ = keys;
    c10::impl::_force_tls_local_dispatch_key_set(both);
  }
#else
  c10::DispatchKeySet included() const {
    return keys_->included();
  }
  c10::DispatchKeySet excluded() const {
    return keys_->excluded();
  }
  void set_excluded(c10::DispatchKeySet keys) {
    keys_->set_excluded(keys);
  }
#endif

 private:
  const c10::AutogradState* mode_ = &c10::AutogradState::get_tls_state();
#if !defined(_MSC_VER)
  c10::impl::PODLocalDispatchKeySet* keys_ = &c10::impl::raw_local_dispatch_key_set;
#endif
};

struct ThreadState {
  TorchState torch;
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

inline ThreadState& new_thread_state() {
  static thread_local ThreadState state;
  return state;
}

// A pointer that begins as null is found with one look; what has a constructor takes two.
inline ThreadState& thread_state() {
  static thread_local ThreadState* known = nullptr;
  if (C10_UNLIKELY(known == nullptr)) {
    known = &new_thread_state();
  }
  return *known;
}

}  // namespace gradext::recorder
