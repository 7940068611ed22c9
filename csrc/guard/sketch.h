// Sums of a floating tensor's elements, by which two tensors whose bytes differ can be told to be
// the same but for rounding: a sum over threads, or atomics, may add in another order.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstddef>

namespace gradext::guard {

// Each bucket covers a stretch of the elements, so that a small tensor is compared one by one.
struct Sketch {
  static constexpr size_t kBuckets = 64;
  struct Bucket {
    double sum = 0;         // a shift of all elements
    double signed_sum = 0;  // each with a sign of its own: elements that changed places
    double size = 0;        // of the absolute values
  };
  std::array<Bucket, kBuckets> buckets{};
  double elements = 0;  // in a bucket
};

// Only of a tensor for which fingerprint::can_fingerprint holds. Whether it is of a kind that
// rounds: then `out` is filled. Dispatches no op.
bool sketch_of(const at::Tensor& tensor, Sketch& out);

// Whether the two differ by no more than rounding in `type` explains.
bool are_close(const Sketch& one, const Sketch& other, c10::ScalarType type);

}  // namespace gradext::guard
