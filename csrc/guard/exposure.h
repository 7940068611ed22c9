// Fingerprints what was saved before its memory could be written past a version counter, at the
// moment from which on it can be.
//
// A write that no version counter shows needs somebody who has the memory, or an op whose schema
// does not declare the write. As long as a storage was made by torch's own allocator and nobody has
// asked for its memory, backward finds in it what was saved, or torch refuses it. So nothing is
// read at a save in such a storage: guard/saves.h. What exposes a storage:
//
// - `numpy()`, `data_ptr()`, `untyped_storage()`, DLPack: the program has the memory (By::kHands).
// - It was not made by torch: from_numpy, a file, shared memory (By::kHands).
// - An op is about to write it, and its counter may not show that: through `.data`; by an op known
//   not to count; by one that is not torch's and only gets it; `tensor.data = other` (By::kOps).
//   The recorder's kernels see these before they write.
//
// The exposure itself writes nothing: the bytes are then still those that were saved.
#pragma once

#include "guard/guard.h"

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

namespace gradext::guard {

// The program got hold of the tensor's memory itself.
void note_exposed(const at::Tensor& tensor);
// An op is about to write them, or may be, in a way that their counters may not show.
void note_before_write(c10::ArrayRef<at::Tensor> tensors);
// An op has written them: called after note_before_write().
void note_after_write(c10::ArrayRef<at::Tensor> tensors);

}  // namespace gradext::guard
