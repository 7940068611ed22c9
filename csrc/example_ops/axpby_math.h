// Defines the arithmetic of axpby, the same text for host and device: a * x + b * y of one real
// number, computed in float where the number itself is narrower. A complex number is two of them,
// since `a` and `b` are real.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>

#if defined(__CUDACC__)
#define GRADEXT_PROBE_HD __host__ __device__ __forceinline__
#else
#define GRADEXT_PROBE_HD inline
#endif

namespace gradext::example_ops {

// What is computed in, for numbers stored as T.
template <typename T>
struct Computed {
  using type = T;
};
template <>
struct Computed<c10::Half> {
  using type = float;
};
template <>
struct Computed<c10::BFloat16> {
  using type = float;
};
template <typename T>
using computed_t = typename Computed<T>::type;

template <typename T>
GRADEXT_PROBE_HD T axpby_one(T x, T y, computed_t<T> a, computed_t<T> b) {
  using C = computed_t<T>;
  return static_cast<T>(a * static_cast<C>(x) + b * static_cast<C>(y));
}

}  // namespace gradext::example_ops
