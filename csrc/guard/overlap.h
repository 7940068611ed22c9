// Finds GX404: a write through memory that overlaps itself. An expanded row is all rows, an
// unfolded window shares elements with its neighbours; torch refuses a write to such a tensor as a
// whole (most of the time) and lets through a write to a part of it.
#pragma once

#include "base/locks.h"
#include "guard/entry.h"

#include <ATen/core/ivalue.h>

#include <cstdint>
#include <mutex>
#include <vector>

namespace gradext::guard {

// `source`: what the views are of; undefined where no overlapping tensor was known before the op.
void note_views(const at::Tensor& source, const std::vector<c10::IValue>& outputs);
void note_one_view(const at::Tensor& source, const at::Tensor& view);
struct Overlap {
  at::Tensor written;
  std::vector<int64_t> sizes, strides;  // of the overlapping tensor
  StackId made = 0;                     // where that was made
  StackId line = 0;
};
bool knows_overlaps();
// Whether a write to `written` changes more than it names.
bool overlaps(const at::Tensor& written, Overlap& found);
// Forgets those that have died: a backward has many, and a view made later is then not looked up.
void sweep_overlaps();
void forget_overlaps();

base::Mutex<base::Rank::kOverlaps>& overlaps_mutex();  // for fork

}  // namespace gradext::guard
