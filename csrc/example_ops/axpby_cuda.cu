// The kernels of axpby. It is bound by memory: 16 bytes a load where the tensors allow it, and
// several loads under way in each thread before the first is needed.
#define GRADEXT_NO_ATEN
#include "example_ops/axpby.h"
#include "example_ops/axpby_math.h"

namespace gradext::example_ops {
namespace {

constexpr int kThreads = 256;
constexpr int kPacks = 4;  // a thread's share

template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T at[kWidth];
};

// Neither pointer is __restrict__: in place `out` is `x`. Each element is read and written by one
// thread, so the order between threads does not matter.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads) axpby_contiguous_kernel(
    const T* x, const T* y, T* out, int64_t count, computed_t<T> a, computed_t<T> b) {
  using P = Pack<T, kWidth>;
  const int64_t packs = count / kWidth;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kThreads * kPacks) + threadIdx.x;
  P xs[kPacks], ys[kPacks];
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const int64_t at = first + k * kThreads;
    if (at < packs) {
      xs[k] = reinterpret_cast<const P*>(x)[at];
      ys[k] = reinterpret_cast<const P*>(y)[at];
    }
  }
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const int64_t at = first + k * kThreads;
    if (at < packs) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        xs[k].at[i] = axpby_one<T>(xs[k].at[i], ys[k].at[i], a, b);
      }
      reinterpret_cast<P*>(out)[at] = xs[k];
    }
  }
  // The few that fill no pack.
  const int64_t rest = packs * kWidth + threadIdx.x;
  if (blockIdx.x == 0 && rest < count) {
    out[rest] = axpby_one<T>(x[rest], y[rest], a, b);
  }
}

template <typename T, typename Index>
__global__ void __launch_bounds__(kThreads) axpby_strided_kernel(
    const uint8_t* x,
    const uint8_t* y,
    uint8_t* out,
    const __grid_constant__ StridedLayout layout,
    int64_t count,
    computed_t<T> a,
    computed_t<T> b) {
  const int64_t place = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (place >= count) {
    return;
  }
  Index left = static_cast<Index>(place);
  Index to = 0, from_x = 0, from_y = 0;
#pragma unroll
  for (int d = 0; d < StridedLayout::kDims; ++d) {
    if (d == layout.dims) {
      break;
    }
    const Index size = static_cast<Index>(layout.sizes[d]);
    const Index next = left / size, here = left - next * size;
    to += here * static_cast<Index>(layout.strides[0][d]);
    from_x += here * static_cast<Index>(layout.strides[1][d]);
    from_y += here * static_cast<Index>(layout.strides[2][d]);
    left = next;
  }
  *reinterpret_cast<T*>(out + to) = axpby_one<T>(
      *reinterpret_cast<const T*>(x + from_x), *reinterpret_cast<const T*>(y + from_y), a, b);
}

bool is_aligned(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

template <typename T, int kWidth>
cudaError_t contiguous(
    const T* x, const T* y, T* out, int64_t count, double a, double b, cudaStream_t stream) {
  using C = computed_t<T>;
  constexpr int64_t kShare = int64_t{kThreads} * kPacks * kWidth;
  const auto grid = static_cast<unsigned>((count + kShare - 1) / kShare);
  axpby_contiguous_kernel<T, kWidth>
      <<<grid, kThreads, 0, stream>>>(x, y, out, count, static_cast<C>(a), static_cast<C>(b));
  return cudaGetLastError();
}

// Calls `run` with a value of the C++ type of the number.
template <typename Run>
cudaError_t with_type(Number number, Run run) {
  switch (number) {
    case Number::kHalf:
      return run(c10::Half());
    case Number::kBFloat16:
      return run(c10::BFloat16());
    case Number::kFloat:
      return run(float());
    default:
      return run(double());
  }
}

}  // namespace

cudaError_t launch_axpby_contiguous(
    Number number,
    const void* x,
    const void* y,
    void* out,
    int64_t count,
    double a,
    double b,
    cudaStream_t stream) {
  if (count == 0) {
    return cudaSuccess;  // a grid of no blocks is an error
  }
  return with_type(number, [&](auto zero) {
    using T = decltype(zero);
    const auto* xs = static_cast<const T*>(x);
    const auto* ys = static_cast<const T*>(y);
    auto* to = static_cast<T*>(out);
    return is_aligned(x) && is_aligned(y) && is_aligned(out)
               ? contiguous<T, static_cast<int>(16 / sizeof(T))>(xs, ys, to, count, a, b, stream)
               : contiguous<T, 1>(xs, ys, to, count, a, b, stream);
  });
}

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
    cudaStream_t stream) {
  if (count == 0) {
    return cudaSuccess;
  }
  return with_type(number, [&](auto zero) {
    using T = decltype(zero);
    using C = computed_t<T>;
    const auto grid = static_cast<unsigned>((count + kThreads - 1) / kThreads);
    const auto kernel =
        is_small ? &axpby_strided_kernel<T, uint32_t> : &axpby_strided_kernel<T, int64_t>;
    kernel<<<grid, kThreads, 0, stream>>>(
        static_cast<const uint8_t*>(x),
        static_cast<const uint8_t*>(y),
        static_cast<uint8_t*>(out),
        layout,
        count,
        static_cast<C>(a),
        static_cast<C>(b));
    return cudaGetLastError();
  });
}

}  // namespace gradext::example_ops
