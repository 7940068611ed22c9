// The third witness of a write: the bytes. Each tensor that is saved for backward is fingerprinted
// when it is saved and again when backward is about to use it; between lines of Python too, where
// memory that was handed out of torch could be written.
//
// A room above the recorder: the recorder calls it through recorder/taps.h and knows nothing of it.
// Takes no saved-tensor hook; its own hooks on nodes (C++, invisible to Python) return what they
// got. Tensors are held weakly.
#pragma once

#include "fingerprint/fingerprint.h"
#include "graph/graph.h"
#include "journal/journal.h"
#include "recorder/switch.h"
#include "stacks/stacks.h"

#include <ATen/core/Tensor.h>
#include <ATen/record_function.h>
#include <c10/core/UndefinedTensorImpl.h>
#include <torch/csrc/autograd/function.h>

#include <Python.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace gradext::guard {

using fingerprint::Value;
using recorder::StackId;
using torch::autograd::Node;
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

// Whether some guard is on, and how often one has been switched on or off.
extern std::atomic<int> guards;
extern std::atomic<uint64_t> epoch;
inline bool is_on() {
  return guards.load(std::memory_order_relaxed) > 0;
}

// --- saves.cpp ---
// Fingerprint what the node of `result` saved, if it is new.
void note_saves(const at::Tensor& result);
// True while this thread runs code of the guard's own, whose ops are not the program's.
bool& in_guard();

// --- deferred.cpp ---
// Tensors of another device: what is saved and used is fingerprinted there, without waiting, and
// compared once when the backward has ended.
bool is_deferred(const at::Tensor& tensor);
// int64[n, 2] on the tensors' device, in one launch; undefined where it cannot be done.
at::Tensor fingerprints_there(const std::vector<at::Tensor>& tensors);
// Throws a recorder::Stop where the program is to be stopped.
void compare_deferred();
void forget_deferred();
// For tests: treat tensors on the CPU like those of another device.
extern std::atomic<bool> defers_all;

// --- gradients.cpp ---
// Before a node's formula, and after it with the gradients that it hands on.
void gradients_before(Node& node);
void gradients_after(Node& node, const std::vector<at::Tensor>& outgoing);
void forget_gradients();

// --- lines.cpp ---
// The program got hold of the memory itself (numpy, a pointer, a storage).
void note_exposed(const at::Tensor& tensor);
// An entry to be looked at between lines if its memory is, or comes to be, exposed.
void watch_lines(const std::shared_ptr<Entry>& entry, const at::Tensor& tensor);
// Whether what was seen between lines is all there was: compare now, on the way to a use.
void look_now();
// Of these storages, without waiting for a line: an op that is not torch's has just had them.
void look_at(const std::vector<const void*>& storages);
// The program wants this storage unchanged: it is looked at after every op that gets it.
void watch_storage(const void* storage);
bool is_watched(const void* storage);
bool watches_any();
void forget_lines();
void wake_lines();
struct LineFacts {
  size_t entries, exposed;
  uint64_t looks;
  bool armed;
};
LineFacts line_facts();

// What a fork must not find locked.
std::mutex& gradients_mutex();
std::mutex& lines_mutex();
std::mutex& overlaps_mutex();
std::mutex& deferred_mutex();

// --- ops.cpp ---
// What of an op's schema matters here.
struct OpKind {
  std::string name;
  bool is_aten = true;
  bool is_secretive = false;  // writes what it does not declare (docs/ops-that-lie.md)
  bool writes_list = false;
  bool makes_views = false;
  std::vector<uint16_t> written;
};
const OpKind& kind_of(const at::RecordFunction& op);

// --- overlap.cpp ---
// `source`: what the views are of; undefined where no overlapping tensor was known before the op.
void note_views(const at::Tensor& source, const std::vector<c10::IValue>& outputs);
struct Overlap {
  at::Tensor written;
  std::vector<int64_t> sizes, strides;  // of the overlapping tensor
  StackId made = 0;                     // where that was made
  StackId line = 0;
};
bool knows_overlaps();
// Whether a write to `written` changes more than it names.
bool overlaps(const at::Tensor& written, Overlap& found);
void forget_overlaps();

}  // namespace gradext::guard
