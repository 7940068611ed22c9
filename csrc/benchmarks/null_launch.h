// Declares the null kernel, which is launched and does nothing. It is the template for the next
// kernel (declare here, check and dispatch in .cpp, launch in _cuda.cu, which sees no ATen header)
// and, measured, the cost of a launch that every other kernel's time contains.
#pragma once

#ifdef GRADEXT_WITH_CUDA
#include <cuda_runtime_api.h>

namespace gradext::benchmarks {

// Launches on `stream`, whose device must be current; returns the launch's status.
cudaError_t null_launch_cuda(cudaStream_t stream);

}  // namespace gradext::benchmarks
#endif
