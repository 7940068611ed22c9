#include "benchmarks/null_launch.h"

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#ifdef GRADEXT_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace gradext::benchmarks {
namespace {

void null_launch_nothing(const at::Tensor& /*self*/) {}

#ifdef GRADEXT_WITH_CUDA
void null_launch(const at::Tensor& self) {
  const c10::cuda::CUDAGuard guard(self.device());
  C10_CUDA_CHECK(null_launch_cuda(c10::cuda::getCurrentCUDAStream().stream()));
}
#endif

}  // namespace

// A CPU has no launch; the op still pays the dispatcher, so a benchmark can subtract it.
TORCH_LIBRARY_IMPL(gradext, CPU, m) {
  m.impl("null_launch", &null_launch_nothing);
}

TORCH_LIBRARY_IMPL(gradext, Meta, m) {
  m.impl("null_launch", &null_launch_nothing);
}

#ifdef GRADEXT_WITH_CUDA
TORCH_LIBRARY_IMPL(gradext, CUDA, m) {
  m.impl("null_launch", &null_launch);
}
#endif

// No output, so nothing to differentiate: without this line torch's autograd fallback would step
// in.
TORCH_LIBRARY_IMPL(gradext, Autograd, m) {
  m.impl("null_launch", torch::CppFunction::makeFallthrough());
}

}  // namespace gradext::benchmarks
