// Declares what autograd.cpp shares with the ops that leave a layer out
// (benchmarks/dispatch_layers.cpp).
#pragma once

#include <ATen/core/Tensor.h>

namespace gradext::example_ops {

// What the ADInplaceOrView kernel of window does once the kernel below it has run: `result`, of the
// arguments that follow, becomes a view of `x` to autograd.
at::Tensor track_window(
    const at::Tensor& x, const at::Tensor& result, int64_t dim, int64_t start, int64_t length);

}  // namespace gradext::example_ops
