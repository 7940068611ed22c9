// Records writes: what each writing op wrote, what torch refused to write, the views that no graph
// node remembers, and Python calls that move a version counter.
#pragma once

#include "recorder/before_writes.h"
#include "recorder/switch.h"
#include "recorder/thread_state.h"

#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>
#include <c10/util/SmallVector.h>

#include <cstdint>
#include <string>

namespace gradext::recorder {

struct OpTaps;
using torch::jit::Stack;

// One tensor that an op is about to write.
struct Target {
  at::Tensor tensor;
  const void* counter;
  const c10::StorageImpl* storage;
  Extent extent;
  int64_t version;
  uint16_t argument;
  bool had_node;     // it was no leaf
  BeforePtr before;  // what was there, where a version counter may not see the write
};

using Targets = c10::SmallVector<Target, 2>;

// The bytes of a tensor; nothing where it has none that could be told.
Extent extent_of(const c10::TensorImpl& impl);

void add_target(Targets& targets, const at::Tensor& tensor, uint16_t argument);
void add_targets(Targets& targets, const OpFacts& op, const Stack& stack);

// Keeps the op's name if it writes what the op around it writes.
void name_inner_op(Enclosing& around, const OpFacts& op, const at::Tensor* written);

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
  void tell_written(const OpTaps& taps);

  ThreadState& thread_;
  Enclosing enclosing_;
  c10::SmallVector<const void*, 2> counters_;
  StackId stack_ = 0;
  uint64_t sequence_ = 0;  // autograd's number when the op began
  bool is_open_ = false;
};

void record_view(uint32_t op, const at::Tensor& tensor, StackId stack);

// A Python call that moves the tensor's counter without an op.
void note(const std::string& name, const at::Tensor& tensor);
// The program has given the tensor other memory (`tensor.data = other`), past its counter.
void note_exchange(uint32_t name, const at::Tensor& tensor);

}  // namespace gradext::recorder
