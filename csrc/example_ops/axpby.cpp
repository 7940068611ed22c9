// The backend of axpby: what it takes, the CPU's loop, the way to the CUDA kernel. Shapes,
// broadcasting, the output's memory and the overlap checks are TensorIterator's, as in torch's own
// pointwise ops. Nothing here knows of autograd: its keys have been dealt with (autograd.cpp).
#include "example_ops/axpby.h"

#include "example_ops/axpby_math.h"

#include <ATen/TensorIterator.h>
#include <torch/library.h>

#include <string>

#ifdef GRADEXT_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace gradext::example_ops {
namespace {

// The dtype of the real numbers that the elements are made of.
std::optional<c10::ScalarType> number_of(c10::ScalarType dtype) {
  switch (dtype) {
    case c10::kHalf:
    case c10::kBFloat16:
    case c10::kFloat:
    case c10::kDouble:
      return dtype;
    case c10::kComplexFloat:
      return c10::kFloat;
    case c10::kComplexDouble:
      return c10::kDouble;
    default:
      return std::nullopt;
  }
}

void check_pair(const at::Tensor& x, const at::Tensor& y) {
  TORCH_CHECK_VALUE(x.defined() && y.defined(), "gradext::axpby: expected two tensors, got None");
  TORCH_CHECK_VALUE(
      x.device() == y.device(),
      "gradext::axpby: x is on ",
      x.device(),
      ", y on ",
      y.device(),
      "; both must be on one device");
  TORCH_CHECK_VALUE(
      x.scalar_type() == y.scalar_type(),
      "gradext::axpby: x is ",
      x.scalar_type(),
      ", y is ",
      y.scalar_type(),
      "; both must have one dtype");
  TORCH_CHECK_VALUE(
      number_of(x.scalar_type()).has_value(),
      "gradext::axpby: no kernel for ",
      x.scalar_type(),
      "; it takes float16, bfloat16, float32, float64, complex64 and complex128");
}

// An undefined `out` is allocated, in the layout that torch's own x + y would have.
at::TensorIterator iterator(const at::Tensor& out, const at::Tensor& x, const at::Tensor& y) {
  return at::TensorIteratorConfig()
      .add_owned_output(out)
      .add_owned_const_input(x)
      .add_owned_const_input(y)
      .check_all_same_dtype(false)  // checked, with a message that names both
      .declare_static_dtype_and_device(x.scalar_type(), x.device())
      .set_check_mem_overlap(true)
      .resize_outputs(false)  // in place only y may broadcast
      .build();
}

template <typename T>
struct Complex {
  T real, imaginary;
};

template <typename T>
T element(T x, T y, computed_t<T> a, computed_t<T> b) {
  return axpby_one(x, y, a, b);
}

template <typename T>
Complex<T> element(Complex<T> x, Complex<T> y, T a, T b) {
  return {axpby_one(x.real, y.real, a, b), axpby_one(x.imaginary, y.imaginary, a, b)};
}

// A row of elements: where out, x and y begin, and how many bytes apart their elements are.
template <typename E, typename C>
void row(char* out, char* x, char* y, const int64_t* strides, int64_t count, C a, C b) {
  constexpr int64_t kSize = sizeof(E);
  if (strides[0] == kSize && strides[1] == kSize && strides[2] == kSize) {
    auto* to = reinterpret_cast<E*>(out);
    const auto* xs = reinterpret_cast<const E*>(x);
    const auto* ys = reinterpret_cast<const E*>(y);
    for (int64_t i = 0; i < count; ++i) {  // a loop that the compiler can make vectors of
      to[i] = element(xs[i], ys[i], a, b);
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    *reinterpret_cast<E*>(out + i * strides[0]) = element(
        *reinterpret_cast<const E*>(x + i * strides[1]),
        *reinterpret_cast<const E*>(y + i * strides[2]),
        a,
        b);
  }
}

template <typename E, typename C>
void on_cpu_as(at::TensorIterator& iter, C a, C b) {
  // Called by torch's thread pool, each time with `rows` rows; strides 3 to 5 lead to the next one.
  iter.for_each([a, b](char** data, const int64_t* strides, int64_t count, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) {
      row<E>(
          data[0] + r * strides[3],
          data[1] + r * strides[4],
          data[2] + r * strides[5],
          strides,
          count,
          a,
          b);
    }
  });
}

void on_cpu(at::TensorIterator& iter, c10::ScalarType dtype, double a, double b) {
  const auto a32 = static_cast<float>(a), b32 = static_cast<float>(b);
  switch (dtype) {
    case c10::kHalf:
      return on_cpu_as<c10::Half>(iter, a32, b32);
    case c10::kBFloat16:
      return on_cpu_as<c10::BFloat16>(iter, a32, b32);
    case c10::kFloat:
      return on_cpu_as<float>(iter, a32, b32);
    case c10::kDouble:
      return on_cpu_as<double>(iter, a, b);
    case c10::kComplexFloat:
      return on_cpu_as<Complex<float>>(iter, a32, b32);
    default:
      return on_cpu_as<Complex<double>>(iter, a, b);
  }
}

#ifdef GRADEXT_WITH_CUDA
Number kernel_number(c10::ScalarType dtype) {
  switch (*number_of(dtype)) {
    case c10::kHalf:
      return Number::kHalf;
    case c10::kBFloat16:
      return Number::kBFloat16;
    case c10::kFloat:
      return Number::kFloat;
    default:
      return Number::kDouble;
  }
}

// The layout that TensorIterator found (dimensions merged where they can be), of real numbers.
StridedLayout layout_of(const at::TensorIterator& iter, bool is_complex) {
  StridedLayout layout;
  const int pairs = is_complex ? 1 : 0;  // real and imaginary parts are one more dimension
  TORCH_CHECK_VALUE(
      iter.ndim() + pairs <= StridedLayout::kDims,
      "gradext::axpby: too many dimensions that cannot be merged: ",
      std::to_string(iter.ndim()),
      ", at most ",
      std::to_string(StridedLayout::kDims - pairs));
  layout.dims = iter.ndim() + pairs;
  if (is_complex) {
    layout.sizes[0] = 2;
    for (int operand = 0; operand < 3; ++operand) {
      layout.strides[operand][0] = iter.element_size(operand) / 2;
    }
  }
  for (int d = 0; d < iter.ndim(); ++d) {
    layout.sizes[d + pairs] = iter.shape()[d];
    for (int operand = 0; operand < 3; ++operand) {
      layout.strides[operand][d + pairs] = iter.strides(operand)[d];
    }
  }
  return layout;
}

void on_cuda(at::TensorIterator& iter, c10::ScalarType dtype, double a, double b) {
  const c10::cuda::CUDAGuard guard(iter.device(0));
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
  const bool is_complex = c10::isComplexType(dtype);
  const Number number = kernel_number(dtype);
  void *out = iter.data_ptr(0), *x = iter.data_ptr(1), *y = iter.data_ptr(2);
  const int64_t count = iter.numel() * (is_complex ? 2 : 1);
  if (iter.is_contiguous()) {
    C10_CUDA_CHECK(launch_axpby_contiguous(number, x, y, out, count, a, b, stream));
    return;
  }
  const bool is_small = iter.can_use_32bit_indexing();
  C10_CUDA_CHECK(launch_axpby_strided(
      number, x, y, out, layout_of(iter, is_complex), count, is_small, a, b, stream));
}
#endif

void compute(at::TensorIterator& iter, const at::Tensor& x, double a, double b) {
  if (iter.numel() == 0) {
    return;
  }
#ifdef GRADEXT_WITH_CUDA
  if (x.is_cuda()) {
    return on_cuda(iter, x.scalar_type(), a, b);
  }
#endif
  on_cpu(iter, x.scalar_type(), a, b);
}

}  // namespace

at::Tensor axpby(const at::Tensor& x, const at::Tensor& y, double a, double b) {
  check_pair(x, y);
  at::TensorIterator iter = iterator(at::Tensor(), x, y);
  compute(iter, x, a, b);
  return iter.output();
}

void axpby_(at::Tensor& x, const at::Tensor& y, double a, double b) {
  check_pair(x, y);
  at::TensorIterator iter = iterator(x, x, y);
  compute(iter, x, a, b);
}

TORCH_LIBRARY_IMPL(gradext, CPU, m) {
  m.impl("axpby", &axpby);
  m.impl("axpby_", &axpby_);
}

#ifdef GRADEXT_WITH_CUDA
TORCH_LIBRARY_IMPL(gradext, CUDA, m) {
  m.impl("axpby", &axpby);
  m.impl("axpby_", &axpby_);
}
#endif

}  // namespace gradext::example_ops
