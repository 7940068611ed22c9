// Declares the kernel of window, which returns `length` elements of one dimension as a view, on
// every strided device.
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

namespace gradext::example_ops {

// A TensorImpl over the storage of `x`, made here and without another op: to autograd it is no view
// and counts no versions, until the ADInplaceOrView kernel (autograd.cpp) has made it one.
at::Tensor window(const at::Tensor& x, int64_t dim, int64_t start, int64_t length);

// `dim` and `start` counted from the front. Raises, one line, what is not inside `x`.
std::pair<int64_t, c10::SymInt> window_place(
    const at::Tensor& x, int64_t dim, int64_t start, int64_t length);

}  // namespace gradext::example_ops
