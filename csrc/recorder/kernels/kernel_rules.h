// Decides for every kernel on the recorder's keys whether the recording wants anything of the op
// that is about to run; if not, the kernel goes straight to the op.
#pragma once

#include "recorder/op_facts.h"
#include "recorder/record_nodes.h"
#include "recorder/record_writes.h"
#include "recorder/switch.h"
#include "recorder/thread_state.h"

#include <ATen/SavedTensorHooks.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/PythonDispatcherTLS.h>
#include <torch/csrc/autograd/function.h>

namespace gradext::recorder {

template <c10::DispatchKey key>
inline c10::DispatchKeySet below(c10::DispatchKeySet keys) {
  return keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, key);
}

// Python chooses the kernels (tracing); a redispatch from C++ would go past its choice.
inline bool python_dispatches(const ThreadState& thread) {
  return C10_UNLIKELY(thread.torch.included().has(c10::DispatchKey::PythonDispatcher)) &&
         c10::impl::PythonDispatcherTLS::get_state() != nullptr;
}

// An op that may make graph nodes is about to run on this thread.
inline void before_nodes(const ThreadState& thread, c10::DispatchKeySet keys) {
  if (thread.torch.mode().get_grad_mode() && keys.has_any(c10::autograd_dispatch_keyset)) {
    if (recordings_with_saves.load(std::memory_order_relaxed) > 0) {
      note_nodes();
    } else {
      must_leave();
    }
  }
}

// Whether the op is called from the kernel of another, below autograd. The thread is asked only
// where the op's keys do not say it.
inline bool is_below_autograd(const ThreadState& thread, c10::DispatchKeySet keys) {
  return !keys.has(c10::DispatchKey::ADInplaceOrView) &&
         thread.torch.excluded().has(c10::DispatchKey::ADInplaceOrView);
}

// Whether a view that is about to be made will not be remembered by a node of its own. In backward
// nothing that is made lives long enough to be asked about.
inline bool view_is_wanted(
    const ThreadState& thread, c10::DispatchKeySet keys, bool is_one_of_many) {
  const c10::AutogradState& mode = thread.torch.mode();
  if (C10_LIKELY(mode.get_grad_mode() && !is_one_of_many && !mode.get_inference_mode())) {
    return false;
  }
  return recordings.load(std::memory_order_relaxed) > 0 && thread.enclosing == nullptr &&
         thread.watched_ops == 0 && !is_below_autograd(thread, keys) &&
         !torch::autograd::get_current_node();
}

inline Watch how_to_watch(
    const ThreadState& thread, c10::DispatchKeySet keys, bool is_factory = false) {
  const uint32_t wanted = origins_wanted.load(std::memory_order_relaxed);
  // Within another op's kernel nothing that is made is seen by the program.
  if (wanted == 0 || thread.watched_ops > 0) {
    return Watch::kNone;
  }
  const c10::AutogradState& mode = thread.torch.mode();
  if (mode.get_inference_mode()) {
    return (wanted & kBirthsWanted) != 0 ? Watch::kBirths : Watch::kNone;
  }
  // Python's factories call theirs below autograd.
  if ((wanted & kCutsWanted) == 0 || (!is_factory && is_below_autograd(thread, keys))) {
    return Watch::kNone;
  }
  if (C10_LIKELY(mode.get_grad_mode())) {
    return Watch::kGrad;
  }
  return torch::autograd::get_current_node() ? Watch::kNone : Watch::kNoGrad;
}

// While it lives, the ops that this thread runs are parts of the op that it stands for. Custom
// (non-aten) ops do not count as enclosing: the aten ops inside them are user code and are
// recorded.
class WatchedOp {
 public:
  WatchedOp(ThreadState& thread, const OpFacts& op)
      : count_(thread.watched_ops), step_(op.is_aten) {
    count_ += step_;
  }
  WatchedOp(const WatchedOp&) = delete;
  WatchedOp& operator=(const WatchedOp&) = delete;
  ~WatchedOp() {
    count_ -= step_;
  }

 private:
  int& count_;
  int step_;
};

// Whether nothing that runs within this op of torch's own is the program's: no tensor or mode hands
// its ops to Python or to a transform, and no hook is called for what it saves. Then the ops that
// it is made of make no event: their nodes are made at the line of this op, their results and
// writes belong to it.
inline bool is_closed(const ThreadState& thread, const OpFacts& op, c10::DispatchKeySet keys) {
  using Key = c10::DispatchKey;
  constexpr c10::DispatchKeySet kOpen(
      {Key::Python,
       Key::PythonTLSSnapshot,
       Key::PythonDispatcher,
       Key::PreDispatch,
       Key::Functionalize,
       Key::FuncTorchBatched,
       Key::FuncTorchVmapMode,
       Key::FuncTorchGradWrapper,
       Key::FuncTorchDynamicLayerFrontMode,
       Key::FuncTorchDynamicLayerBackMode});
  return op.is_aten && !keys.has_any(kOpen) &&
         (!thread.torch.mode().get_grad_mode() ||
          at::SavedTensorDefaultHooks::get_tls_state().stack.empty());
}

// While it lives, ops of this thread do not come to the recorder: on the way through the kernels of
// an op that is_closed(), that would cost as much as the op itself.
class Closed {
 public:
  Closed(ThreadState& thread, const OpFacts& op, c10::DispatchKeySet keys) : torch_(thread.torch) {
    if (is_closed(thread, op, keys)) {
      const c10::DispatchKeySet excluded = torch_.excluded();
      added_ = c10::DispatchKeySet({kKey, kNodeKey}) - excluded;
      torch_.set_excluded(excluded | added_);
    }
  }
  Closed(const Closed&) = delete;
  Closed& operator=(const Closed&) = delete;
  ~Closed() {
    torch_.set_excluded(torch_.excluded() - added_);
  }

 private:
  TorchState& torch_;
  c10::DispatchKeySet added_;
};

// False within the kernel of another op, which fills its own result, works on aliases of its own,
// or does what the op around it is recorded for.
inline bool write_is_wanted(
    const ThreadState& thread,
    const OpFacts& op,
    c10::DispatchKeySet keys,
    const at::Tensor* written) {
  Enclosing* around = thread.enclosing;
  if ((thread.watched_ops > 0 && around == nullptr) ||
      (around != nullptr && around->op->is_aten && !around->is_wrapper) ||
      is_below_autograd(thread, keys)) {
    if (around != nullptr) {
      name_inner_op(*around, op, written);
    }
    return false;
  }
  return !must_leave();
}

}  // namespace gradext::recorder
