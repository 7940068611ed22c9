// What every kernel on the recorder's key shares: the state of a recording thread and the short way
// past it. Internal to recorder/; observer.cpp says what is done when there is something to do.
#pragma once

#include "base/aside.h"
#include "recorder/switch.h"

#include <ATen/SavedTensorHooks.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/PythonDispatcherTLS.h>
#include <c10/util/SmallVector.h>
#include <torch/csrc/autograd/function.h>
#include <torch/library.h>

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

namespace gradext::recorder {

using torch::jit::Stack;

// What a schema says of an op, as far as the recorder cares.
struct OpFacts {
  uint32_t name = 0;
  size_t arguments = 0;
  std::vector<uint16_t> written;
  bool metadata_only = false;
  bool is_aten = false;
  bool makes_views = false;
  bool makes_many_views = false;
  bool writes_lists = false;   // as the ops of optimizers do
  bool detaches = false;       // detach_
  bool is_factory = false;     // takes no tensor
  bool carries_data = true;    // false: only shape and type of its inputs matter (zeros_like)
  bool gives_indices = false;  // beside its first result
  bool is_scaling = false;     // mul, div: a number without gradient is a weight
  bool is_additive = false;    // a term of a loss goes in, the loss comes out
};

// A writing op that is running on this thread.
struct Enclosing {
  const OpFacts* op;
  uint32_t inner_op = 0;
  const void* const* counters = nullptr;
  size_t counter_count = 0;
  Enclosing* outer;
  bool is_wrapper = false;  // its ops on the tensor inside are writes of their own
};

// How often recording has ended: what a thread remembers from before it means nothing.
extern std::atomic<uint64_t> ended_recordings;

// Where this thread's grad mode was switched off.
struct GradModeOff {
  StackId stack = 0;
  bool in_function = false;  // by the forward() of an autograd.Function
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

// Read by every kernel, so not behind a function.
extern std::atomic<int> recordings;
extern std::atomic<int> recordings_with_saves;
// Whether births of inference tensors, and cuts of gradient paths, are recorded: bits of Wanted.
extern std::atomic<uint32_t> origins_wanted;
enum Wanted : uint32_t { kBirthsWanted = 1, kCutsWanted = 2 };

inline bool births_are_on() {
  return (origins_wanted.load(std::memory_order_relaxed) & kBirthsWanted) != 0;
}
inline bool cuts_are_on() {
  return (origins_wanted.load(std::memory_order_relaxed) & kCutsWanted) != 0;
}

uint32_t intern_name(const std::string& name);
std::mutex& names_mutex();

template <c10::DispatchKey key>
inline c10::DispatchKeySet below(c10::DispatchKeySet keys) {
  return keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, key);
}

// Python chooses the kernels (tracing); a redispatch from C++ would go past its choice.
inline bool python_dispatches() {
  return C10_UNLIKELY(c10::impl::PythonDispatcherTLS::get_state() != nullptr);
}

// The recording is over: take the keys off this thread. False while one is on.
bool must_leave();

// An op that may make graph nodes is about to run on this thread.
inline void before_nodes(c10::DispatchKeySet keys) {
  if (c10::GradMode::is_enabled() && keys.has_any(c10::autograd_dispatch_keyset)) {
    if (recordings_with_saves.load(std::memory_order_relaxed) > 0) {
      note_nodes();
    } else {
      must_leave();
    }
  }
}

// Whether the op is called from the kernel of another, below autograd. The thread is asked only
// where the op's keys do not say it.
inline bool is_below_autograd(c10::DispatchKeySet keys) {
  return !keys.has(c10::DispatchKey::ADInplaceOrView) &&
         c10::impl::tls_is_dispatch_key_excluded(c10::DispatchKey::ADInplaceOrView);
}

// Whether a view that is about to be made will not be remembered by a node of its own. In backward
// nothing that is made lives long enough to be asked about.
inline bool view_is_wanted(
    const ThreadState& thread, c10::DispatchKeySet keys, bool is_one_of_many) {
  const c10::AutogradState& mode = c10::AutogradState::get_tls_state();
  if (C10_LIKELY(mode.get_grad_mode() && !is_one_of_many && !mode.get_inference_mode())) {
    return false;
  }
  return recordings.load(std::memory_order_relaxed) > 0 && thread.enclosing == nullptr &&
         thread.watched_ops == 0 && !is_below_autograd(keys) &&
         !torch::autograd::get_current_node();
}

// What is to be noted of the results of an op that is about to run on this thread.
enum class Watch : uint8_t {
  kNone,
  kBirths,  // inference mode is on
  kGrad,    // grad mode is on
  kNoGrad,  // it is off, and this is no backward
};

inline Watch how_to_watch(
    const ThreadState& thread, c10::DispatchKeySet keys, bool is_factory = false) {
  const uint32_t wanted = origins_wanted.load(std::memory_order_relaxed);
  // Within another op's kernel nothing that is made is seen by the program.
  if (wanted == 0 || thread.watched_ops > 0) {
    return Watch::kNone;
  }
  const c10::AutogradState& mode = c10::AutogradState::get_tls_state();
  if (mode.get_inference_mode()) {
    return (wanted & kBirthsWanted) != 0 ? Watch::kBirths : Watch::kNone;
  }
  // Python's factories call theirs below autograd.
  if ((wanted & kCutsWanted) == 0 || (!is_factory && is_below_autograd(keys))) {
    return Watch::kNone;
  }
  if (C10_LIKELY(mode.get_grad_mode())) {
    return Watch::kGrad;
  }
  return torch::autograd::get_current_node() ? Watch::kNone : Watch::kNoGrad;
}

// While it lives, the ops that this thread runs belong to the one that it stands for. Ops of the
// program's own are made of what the program wants to know about, and are no such bracket.
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
inline bool is_closed(const OpFacts& op, c10::DispatchKeySet keys) {
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
         (!c10::GradMode::is_enabled() ||
          at::SavedTensorDefaultHooks::get_tls_state().stack.empty());
}

// While it lives, ops of this thread do not come to the recorder: on the way through the kernels of
// an op that is_closed(), that would cost as much as the op itself.
class Closed {
 public:
  Closed(const OpFacts& op, c10::DispatchKeySet keys) {
    if (is_closed(op, keys)) {
      without_.emplace(c10::DispatchKeySet({kKey, kNodeKey}));
    }
  }

