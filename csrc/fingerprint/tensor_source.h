// Reads what a fingerprint needs to know of a tensor from the object itself: no dispatch, no
// Python, no reference count touched. Owns the question of which tensors have a fingerprint.
#pragma once

#include "base/prefetch.h"
#include "fingerprint/worklist.h"

#include <ATen/core/Tensor.h>

#include <vector>

namespace gradext::fingerprint {

struct Source {
  const uint8_t* data;
  int64_t bytes;
  uint64_t facts;
  int64_t layout_at;  // in Sources::layouts, -1: contiguous
  uint8_t itemsize, view;
  bool is_complex;
};

struct Sources {
  std::vector<Source> list;
  std::vector<int64_t> layouts;

  const int64_t* layout(const Source& source) const {
    return source.layout_at < 0 ? nullptr : layouts.data() + source.layout_at;
  }
};

// Why this object has no bytes to read, in the words of an error line; null when it has.
const char* refusal(const c10::TensorImpl* impl);

// The device that holds the bytes. Only after refusal() gave null.
c10::Device device_of(const c10::TensorImpl& impl);
// The dtype that counts: a quantized tensor is what it is stored as.
c10::ScalarType dtype_of(const c10::TensorImpl& impl);
c10::IntArrayRef sizes_of(const c10::TensorImpl& impl);

void add_source(const c10::TensorImpl& impl, Sources& sources);

// In a long list nearly every fact is a cache miss, and the misses overlap only if they are asked
// for early: a tensor this many places ahead, then, once that is here, its storage.
constexpr int kTensorAhead = 16, kStorageAhead = 8;

// Null, for a place past the end, is nothing to ask for.
inline void prefetch_source(const c10::TensorImpl* tensor, const c10::TensorImpl* storage_of) {
  if (tensor != nullptr) {
    base::prefetch(tensor, 3);
  }
  if (storage_of != nullptr) {
    base::prefetch(storage_of->unsafe_storage().unsafeGetStorageImpl(), 2);
  }
}

// A table of words (worklist.h) at a time, each at most `limit` words unless one tensor alone needs
// more; begin and end say which sources are in it.
struct Chunk {
  std::vector<int64_t> words;
  int64_t begin, end, blocks;

  Table table() const {
    return {words.data(), end - begin, blocks};
  }
};

std::vector<Chunk> pack(const Sources& sources, int64_t limit);

}  // namespace gradext::fingerprint
