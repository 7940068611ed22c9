// Lets the guard listen in: the recorder calls the functions that are set here and knows nothing of
// who set them. Without a listener it pays one load of an atomic.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function.h>

#include <Python.h>

#include <atomic>
#include <vector>

namespace gradext::recorder {

struct Taps {
  // The engine is about to run below these nodes; and has returned. Under the GIL.
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

}  // namespace gradext::recorder
