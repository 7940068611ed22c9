// Lets the guard listen in: the recorder calls the functions that are set here and knows nothing of
// who set them. Without a listener it pays one load of an atomic.
#pragma once

#include "stacks/stacks.h"

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>
#include <torch/csrc/autograd/function.h>

#include <Python.h>

#include <atomic>
#include <cstdint>
#include <vector>

namespace gradext::recorder {

struct Taps {
  // Called before the engine runs below these nodes; backward_ended after it has returned. Under
  // the GIL.
  void (*backward_begins)(const std::vector<torch::autograd::Node*>& roots);
  // Throws a Stop where the program is to be stopped; not if the engine has raised.
  void (*backward_ended)(bool may_stop);
  // An autograd.Function has returned this (a tensor, a tuple, anything).
  void (*applied)(PyObject* result);
  // The program got hold of the tensor's memory itself.
  void (*exposed)(const at::Tensor& tensor);
  // A Python thread starts.
  void (*thread_starts)();
};
inline std::atomic<const Taps*> taps{nullptr};

inline const Taps* listener() {
  return taps.load(std::memory_order_acquire);
}

// What the recorder's kernels tell of single ops, to a listener that does not observe all of them
// itself: an observer (at::RecordFunction) costs a small op a fifth of its time.
struct OpTaps {
  // An op has run and may have made nodes, of which `result` may have the last one. `first`:
  // autograd's sequence number when it began; they have this one or a later one.
  void (*ran)(
      c10::ArrayRef<const c10::TensorImpl*> inputs,
      const at::Tensor& result,
      uint64_t first,
      bool is_aten);
  // No op runs on this thread any more.
  void (*all_ended)();
  // These tensors are about to be written, or may be, in a way that their version counters may not
  // show; and that has been done.
  void (*before_write)(c10::ArrayRef<at::Tensor> tensors);
  void (*after_write)(c10::ArrayRef<at::Tensor> tensors);
  // Of views, and of writes by ops that say what they write.
  void (*view_made)(const at::Tensor& of, const at::Tensor& view);
  void (*written)(const at::Tensor& tensor, stacks::StackId stack, uint32_t op);
};
inline std::atomic<const OpTaps*> op_taps{nullptr};

inline const OpTaps* op_listener() {
  return op_taps.load(std::memory_order_acquire);
}

// Ops of this thread that the recorder's kernels are around, each within the one before; counted
// while somebody listens.
inline int& listened_ops() {
  static thread_local int count = 0;
  return count;
}

}  // namespace gradext::recorder