 private:
  std::optional<c10::impl::ExcludeDispatchKeyGuard> without_;
};

// Tensors that stand for others while a program is traced are no memory of the program's. A fake
// tensor's own keys name the device that it stands for; its storage does not.
bool is_stand_in(const c10::TensorImpl& impl);
// A tensor of vmap's: the write goes on to the tensor inside it, which has a counter of its own.
bool stands_on_another(const c10::TensorImpl& impl);

// One tensor that an op is about to write.
struct Target {
  at::Tensor tensor;
  const void* counter;
  const c10::StorageImpl* storage;
  Extent extent;
  int64_t version;
  uint16_t argument;
  bool had_node;  // it was no leaf
};

using Targets = c10::SmallVector<Target, 2>;

void add_target(Targets& targets, const at::Tensor& tensor, uint16_t argument);
void add_targets(Targets& targets, const OpFacts& op, const Stack& stack);

// Keeps the op's name if it writes what the op around it writes.
void name_inner_op(Enclosing& around, const OpFacts& op, const at::Tensor* written);

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
      is_below_autograd(keys)) {
    if (around != nullptr) {
      name_inner_op(*around, op, written);
    }
    return false;
  }
  return !must_leave();
}

// Around one writing op: begin(), run the op, end() or refused().
class WriteScope {
 public:
  WriteScope(ThreadState& thread, const OpFacts& op)
      : thread_(thread), enclosing_{&op, 0, nullptr, 0, thread_.enclosing, false} {}
  WriteScope(const WriteScope&) = delete;
  WriteScope& operator=(const WriteScope&) = delete;
  ~WriteScope();
  void begin();
  void end();
  void refused(const c10::Error& error);
  // Where the op was called; 0 where it writes nothing.
  StackId stack() const {
    return stack_;
  }

  Targets targets;

 private:
  ThreadState& thread_;
  Enclosing enclosing_;
  c10::SmallVector<const void*, 2> counters_;
  StackId stack_ = 0;
  bool is_open_ = false;
};

void record_view(uint32_t op, const at::Tensor& tensor, StackId stack);
StackId current_stack();

// Kernels for every op, over the boxed arguments.
torch::CppFunction boxed_write(std::unique_ptr<OpFacts> facts);
torch::CppFunction boxed_view(std::unique_ptr<OpFacts> facts);
torch::CppFunction boxed_result(std::unique_ptr<OpFacts> facts);
// For ops that are registered after register_kernels().
torch::CppFunction boxed_fallback();
std::unique_ptr<OpFacts> facts_of(const c10::FunctionSchema& schema);

// Once per process, at the first recording (registration.cpp).
void register_kernels();
void register_fork_handlers();

// Kernels without boxing for the ops of every program, by their full names.
using FastKernel = std::function<torch::CppFunction(std::unique_ptr<OpFacts>)>;
using FastKernels = std::unordered_map<std::string, FastKernel>;
FastKernels fast_kernels();

}  // namespace gradext::recorder
