#include "fingerprint/blocks.h"

#include "base/prefetch.h"

#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define GRADEXT_X86
#elif defined(__aarch64__) && defined(__GNUC__) && !defined(__ARM_BIG_ENDIAN)
#include <arm_neon.h>
#define GRADEXT_NEON
#endif

namespace gradext::fingerprint {
namespace {

constexpr std::array<uint64_t, kLanes> make_lane_keys() {
  std::array<uint64_t, kLanes> keys{};
  for (int lane = 0; lane < kLanes; ++lane) {
    keys[lane] = lane_key(lane);
  }
  return keys;
}

alignas(64) constexpr std::array<uint64_t, kLanes> kLaneKeys = make_lane_keys();

namespace plain {

uint64_t word_at(const uint8_t* data) {
  uint64_t word = 0;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  for (int i = 0; i < 8; ++i) {
    word |= static_cast<uint64_t>(data[i]) << (8 * i);
  }
#else
  std::memcpy(&word, data, sizeof(word));
#endif
  return word;
}

void fold_row(std::array<uint64_t, kLanes>& lanes, const uint8_t* row) {
  for (int lane = 0; lane < kLanes; ++lane) {
    lanes[lane] = fold(lanes[lane], word_at(row + 8 * lane));
  }
}

void blocks(const uint8_t* data, size_t bytes, uint64_t block, const Ahead& /*next*/, Sums& sums) {
  for (; bytes > 0; ++block) {
    const size_t here = bytes < static_cast<size_t>(kBlock) ? bytes : static_cast<size_t>(kBlock);
    std::array<uint64_t, kLanes> lanes = kLaneKeys;
    for (uint64_t& lane : lanes) {
      lane ^= block_key(block);
    }
    for (const uint8_t* end = data + here / kRow * kRow; data < end; data += kRow) {
      fold_row(lanes, data);
    }
    if (const size_t rest = here % kRow) {
      uint8_t row[kRow] = {};
      std::memcpy(row, data, rest);
      fold_row(lanes, row);
      data += rest;
    }
    for (const uint64_t lane : lanes) {
      add_lane(sums, lane);
    }
    bytes -= here;
  }
}

}  // namespace plain

#if defined(GRADEXT_X86)
namespace avx2 {

#define GRADEXT_TARGET __attribute__((target("avx2")))
using Vector = __m256i;
constexpr int kWords = 4;

GRADEXT_TARGET inline Vector load(const void* at) {
  return _mm256_loadu_si256(static_cast<const Vector*>(at));
}
GRADEXT_TARGET inline void store(void* at, Vector x) {
  _mm256_storeu_si256(static_cast<Vector*>(at), x);
}
GRADEXT_TARGET inline Vector set(uint64_t word) {
  return _mm256_set1_epi64x(static_cast<long long>(word));
}
GRADEXT_TARGET inline Vector add(Vector a, Vector b) {
  return _mm256_add_epi64(a, b);
}
GRADEXT_TARGET inline Vector exclusive_or(Vector a, Vector b) {
  return _mm256_xor_si256(a, b);
}
GRADEXT_TARGET inline Vector multiply32(Vector a, Vector b) {
  return _mm256_mul_epu32(a, b);
}
template <int n>
GRADEXT_TARGET inline Vector right(Vector x) {
  return _mm256_srli_epi64(x, n);
}
template <int n>
GRADEXT_TARGET inline Vector left(Vector x) {
  return _mm256_slli_epi64(x, n);
}
#include "fingerprint/blocks_loop.h"
#undef GRADEXT_TARGET

}  // namespace avx2

namespace avx512 {

#define GRADEXT_TARGET __attribute__((target("avx512f")))
using Vector = __m512i;
constexpr int kWords = 8;

GRADEXT_TARGET inline Vector load(const void* at) {
  return _mm512_loadu_si512(at);
}
GRADEXT_TARGET inline void store(void* at, Vector x) {
  _mm512_storeu_si512(at, x);
}
GRADEXT_TARGET inline Vector set(uint64_t word) {
  return _mm512_set1_epi64(static_cast<long long>(word));
}
GRADEXT_TARGET inline Vector add(Vector a, Vector b) {
  return _mm512_add_epi64(a, b);
}
GRADEXT_TARGET inline Vector exclusive_or(Vector a, Vector b) {
  return _mm512_xor_si512(a, b);
}
GRADEXT_TARGET inline Vector multiply32(Vector a, Vector b) {
  return _mm512_maskz_mul_epu32(0xFF, a, b);
}
template <int n>
GRADEXT_TARGET inline Vector right(Vector x) {
  return _mm512_maskz_srli_epi64(0xFF, x, n);
}
template <int n>
GRADEXT_TARGET inline Vector left(Vector x) {
  return _mm512_maskz_slli_epi64(0xFF, x, n);
}
#include "fingerprint/blocks_loop.h"
#undef GRADEXT_TARGET

}  // namespace avx512
#endif

#if defined(GRADEXT_NEON)
namespace neon {

#define GRADEXT_TARGET
using Vector = uint64x2_t;
constexpr int kWords = 2;

inline Vector load(const void* at) {
  return vreinterpretq_u64_u8(vld1q_u8(static_cast<const uint8_t*>(at)));
}
inline void store(void* at, Vector x) {
  vst1q_u64(static_cast<uint64_t*>(at), x);
}
inline Vector set(uint64_t word) {
  return vdupq_n_u64(word);
}
inline Vector add(Vector a, Vector b) {
  return vaddq_u64(a, b);
}
inline Vector exclusive_or(Vector a, Vector b) {
  return veorq_u64(a, b);
}
inline Vector multiply32(Vector a, Vector b) {
  return vmull_u32(vmovn_u64(a), vmovn_u64(b));
}
template <int n>
inline Vector right(Vector x) {
  return vshrq_n_u64(x, n);
}
template <int n>
inline Vector left(Vector x) {
  return vshlq_n_u64(x, n);
}
#include "fingerprint/blocks_loop.h"
#undef GRADEXT_TARGET

}  // namespace neon
#endif

struct Variant {
  const char* name;
  Blocks function;
};

// Fastest first.
std::vector<Variant> runnable() {
  std::vector<Variant> found;
#if defined(GRADEXT_X86)
  if (__builtin_cpu_supports("avx512f")) {
    found.push_back({"avx512", &avx512::blocks});
  }
  if (__builtin_cpu_supports("avx2")) {
    found.push_back({"avx2", &avx2::blocks});
  }
#elif defined(GRADEXT_NEON)
  found.push_back({"neon", &neon::blocks});
#endif
  found.push_back({"plain", &plain::blocks});
  return found;
}

const std::vector<Variant>& all() {
  static const std::vector<Variant> found = runnable();
  return found;
}

const Variant* named(const std::string& name) {
  for (const Variant& variant : all()) {
    if (name == variant.name) {
      return &variant;
    }
  }
  return nullptr;
}

const Variant* at_load() {
  const char* name = std::getenv("GRADEXT_FINGERPRINT_VARIANT");
  const Variant* wanted = name ? named(name) : nullptr;
  return wanted ? wanted : &all().front();
}

std::atomic<const Variant*>& chosen() {
  static std::atomic<const Variant*> variant{at_load()};
  return variant;
}

}  // namespace

Blocks blocks() {
  return chosen().load(std::memory_order_relaxed)->function;
}

std::vector<std::string> variants() {
  std::vector<std::string> names;
  for (const Variant& variant : all()) {
    names.emplace_back(variant.name);
  }
  return names;
}

std::string variant() {
  return chosen().load(std::memory_order_relaxed)->name;
}

bool force_variant(const std::string& name) {
  const Variant* wanted = name.empty() ? at_load() : named(name);
  if (wanted == nullptr) {
    return false;
  }
  chosen().store(wanted, std::memory_order_relaxed);
  return true;
}

}  // namespace gradext::fingerprint
