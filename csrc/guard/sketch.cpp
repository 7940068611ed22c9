#include "guard/sketch.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <c10/util/complex.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace gradext::guard {
namespace {

double sign_of(uint64_t position) {
  return ((position * 0x9e3779b97f4a7c15ull) >> 63) != 0 ? -1 : 1;
}

// Adds `parts` numbers for each element: two for a complex one.
template <class Number>
void add(const at::Tensor& tensor, int64_t parts, Sketch& out) {
  const auto* data = static_cast<const Number*>(tensor.const_data_ptr());
  const int64_t numel = tensor.numel();
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  const int64_t dims = tensor.dim();
  std::vector<int64_t> index(static_cast<size_t>(std::max<int64_t>(dims, 1)), 0);
  const int64_t inner = dims > 0 ? sizes[dims - 1] : 1;
  const int64_t step = dims > 0 ? strides[dims - 1] : 1;
  int64_t position = 0, offset = 0;
  while (position < numel) {
    for (int64_t k = 0; k < inner; ++k, ++position) {
      // Not a product: of a large tensor it would not fit.
      const double share = static_cast<double>(position) / static_cast<double>(numel);
      const auto place =
          std::min(static_cast<size_t>(share * Sketch::kBuckets), Sketch::kBuckets - 1);
      Sketch::Bucket& bucket = out.buckets[place];
      for (int64_t part = 0; part < parts; ++part) {
        const auto value = static_cast<double>(data[(offset + k * step) * parts + part]);
        bucket.sum += value;
        bucket.signed_sum += sign_of(static_cast<uint64_t>(position * parts + part)) * value;
        bucket.size += std::abs(value);
      }
    }
    for (int64_t d = dims - 2; d >= 0; --d) {
      offset += strides[d];
      if (++index[d] < sizes[d]) {
        break;
      }
      offset -= strides[d] * sizes[d];
      index[d] = 0;
    }
  }
  out.elements = std::max(1.0, static_cast<double>(numel * parts) / Sketch::kBuckets);
}

// How far two results of the same sum, added in another order, may lie apart: a good deal more than
// they do after a few layers, and far less than other inputs make.
double tolerance(c10::ScalarType type) {
  switch (type) {
    case at::kDouble:
    case at::kComplexDouble:
      return 1e-9;
    case at::kFloat:
    case at::kComplexFloat:
      return 1e-4;
    case at::kHalf:
      return 1e-2;
    default:
      return 4e-2;
  }
}

bool is_near(double one, double other, double allowed) {
  if (std::isnan(one) || std::isnan(other)) {
    return std::isnan(one) == std::isnan(other);
  }
  return one == other || std::abs(one - other) <= allowed;
}

}  // namespace

bool sketch_of(const at::Tensor& tensor, Sketch& out) {
  // The bits say what the values are only where no lazy conjugate or negative is to be applied; it
  // is applied alike each time.
  switch (tensor.scalar_type()) {
    case at::kDouble:
      add<double>(tensor, 1, out);
      return true;
    case at::kFloat:
      add<float>(tensor, 1, out);
      return true;
    case at::kHalf:
      add<c10::Half>(tensor, 1, out);
      return true;
    case at::kBFloat16:
      add<c10::BFloat16>(tensor, 1, out);
      return true;
    case at::kComplexDouble:
      add<double>(tensor, 2, out);
      return true;
    case at::kComplexFloat:
      add<float>(tensor, 2, out);
      return true;
    default:
      return false;
  }
}

bool are_close(const Sketch& one, const Sketch& other, c10::ScalarType type) {
  const double allowed = tolerance(type);
  // Roundings are of either sign, so with signs they add up slower than values do.
  const double by_chance = allowed * std::min(1.0, 4 / std::sqrt(one.elements));
  for (size_t k = 0; k < Sketch::kBuckets; ++k) {
    const Sketch::Bucket &a = one.buckets[k], &b = other.buckets[k];
    const double size = std::max(a.size, b.size);
    if (!is_near(a.sum, b.sum, allowed * size) ||
        !is_near(a.signed_sum, b.signed_sum, by_chance * size)) {
      return false;
    }
  }
  return true;
}

}  // namespace gradext::guard
