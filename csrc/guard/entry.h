// Keeps what the guard knows of one tensor: its fingerprint, and what was seen of a change.
#pragma once

#include "base/hold.h"
#include "fingerprint/fingerprint.h"
#include "stacks/stacks.h"

#include <ATen/core/Tensor.h>
#include <c10/core/UndefinedTensorImpl.h>
#include <c10/util/SmallVector.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace gradext::guard {

using fingerprint::Value;
using stacks::StackId;
using WeakTensor = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;

inline WeakTensor weak(const at::Tensor& tensor) {
  return WeakTensor(tensor.getIntrusivePtr());
}
// Undefined where the tensor is gone.
inline at::Tensor locked(const WeakTensor& held) {
  auto impl = held.lock();
  return impl ? at::Tensor(std::move(impl)) : at::Tensor();
}

// The fingerprint of a tensor's bytes, read in the order in which they lie in memory: a transposed
// weight as fast as one that is not. Only to be compared with that of the same memory, looked at in
// the same way, and for a tensor for which fingerprint::can_fingerprint holds.
at::Tensor in_memory_order(const at::Tensor& tensor);
inline Value bytes_in(const at::Tensor& tensor) {
  return fingerprint::of_cpu(in_memory_order(tensor));
}

// Between which lines the bytes were first seen to change.
struct Change {
  bool seen = false;
  StackId line = 0;               // the line that did it
  StackId after = 0, before = 0;  // where no one line can be named: between these
};

// Which elements of which memory a tensor shows, and as what. Only of a tensor with strides.
struct Outline {
  explicit Outline(const at::Tensor& of);
  bool operator==(const Outline& other) const {
    return storage == other.storage && offset == other.offset && dtype == other.dtype &&
           sizes == other.sizes && strides == other.strides;
  }
  const void* storage;
  int64_t offset;
  caffe2::TypeMeta dtype;
  c10::SmallVector<int64_t, 5> sizes, strides;
};

// One tensor that is saved for backward, or watched.
struct Entry {
  explicit Entry(const at::Tensor& of);
  // Its bytes are known from now on.
  void take(Value bytes, uint64_t now);
  // The same, of what it holds now; not if it is taken, or has no bytes any more. Under the GIL.
  void take_now();
  // Whether this is the same memory, looked at in the same way: what hooks that were put on it
  // since, or an unpack hook, have made of it may be something else on purpose.
  bool is_outline_of(const at::Tensor& other) const;
  WeakTensor tensor;
  // Whether its bytes are known. Of memory that nobody can write past a version counter they are
  // not read before somebody can.
  std::atomic<bool> is_taken{false};
  Value value;  // when it was taken: at its save, or before the first such write could happen
  // When it was last looked at between lines, and what that showed: guard/lines/exposed.h, under
  // its mutex once it is taken.
  Value last;
  Change change;
  uint64_t order = 0;  // the journal's order when it was taken
  const void* storage = nullptr;
  std::optional<Outline> outline;
  std::optional<base::Hold> held;  // the storage, so that its address is not reused
  // The next two are set by whichever thread runs the node; several may at once.
  std::atomic<bool> is_hooked{false};
  std::atomic<bool> is_told{false};  // a change of this entry was already reported
  // On another device: row `row` of fingerprints that stay there.
  at::Tensor rows;
  int64_t row = 0;
};
using Entries = std::vector<std::shared_ptr<Entry>>;

}  // namespace gradext::guard
