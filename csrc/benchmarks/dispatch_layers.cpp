// The same ops with layers left out, so that the cost of each layer is a difference of two times
// (benchmarks/layers.py). They lie to autograd, ON PURPOSE: what no_autograd returns is cut off the
// graph, what no_adinplaceorview writes is counted by nobody. No program should call them.
//
//                         Autograd   ADInplaceOrView   kernel
//   axpby                 yes        (none needed)     yes
//   ..._no_autograd       -          yes               yes
//   ..._no_adinplaceorview -         -                 yes
//   ..._empty             -          -                 the launch of a kernel that does nothing
//   ..._nothing           -          -                 returns at once
#include "benchmarks/null_launch.h"
#include "example_ops/autograd.h"
#include "example_ops/axpby.h"
#include "example_ops/window.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/library.h>

#ifdef GRADEXT_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace gradext::benchmarks {

using namespace example_ops;

namespace {

// The ADInplaceOrView kernels of autograd.cpp, on their way to an op without an Autograd kernel.
void inplace_no_autograd_count(
    c10::DispatchKeySet keys, at::Tensor& x, const at::Tensor& y, double a, double b) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("gradext::axpby_inplace_no_autograd", "")
                             .typed<void(at::Tensor&, const at::Tensor&, double, double)>();
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    op.redispatch(keys & c10::after_ADInplaceOrView_keyset, x, y, a, b);
  }
  torch::autograd::increment_version(x);
}

at::Tensor window_no_autograd_track(
    c10::DispatchKeySet keys, const at::Tensor& x, int64_t dim, int64_t start, int64_t length) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("gradext::window_no_autograd", "")
                             .typed<at::Tensor(const at::Tensor&, int64_t, int64_t, int64_t)>();
  const at::Tensor result = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return op.redispatch(keys & c10::after_ADInplaceOrView_keyset, x, dim, start, length);
  }();
  return track_window(x, result, dim, start, length);
}

void axpby_nothing(const at::Tensor& /*x*/, const at::Tensor& /*y*/, double /*a*/, double /*b*/) {}

void window_nothing(
    const at::Tensor& /*x*/, int64_t /*dim*/, int64_t /*start*/, int64_t /*length*/) {}

#ifdef GRADEXT_WITH_CUDA
void launch_on(const at::Tensor& x) {
  const c10::cuda::CUDAGuard guard(x.device());
  C10_CUDA_CHECK(null_launch_cuda(c10::cuda::getCurrentCUDAStream().stream()));
}

void axpby_launch(const at::Tensor& x, const at::Tensor& /*y*/, double /*a*/, double /*b*/) {
  launch_on(x);
}

void window_launch(const at::Tensor& x, int64_t /*dim*/, int64_t /*start*/, int64_t /*length*/) {
  launch_on(x);
}
#endif

void add_kernels(torch::Library& m) {
  m.impl("axpby_no_autograd", &axpby);
  m.impl("axpby_no_adinplaceorview", &axpby);
  m.impl("axpby_nothing", &axpby_nothing);
  m.impl("axpby_inplace_no_autograd", &axpby_);
  m.impl("axpby_inplace_no_adinplaceorview", &axpby_);
  m.impl("axpby_inplace_nothing", &axpby_nothing);
  m.impl("window_no_autograd", &window);
  m.impl("window_no_adinplaceorview", &window);
  m.impl("window_nothing", &window_nothing);
}

}  // namespace

TORCH_LIBRARY_IMPL(gradext, CPU, m) {
  add_kernels(m);
  // A CPU has no launch.
  m.impl("axpby_empty", &axpby_nothing);
  m.impl("axpby_inplace_empty", &axpby_nothing);
  m.impl("window_empty", &window_nothing);
}

#ifdef GRADEXT_WITH_CUDA
TORCH_LIBRARY_IMPL(gradext, CUDA, m) {
  add_kernels(m);
  m.impl("axpby_empty", &axpby_launch);
  m.impl("axpby_inplace_empty", &axpby_launch);
  m.impl("window_empty", &window_launch);
}
#endif

// Not registering a kernel is not enough to leave Autograd out: for an op that has none torch puts
// one of its own there, which warns when backward comes through.
TORCH_LIBRARY_IMPL(gradext, Autograd, m) {
  for (const char* base : {"axpby", "axpby_inplace", "window"}) {
    for (const char* stop : {"_no_autograd", "_no_adinplaceorview", "_empty", "_nothing"}) {
      const std::string name = std::string(base) + stop;
      m.impl(name.c_str(), torch::CppFunction::makeFallthrough());
    }
  }
}

TORCH_LIBRARY_IMPL(gradext, ADInplaceOrView, m) {
  m.impl("axpby_inplace_no_autograd", &inplace_no_autograd_count);
  m.impl("window_no_autograd", &window_no_autograd_track);
}

}  // namespace gradext::benchmarks
