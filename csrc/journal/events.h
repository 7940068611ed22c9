// The events that the journal keeps: what each of them says, without a pointer to anything of the
// program's. Storages and version counters go by numbers (identities.h), stacks by theirs.
#pragma once

#include "stacks/stacks.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace gradext::journal {

using stacks::StackId;

// The bytes of a tensor within its storage: from the first to one past the last.
struct Extent {
  int64_t begin = 0;
  int64_t end = 0;
};

enum WriteFlags : uint32_t {
  kDeclaredOnly = 1,     // the schema says that it writes, and no counter moved
  kSharedStorage = 2,    // the storage belongs to tensors that this counter does not cover
  kInferenceTensor = 4,  // no counter
  kGradMode = 8,
  kNote = 16,   // no write: a Python call that moves a counter (mark_dirty, increment_version ...)
  kHoles = 32,  // there are elements of others between its own, and it is not known which
};

struct Write {
  uint64_t order = 0;
  uint64_t storage = 0;  // of Journal::identities
  uint64_t counter = 0;
  Extent extent;
  uint64_t sequence = 0;  // autograd's sequence number on this thread at the time
  uint32_t thread = 0;
  StackId stack = 0;
  uint32_t op = 0;
  uint32_t inner_op = 0;  // the op that `op` called to do the writing, 0 if none
  uint32_t version_before = 0;
  uint32_t version_after = 0;
  uint32_t geometry = 0;  // sizes and strides where they are not one dense block, else 0 (kHoles)
  uint16_t argument = 0;
  uint16_t flags = 0;
};

// A view that no graph node remembers: made without grad mode, or one of many of its op.
struct View {
  uint64_t order = 0;
  uint64_t storage = 0;
  Extent extent;
  uint64_t sequence = 0;
  int64_t tensor = 0;  // its address: a hint, it may have come to mean another tensor
  uint32_t thread = 0;
  StackId stack = 0;
  uint32_t op = 0;
  uint32_t flags = 0;  // creation_meta
};

// From this sequence number on (of one thread), nodes were made at `stack`.
struct Save {
  uint64_t sequence;
  StackId stack;
  uint32_t origin;  // index into the origins: the forward node that was being differentiated
};

struct NodeId {
  uint64_t thread;
  uint64_t sequence;
};

// One call of the backward engine.
struct Backward {
  uint64_t order = 0;
  uint64_t thread = 0;
  StackId stack = 0;
  bool keeps_graph = false;
  bool creates_graph = false;
  bool whole = true;  // false when the graph was too large to list
  std::vector<NodeId> nodes;
};

// A write that torch refused, or a use of an inference tensor.
struct Refused {
  uint64_t order = 0;
  uint64_t storage = 0;
  Extent extent;
  int64_t tensor = 0;
  int64_t base = 0;
  uint64_t thread = 0;
  StackId stack = 0;
  uint32_t op = 0;
  int32_t creation_meta = -1;
  bool is_view = false;
  bool is_leaf = false;
  bool requires_grad = false;
  bool base_is_leaf = false;
  bool is_inference = false;
  bool is_leftover =
      false;  // an inference tensor once: it has no counter, and no flag that says so
  bool grad_mode = false;
  std::string what;
  // The nodes from the refused tensor towards its base, nearest first.
  std::vector<std::pair<std::string, NodeId>> chain;
};

// Which op made the memory of an inference tensor. Known by storage: views of it, and parameters
// made from it, are inference tensors of the same birth.
struct Birth {
  uint64_t order = 0;
  uint64_t number = 0;  // among births and flows
  int64_t tensor = 0;
  StackId stack = 0;
  StackId mode = 0;  // where inference_mode was entered
  uint32_t op = 0;
  uint32_t thread = 0;
  uint32_t has_gradient_behind = 0;  // something that it was computed from required grad
};

enum FlowFlags : uint32_t {
  kCut = 1,          // an input required grad, and the result does not
  kFromPython = 2,   // made from Python's numbers or numpy's memory
  kToPython = 4,     // no result: a value left for Python
  kGradCall = 8,     // a gradient from autograd.grad() without create_graph
  kMerge = 16,       // the result requires grad: a value without gradient was added to it
  kNoGradMode = 32,  // grad mode was off
  kInFunction = 64,  // ... because of the forward() of an autograd.Function
  kInference = 128,  // inference mode was on
  kIsView = 256,
  kWritten = 512,  // the result is an older tensor that was written
  kNotFloating = 1024,
  kSourceIsLeaf = 2048,
  kFromInference = 4096,  // an input was an inference tensor
  kIsNumber = 8192,       // a merge: a term was added to one number, which is computed on with
  // What the value was computed from, however long ago:
  kTaintCut = 1 << 16,
  kTaintGrad = 1 << 17,    // kGradCall
  kTaintPython = 1 << 18,  // kFromPython, and the value had gone there
  kTaintInput = 1 << 19,   // kGradCall, with respect to what is no parameter
};
constexpr uint32_t kTaints = kTaintCut | kTaintGrad | kTaintPython | kTaintInput;

constexpr size_t kMaxParents = 4;

// One result that does not require grad. `parents` are the low halves of the numbers of the births
// and flows of its inputs, 0 where there are fewer.
struct Flow {
  uint64_t order = 0;
  uint64_t number = 0;
  int64_t tensor = 0;            // its address: means this tensor only while it lives
  int64_t source = 0;            // the input that required grad; what a gradient was taken by
  uint64_t source_sequence = 0;  // its node; the new node of a kMerge
  double value = 0;              // of one that went to Python, or came from there
  StackId stack = 0;
  StackId mode = 0;  // where grad mode was switched off
  uint32_t thread = 0;
  uint32_t source_thread = 0;
  uint32_t op = 0;
  uint32_t flags = 0;
  uint32_t parents[kMaxParents] = {};
};

// The last time that a program set `requires_grad` of a tensor itself.
struct FlagChange {
  uint64_t order = 0;
  int64_t tensor = 0;
  StackId stack = 0;
  uint32_t thread = 0;
  uint32_t value = 0;
  uint32_t taints = 0;  // of the tensor's flow at that time
  uint32_t parent = 0;  // that flow
};

}  // namespace gradext::journal
