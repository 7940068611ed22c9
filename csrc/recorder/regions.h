// Names the bytes that a tensor shows, past its shape: what one tensor wrote and another saved are
// compared by them.
#pragma once

#include <c10/util/ArrayRef.h>
#include <c10/util/SmallVector.h>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace gradext::recorder {

// The bytes of a tensor within its storage, in an order of their own: two tensors that show the
// same elements, one of them transposed, have equal regions.
struct Region {
  int64_t offset = 0;  // of the first byte
  int64_t run = 0;     // bytes that lie side by side
  c10::SmallVector<std::pair<int64_t, int64_t>, 4>
      rows;  // (how many, bytes apart), outermost first

  int64_t end() const;
  bool is_dense() const {
    return rows.empty();
  }
  bool operator==(const Region& other) const {
    return offset == other.offset && run == other.run && rows == other.rows;
  }
};
int64_t bytes_of(const Region& region);
Region region_of(
    int64_t offset, int64_t itemsize, c10::IntArrayRef sizes, c10::IntArrayRef strides);

// visit(where the run begins in the storage, which run it is).
template <class Visit>
void each_run(const Region& region, Visit&& visit) {
  std::vector<int64_t> at(region.rows.size());
  int64_t where = region.offset;
  for (int64_t number = 0;; ++number) {
    visit(where, number);
    size_t d = region.rows.size();
    while (d > 0) {
      --d;
      where += region.rows[d].second;
      if (++at[d] < region.rows[d].first) {
        break;
      }
      where -= region.rows[d].first * region.rows[d].second;
      at[d] = 0;
      if (d == 0) {
        return;
      }
    }
    if (region.rows.empty()) {
      return;
    }
  }
}

}  // namespace gradext::recorder
