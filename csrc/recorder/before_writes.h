// Keeps what memory held before the writes that torch's version counters do not count, so that a
// backward over a graph which is older than such a write can be told whether the values are others
// now: gradcheck, a line search or a swap of weights put back what they changed.
#pragma once

#include "base/locks.h"
#include "fingerprint/fingerprint.h"
#include "recorder/regions.h"

#include <ATen/core/Tensor.h>
#include <c10/core/StorageImpl.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace gradext::recorder {

// What one tensor held before one write: its bytes, or of a large one their fingerprint.
class Before;
using BeforePtr = std::shared_ptr<const Before>;

// For a tensor that an op is about to write. Null where its bytes cannot be read here, or where
// looking has taken its share of the program's time.
BeforePtr look_before(const at::Tensor& target, uint64_t thread, uint64_t sequence);
// The write has got this number in the journal's order, and no counter has seen it.
void keep_before(BeforePtr before, uint64_t order);

// A write that may have changed what was saved: its number and its bytes.
struct Suspect {
  uint64_t order = 0;
  int64_t begin = 0, end = 0;
};
enum class Verdict : uint8_t {
  kUnknown,  // what was there before some write is not known
  kSame,     // the values are those of before the first of the writes, to the last rounding
  kChanged,
};
// Whether the bytes are those of before the first suspect, in time. The storage is only compared
// with those that are known to live.
Verdict compare_with_before(
    const c10::StorageImpl* storage, const Region& saved, std::vector<Suspect> suspects);
// Whether nothing but writes that are known have changed the tensor since `order`, when its
// fingerprint was `value`, and they have put back what was there, to the last rounding.
bool came_back_since(const at::Tensor& saved, uint64_t order, const fingerprint::Value& value);

size_t before_bytes();
void forget_before();
base::Mutex<base::Rank::kBefore>& before_mutex();  // for fork

}  // namespace gradext::recorder
