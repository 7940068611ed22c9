// Defines the arithmetic of the fingerprint, the same text for host and device. docs/fingerprint.md
// defines it in words and gradext/fingerprints/reference.py in Python integers; the three must
// agree.
//
// The bytes are cut into blocks of 4,096, a block into rows of 16 words of 64 bits (little-endian,
// the last row filled up with zeros). Each of the 16 lanes of a block folds its words in order; the
// block's value is a sum over its lanes, the tensor's a sum over its blocks, so blocks may be
// computed anywhere in any order.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define GRADEXT_HD __host__ __device__ __forceinline__
#define GRADEXT_HD_SELDOM __host__ __device__ __noinline__ inline
#else
#define GRADEXT_HD inline
#define GRADEXT_HD_SELDOM inline
#endif

namespace gradext::fingerprint {

constexpr int64_t kBlock = 4096;  // bytes
constexpr int64_t kRow = 128;     // bytes
constexpr int kLanes = 16;        // words in a row

// Odd, without structure. The two of the fold are below 2^32: a 32 by 32 bit product is what
// AVX2, NEON and GPUs have. The rest are the multipliers of splitmix64 and rrmxmx.
constexpr uint64_t kFoldLow = 0xED5AD4BB, kFoldHigh = 0xF1357AEB;
constexpr uint64_t kMix1 = 0xBF58476D1CE4E5B9, kMix2 = 0x94D049BB133111EB;
constexpr uint64_t kMix3 = 0xD6E8FEB86659FD93, kGolden = 0x9E3779B97F4A7C15;

// A bijection of 64 bits in which every input bit reaches every output bit (splitmix64's).
GRADEXT_HD constexpr uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * kMix1;
  x = (x ^ (x >> 27)) * kMix2;
  return x ^ (x >> 31);
}

GRADEXT_HD constexpr uint64_t lane_key(int lane) {
  return mix64(kGolden * (static_cast<uint64_t>(lane) + 1));
}

// What makes equal blocks at different places differ.
GRADEXT_HD constexpr uint64_t block_key(uint64_t block) {
  return mix64(kGolden ^ (block + 1));
}

// One more word into a lane. Both halves are multiplied: were one passed on as it is, a bit there
// and a bit of the lane's next word could cancel.
GRADEXT_HD constexpr uint64_t fold(uint64_t lane, uint64_t word) {
  const uint64_t x = lane ^ word;
  return (x & 0xFFFFFFFF) * kFoldLow + (x >> 32) * kFoldHigh;
}

struct Sums {
  uint64_t low = 0, high = 0;
};

// A finished lane into the sums: each of the two terms is a bijection of the lane.
GRADEXT_HD constexpr void add_lane(Sums& sums, uint64_t lane) {
  uint64_t x = (lane ^ (lane >> 30)) * kMix1;
  x ^= x >> 27;
  const uint64_t low = x * kMix2, high = x * kMix3;
  sums.low += low ^ (low >> 31);
  sums.high += high ^ (high >> 32);
}

// The facts beside the bytes: dtype code, number of dimensions, sizes, byte count, in this order.
constexpr uint64_t kFactsStart = kGolden;

GRADEXT_HD constexpr uint64_t add_fact(uint64_t facts, uint64_t value) {
  return mix64(facts ^ value) + kGolden;
}

struct Value {
  uint64_t low = 0, high = 0;

  GRADEXT_HD constexpr bool operator==(const Value& other) const {
    return low == other.low && high == other.high;
  }
  GRADEXT_HD constexpr bool operator!=(const Value& other) const {
    return !(*this == other);
  }
};

GRADEXT_HD constexpr Value finish(const Sums& sums, uint64_t facts) {
  return {mix64(sums.low + facts), mix64(sums.high + mix64(facts))};
}

}  // namespace gradext::fingerprint
