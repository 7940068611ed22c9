#include "recorder/regions.h"

#include <algorithm>

namespace gradext::recorder {

int64_t Region::end() const {
  int64_t last = offset + run;
  for (const auto& [count, step] : rows) {
    last += (count - 1) * step;
  }
  return last;
}

Region region_of(
    int64_t offset, int64_t itemsize, c10::IntArrayRef sizes, c10::IntArrayRef strides) {
  Region region;
  region.offset = offset;
  region.run = itemsize;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] != 1 && strides[d] != 0) {
      region.rows.emplace_back(sizes[d], strides[d] * itemsize);
    }
  }
  std::stable_sort(region.rows.begin(), region.rows.end(), [](const auto& a, const auto& b) {
    return a.second > b.second;
  });
  for (size_t k = region.rows.size(); k > 1; --k) {
    auto& outer = region.rows[k - 2];
    const auto inner = region.rows[k - 1];
    if (outer.second == inner.first * inner.second) {
      outer = {outer.first * inner.first, inner.second};
      region.rows.erase(region.rows.begin() + static_cast<ptrdiff_t>(k) - 1);
    }
  }
  if (!region.rows.empty() && region.rows.back().second == region.run) {
    region.run *= region.rows.back().first;
    region.rows.pop_back();
  }
  return region;
}

int64_t bytes_of(const Region& region) {
  int64_t bytes = region.run;
  for (const auto& [count, step] : region.rows) {
    bytes *= count;
  }
  return bytes;
}

}  // namespace gradext::recorder
