// Keeps what the guard knows of one tensor: its fingerprint, and what was seen of a change.
#pragma once

#include "fingerprint/fingerprint.h"
#include "stacks/stacks.h"

#include <ATen/core/Tensor.h>
#include <c10/core/UndefinedTensorImpl.h>

#include <cstdint>
#include <memory>
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

// Between which lines the bytes were first seen to change.
struct Change {
  bool seen = false;
  StackId line = 0;               // the line that did it
  StackId after = 0, before = 0;  // where no one line can be named: between these
};

// One tensor whose bytes are known: saved for backward, or watched.
struct Entry {
  Entry(const at::Tensor& of, Value bytes) : tensor(weak(of)), value(bytes) {}
  WeakTensor tensor;
  Value value;  // when it was saved
  Value last;   // when it was last looked at between lines
  Change change;
  uint64_t order = 0;  // the journal's order when it was saved
  const void* storage = nullptr;
  bool is_hooked = false;
  // On another device: row `row` of fingerprints that stay there.
  at::Tensor rows;
  int64_t row = 0;
};
using Entries = std::vector<std::shared_ptr<Entry>>;

}  // namespace gradext::guard
