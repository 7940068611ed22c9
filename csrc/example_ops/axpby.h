// Declares the kernels of axpby, a·x + b·y, for C++ callers. The kernels know nothing of autograd;
// autograd.cpp has what the dispatch keys above them do.
#pragma once

#include <cstdint>

#ifdef GRADEXT_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

#ifndef GRADEXT_NO_ATEN  // the .cu includes no ATen header
#include <ATen/core/Tensor.h>
#endif

namespace gradext::example_ops {

#ifndef GRADEXT_NO_ATEN
// CPU and CUDA. Raise c10::Error, one line, for other devices, dtypes that differ or have no
// kernel, shapes that do not broadcast, and memory that overlaps where it may not.
at::Tensor axpby(const at::Tensor& x, const at::Tensor& y, double a, double b);
void axpby_(at::Tensor& x, const at::Tensor& y, double a, double b);
#endif

#ifdef GRADEXT_WITH_CUDA
// --- The kernels (axpby_cuda.cu). Plain pointers only; the device must be current. ---

enum class Number : uint8_t { kHalf, kBFloat16, kFloat, kDouble };

// Where the elements lie: dimension 0 is the fastest; strides in bytes, of (out, x, y).
struct StridedLayout {
  static constexpr int kDims = 25;  // as many as torch's own kernels take; 800 bytes of arguments
  int dims = 0;
  int64_t sizes[kDims] = {};
  int64_t strides[3][kDims] = {};
};

// `count` real numbers, each tensor without gaps. `out` may be `x`.
cudaError_t launch_axpby_contiguous(
    Number number,
    const void* x,
    const void* y,
    void* out,
    int64_t count,
    double a,
    double b,
    cudaStream_t stream);
// `is_small`: all offsets and the count fit in 32 bits.
cudaError_t launch_axpby_strided(
    Number number,
    const void* x,
    const void* y,
    void* out,
    const StridedLayout& layout,
    int64_t count,
    bool is_small,
    double a,
    double b,
    cudaStream_t stream);
#endif

}  // namespace gradext::example_ops
