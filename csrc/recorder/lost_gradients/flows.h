// Where tensors that carry no gradient come from: the births of inference tensors, and how values
// flowed on after a gradient path was cut. Kernels and hooks append, readers copy out. Holds no
// tensor alive.
#pragma once

#include "journal/journal.h"
#include "journal/live_table.h"
#include "recorder/kernels/kernel_rules.h"

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <atomic>
#include <cstdint>
#include <mutex>

namespace gradext::recorder {

// Which op made the memory of an inference tensor. Known by storage: views of it, and parameters
// made from it, are inference tensors of the same birth.
struct Birth {
  uint64_t order = 0;
  uint64_t number = 0;  // among births and flows
  int64_t tensor = 0;
  StackId stack = 0;
  StackId mode = 0;  // where inference_mode was entered
  uint32_t op = 0;
  uint32_t thread = 0;
  uint32_t has_gradient_behind = 0;  // something that it was computed from required grad
};

enum FlowFlags : uint32_t {
  kCut = 1,          // an input required grad, and the result does not
  kFromPython = 2,   // made from Python's numbers or numpy's memory
  kToPython = 4,     // no result: a value left for Python
  kGradCall = 8,     // a gradient from autograd.grad() without create_graph
  kMerge = 16,       // the result requires grad: a value without gradient was added to it
  kNoGradMode = 32,  // grad mode was off
  kInFunction = 64,  // ... because of the forward() of an autograd.Function
  kInference = 128,  // inference mode was on
  kIsView = 256,
  kWritten = 512,  // the result is an older tensor that was written
  kNotFloating = 1024,
  kSourceIsLeaf = 2048,
  kFromInference = 4096,  // an input was an inference tensor
  kIsNumber = 8192,       // a merge: a term was added to one number, which is computed on with
  // What the value was computed from, however long ago:
  kTaintCut = 1 << 16,
  kTaintGrad = 1 << 17,    // kGradCall
  kTaintPython = 1 << 18,  // kFromPython, and the value had gone there
  kTaintInput = 1 << 19,   // kGradCall, with respect to what is no parameter
};
constexpr uint32_t kTaints = kTaintCut | kTaintGrad | kTaintPython | kTaintInput;

constexpr size_t kMaxParents = 4;

// One result that does not require grad. `parents` are the low halves of the numbers of the births
// and flows of its inputs, 0 where there are fewer.
struct Flow {
  uint64_t order = 0;
  uint64_t number = 0;
  int64_t tensor = 0;            // its address: means this tensor only while it lives
  int64_t source = 0;            // the input that required grad; what a gradient was taken by
  uint64_t source_sequence = 0;  // its node; the new node of a kMerge
  double value = 0;              // of one that went to Python, or came from there
  StackId stack = 0;
  StackId mode = 0;  // where grad mode was switched off
  uint32_t thread = 0;
  uint32_t source_thread = 0;
  uint32_t op = 0;
  uint32_t flags = 0;
  uint32_t parents[kMaxParents] = {};
};

// The last time that a program set `requires_grad` of a tensor itself.
struct FlagChange {
  uint64_t order = 0;
  int64_t tensor = 0;
  StackId stack = 0;
  uint32_t thread = 0;
  uint32_t value = 0;
  uint32_t taints = 0;  // of the tensor's flow at that time
  uint32_t parent = 0;  // that flow
};

class Origins {
 public:
  static Origins& get();
  void set_memory(size_t bytes);
  void clear();
  // In bytes, of what is held now.
  size_t bytes() const;

  // Everything below is guarded by `mutex`.
  std::mutex mutex;
  LiveTable<Birth> births;      // by storage, or by tensor where there is none
  LiveTable<Flow> flows;        // by tensor
  LiveTable<FlagChange> flags;  // by tensor
  Ring<Flow, 256> past;         // flows of tensors that have died, and those without a tensor
  uint64_t last_number = 0;

  const Birth* birth_of(const c10::TensorImpl& impl);
  template <class Visit>
  void each_stack(Visit&& visit) const {
    const auto both = [&](const auto& event) {
      visit(event.stack);
      visit(event.mode);
    };
    births.each_value(both);
    flows.each_value(both);
    past.each(both);
    flags.each_value([&](const FlagChange& event) { visit(event.stack); });
  }
};

// What one event costs. That of a tensor that lives takes an entry of a table, which is a little
// more than this; that of one that has died takes a place in the ring.
constexpr size_t kBirthBytes = sizeof(Birth) + sizeof(Hold) + 4 * sizeof(uint32_t);
constexpr size_t kFlowBytes = sizeof(Flow);

// The inputs of an op, looked at when it has run.
using Inputs = c10::SmallVector<const c10::TensorImpl*, 6>;

void note_results(
    Watch watch, const OpFacts& op, const Inputs& inputs, c10::ArrayRef<at::Tensor> results);
// What apply() of an autograd.Function returned, where it does not require grad.
void note_function_result(uint32_t op, const Inputs& inputs, const at::Tensor& result);
// `self` has been written from `inputs`. Here and below, `stack` is where the op was called, if
// that is known already.
void note_flow_into(
    Watch watch,
    const OpFacts& op,
    const at::Tensor& self,
    const Inputs& inputs,
    StackId stack = 0);
// A view that inherits what is known of its base; or a detach.
void note_view(
    Watch watch,
    const OpFacts& op,
    const at::Tensor& base,
    const at::Tensor& view,
    StackId stack = 0);
// `tensor` had a history, which detach_() has taken from it.
void note_detached(const OpFacts& op, const at::Tensor& tensor);
// `.data`: an alias without history.
void note_alias(uint32_t op, const at::Tensor& of, const at::Tensor& alias);
// An op refused to save or write one of these because it is (or was) an inference tensor.
void note_misuse(const OpFacts& op, const Inputs& inputs, const c10::Error& error);
void note_misuse(uint32_t op, const Inputs& inputs, const std::string& what);

}  // namespace gradext::recorder
