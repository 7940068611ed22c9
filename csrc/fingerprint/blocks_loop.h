// Loops over blocks for one instruction set; included once for each. The including namespace
// defines GRADEXT_TARGET and, with that attribute, `Vector` (kWords words of 64 bits) and the
// operations load, set, store, add, exclusive_or, right<n>, left<n> and multiply32 (the low halves
// of each word).
constexpr int kVectors = kLanes / kWords;

struct Lanes {
  Vector of[kVectors];
};

// All 64 bits, of which the instruction sets have no quick one.
GRADEXT_TARGET inline Vector multiply64(Vector x, uint64_t constant) {
  const Vector low = set(constant & 0xFFFFFFFF), high = set(constant >> 32);
  const Vector cross = add(multiply32(x, high), multiply32(right<32>(x), low));
  return add(multiply32(x, low), left<32>(cross));
}

GRADEXT_TARGET inline void start(Lanes& lanes, uint64_t block) {
  const Vector key = set(block_key(block));
  for (int v = 0; v < kVectors; ++v) {
    lanes.of[v] = exclusive_or(load(kLaneKeys.data() + v * kWords), key);
  }
}

GRADEXT_TARGET inline void fold_row(Lanes& lanes, const uint8_t* row) {
  for (int v = 0; v < kVectors; ++v) {
    const Vector x = exclusive_or(lanes.of[v], load(row + v * sizeof(Vector)));
    const Vector high = multiply32(right<32>(x), set(kFoldHigh));
    lanes.of[v] = add(multiply32(x, set(kFoldLow)), high);
  }
}

GRADEXT_TARGET inline void finish_lanes(const Lanes& lanes, Vector& low, Vector& high) {
  for (int v = 0; v < kVectors; ++v) {
    Vector x = multiply64(exclusive_or(lanes.of[v], right<30>(lanes.of[v])), kMix1);
    x = exclusive_or(x, right<27>(x));
    const Vector a = multiply64(x, kMix2), b = multiply64(x, kMix3);
    low = add(low, exclusive_or(a, right<31>(a)));
    high = add(high, exclusive_or(b, right<32>(b)));
  }
}

GRADEXT_TARGET void blocks(
    const uint8_t* data, size_t bytes, uint64_t block, const Ahead& next, Sums& sums) {
  // The hardware's own prefetcher stops at a page; asking for what is read later goes past it. Of
  // much memory, which is in no cache, a page comes soonest when it is asked for in one go; that
  // costs more than row by row where it was in a cache already. An address beyond the tensor is no
  // fault.
  constexpr size_t kAhead = 2 * kBlock, kMuch = 4 << 20, kPage = 4096;
  Vector low = set(0), high = set(0);
  for (; bytes > 0; ++block) {
    const size_t whole = static_cast<size_t>(kBlock), here = bytes < whole ? bytes : whole;
    const size_t rest = here % kRow;
    const uint8_t* end = data + (here - rest);
    Lanes lanes;
    start(lanes, block);
    if (bytes > kMuch) {
      const uint8_t* ahead = data + kAhead;
      base::prefetch(ahead - reinterpret_cast<uintptr_t>(ahead) % kPage, kPage / 64);
      for (; data < end; data += kRow) {
        fold_row(lanes, data);
      }
    } else {
      const bool is_last = bytes <= whole;
      const uint8_t* ahead = is_last ? next.data : data + kAhead;
      const uint8_t* until = is_last ? next.data + next.bytes : ahead + whole;
      for (; data < end; data += kRow) {
        if (ahead < until) {
          base::prefetch(ahead, 2);
          ahead += kRow;
        }
        fold_row(lanes, data);
      }
    }
    if (rest > 0) {
      alignas(64) uint8_t row[kRow] = {};
      std::memcpy(row, data, rest);
      fold_row(lanes, row);
      data += rest;
    }
    finish_lanes(lanes, low, high);
    bytes -= here;
  }
  uint64_t words[kWords];
  store(words, low);
  for (const uint64_t word : words) {
    sums.low += word;
  }
  store(words, high);
  for (const uint64_t word : words) {
    sums.high += word;
  }
}
