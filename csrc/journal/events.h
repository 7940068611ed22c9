// Defines the events that the journal keeps and the columns of their tables. An event has no
// pointer to anything of the program's. Storages and version counters go by numbers (identities.h),
// stacks by theirs.
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
  // Autograd's sequence number on this thread when the op began: a node with this number or a
  // later one has seen the write, or was made by the same op.
  uint64_t sequence = 0;
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
  kBySize = 1 << 14,      // kFromPython: what it came from is guessed, by the size of the array
  kTakesHeld = 1 << 15,   // the result requires grad: a kTaintHeld went into it
  // What the value was computed from, however long ago:
  kTaintCut = 1 << 16,
  kTaintGrad = 1 << 17,  // kGradCall
  kTaintPython = 1
      << 18,  // derived from a Python number that came from a tensor (.item(), .tolist())
  kTaintInput = 1 << 19,  // kGradCall, with respect to what is no parameter
  // An op without a derivative (a comparison, argmax) made it of something that has had no gradient
  // from any backward so far; or it is a draw, comes from the `.data` of a weight, or from a grad
  // mode that may have been left off by mistake.
  kTaintDecision = 1 << 20,
  // Its memory was made by Python or numpy, which may have computed it from what had left for
  // there.
  kTaintGuess = 1 << 21,
  // A reentrant checkpoint computed it with something to be trained, and from no input with a
  // gradient, so that nothing in it gets one.
  kTaintCheckpoint = 1 << 22,
  // It was computed without grad mode, or detached, and leaves lie behind it that no backward has
  // reached so far.
  kTaintHeld = 1 << 23,
};
constexpr uint32_t kTaints = kTaintCut | kTaintGrad | kTaintPython | kTaintInput | kTaintDecision |
                             kTaintGuess | kTaintCheckpoint | kTaintHeld;

constexpr size_t kMaxParents = 4;

// One result that does not require grad. `parents` are the low halves of the numbers of the births
// and flows of its inputs, 0 where there are fewer.
struct Flow {
  uint64_t order = 0;
  uint64_t number = 0;
  int64_t tensor = 0;            // its address: means this tensor only while it lives
  int64_t source = 0;            // the input that required grad; what a gradient was taken by
  uint64_t source_sequence = 0;  // its node; the new node of a kMerge
  // Of one that went to Python, or came from there; of a kGradCall, the number of the flow of what
  // the gradient was taken by.
  double value = 0;
  StackId stack = 0;
  StackId mode = 0;  // where grad mode was switched off
  uint32_t thread = 0;
  uint32_t source_thread = 0;
  uint32_t op = 0;
  uint32_t flags = 0;
  uint32_t parents[kMaxParents] = {};
  // The leaves behind the cut that it is, or that it was computed from (LeafSets); 0 if not known.
  uint32_t behind = 0;
  // Of a kTaintHeld: the leaves that this op itself kept from getting a gradient (LeafSets).
  uint32_t held = 0;
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

// A tensor that a node had saved, noted as a backward began that may use it. Only where that was
// asked for (record_uses.h).
struct Use {
  uint64_t order = 0;  // of the Backward
  uint64_t storage = 0;
  uint64_t counter = 0;
  Extent extent;
  uint64_t sequence = 0;  // of the node
  uint64_t thread = 0;    // of the node
  StackId stack = 0;      // where backward was called
  uint32_t op = 0;        // the node's name
  uint32_t attribute = 0;
  uint32_t saved_version = 0;
  uint32_t version = 0;  // of the counter as the backward began
  uint32_t flags = 0;
};

enum UseFlags : uint32_t {
  kUseOfLeaf = 1,
  kUseOfOutput = 2,  // the node saved its own result
  kUseHooked = 4,    // packed by saved-tensor hooks: torch does not check its version
  kUseUncounted = 8  // an inference tensor: no counter
};

// When something happened. Only where that was asked for (record_times.h).
struct Moment {
  uint64_t order = 0;  // of a write, its own
  uint64_t time = 0;   // nanoseconds since 1970, as the profiler's traces count
  uint64_t sequence = 0;
  uint64_t thread = 0;
  uint64_t system_thread = 0;  // as the operating system numbers it
  StackId stack = 0;
  uint32_t op = 0;    // the operator, or the node's name
  uint32_t kind = 0;  // of MomentKind
};

enum MomentKind : uint32_t {
  kOfWrite = 0,
  kOfNode = 1,  // the op made the node of this sequence number
  kOfUse = 2    // the node of this number ran in a backward
};

// The columns of the tables that a snapshot of the journal is made of, in their order: X(name,
// value), where `e` is the event. What else a value names is there where a row is filled
// (snapshot.cpp): show() gives a storage's or a counter's address while it lives and a negative
// number afterwards, `key` is the address of what a birth or a flag is known by. These lists are
// the only ones: Python reads tables by the names in gradext._C.EVENT_COLUMNS, and files keep the
// names with the rows.
#define GRADEXT_WRITE_COLUMNS(X)      \
  X(order, e.order)                   \
  X(storage, show(e.storage))         \
  X(counter, show(e.counter))         \
  X(begin, e.extent.begin)            \
  X(end, e.extent.end)                \
  X(sequence, e.sequence)             \
  X(thread, e.thread)                 \
  X(stack, e.stack)                   \
  X(op, e.op)                         \
  X(inner_op, e.inner_op)             \
  X(version_before, e.version_before) \
  X(version_after, e.version_after)   \
  X(geometry, e.geometry)             \
  X(argument, e.argument)             \
  X(flags, e.flags)

#define GRADEXT_VIEW_COLUMNS(X) \
  X(order, e.order)             \
  X(storage, show(e.storage))   \
  X(begin, e.extent.begin)      \
  X(end, e.extent.end)          \
  X(sequence, e.sequence)       \
  X(tensor, e.tensor)           \
  X(thread, e.thread)           \
  X(stack, e.stack)             \
  X(op, e.op)                   \
  X(creation_meta, e.flags)

// `log`: the thread's; `origin`: the forward node that was being differentiated, -1 if none.
#define GRADEXT_SAVE_COLUMNS(X)   \
  X(thread, log.thread)           \
  X(sequence, e.sequence)         \
  X(stack, e.stack)               \
  X(origin_thread, origin.thread) \
  X(origin_sequence, origin.sequence)

#define GRADEXT_BIRTH_COLUMNS(X) \
  X(storage, key)                \
  X(order, e.order)              \
  X(number, e.number)            \
  X(tensor, e.tensor)            \
  X(stack, e.stack)              \
  X(mode, e.mode)                \
  X(op, e.op)                    \
  X(thread, e.thread)            \
  X(has_gradient_behind, e.has_gradient_behind)

// `lives`: whether the tensor does. The last column is kept for files of earlier versions.
#define GRADEXT_FLOW_COLUMNS(X)         \
  X(order, e.order)                     \
  X(number, e.number)                   \
  X(tensor, e.tensor)                   \
  X(source, e.source)                   \
  X(source_thread, e.source_thread)     \
  X(source_sequence, e.source_sequence) \
  X(value, bits_of(e.value))            \
  X(stack, e.stack)                     \
  X(mode, e.mode)                       \
  X(thread, e.thread)                   \
  X(op, e.op)                           \
  X(flags, e.flags)                     \
  X(parent0, e.parents[0])              \
  X(parent1, e.parents[1])              \
  X(parent2, e.parents[2])              \
  X(parent3, e.parents[3])              \
  X(lives, lives)                       \
  X(unused, 0)

#define GRADEXT_FLAG_COLUMNS(X) \
  X(tensor, key)                \
  X(order, e.order)             \
  X(stack, e.stack)             \
  X(thread, e.thread)           \
  X(value, e.value)             \
  X(taints, e.taints)           \
  X(parent, e.parent)

#define GRADEXT_USE_COLUMNS(X)      \
  X(order, e.order)                 \
  X(storage, show(e.storage))       \
  X(counter, show(e.counter))       \
  X(begin, e.extent.begin)          \
  X(end, e.extent.end)              \
  X(sequence, e.sequence)           \
  X(thread, e.thread)               \
  X(stack, e.stack)                 \
  X(op, e.op)                       \
  X(attribute, e.attribute)         \
  X(saved_version, e.saved_version) \
  X(version, e.version)             \
  X(flags, e.flags)

#define GRADEXT_MOMENT_COLUMNS(X)   \
  X(order, e.order)                 \
  X(time, e.time)                   \
  X(sequence, e.sequence)           \
  X(thread, e.thread)               \
  X(system_thread, e.system_thread) \
  X(stack, e.stack)                 \
  X(op, e.op)                       \
  X(kind, e.kind)

// The nodes of one Backward.
#define GRADEXT_NODE_COLUMNS(X) \
  X(thread, e.thread)           \
  X(sequence, e.sequence)

// The kinds of events that the journal keeps the latest of, in one ring each: X(table, Event,
// COLUMNS, sixteenths). `table` is the ring's name and Python's, a plural with an s; `Event` has an
// `order` and a `stack`; `COLUMNS` names the list above; `sixteenths` is the ring's share of a
// recording's memory. A row here is all that a new kind needs to be kept, copied out, counted where
// it is dropped, and to have its stacks held (docs/architecture.md has the other places).
// Those with no share have a block, and room on top of that memory where they are asked for.
#define GRADEXT_RINGS(X)     \
  X(writes, Write, WRITE, 5) \
  X(views, View, VIEW, 2)    \
  X(uses, Use, USE, 0)       \
  X(moments, Moment, MOMENT, 0)

// All tables of a snapshot: also those whose events are kept by thread, or by what lives.
#define GRADEXT_TABLES(X)    \
  GRADEXT_RINGS(X)           \
  X(saves, Save, SAVE, 2)    \
  X(births, Birth, BIRTH, 1) \
  X(flows, Flow, FLOW, 3)    \
  X(flags, FlagChange, FLAG, 0)

#define GRADEXT_SHARE(table, Event, COLUMNS, sixteenths) table = sixteenths,
struct Sixteenths {
  enum : size_t { GRADEXT_TABLES(GRADEXT_SHARE) };
};
#undef GRADEXT_SHARE

#define GRADEXT_SHARE(table, Event, COLUMNS, sixteenths) +sixteenths
constexpr size_t kSixteenthsOfTables = GRADEXT_TABLES(GRADEXT_SHARE);
#undef GRADEXT_SHARE

// WriteColumn, ViewColumn ...: positions in a row by name, and the names in their order.
#define GRADEXT_COLUMN_NAME(name, value) name,
#define GRADEXT_COLUMN_TEXT(name, value) #name,
#define GRADEXT_COLUMN_STRUCT(table, Event, COLUMNS, sixteenths)                                \
  struct Event##Column {                                                                        \
    enum : size_t { GRADEXT_##COLUMNS##_COLUMNS(GRADEXT_COLUMN_NAME) kCount };                  \
    static constexpr const char* kNames[] = {GRADEXT_##COLUMNS##_COLUMNS(GRADEXT_COLUMN_TEXT)}; \
  };
GRADEXT_TABLES(GRADEXT_COLUMN_STRUCT)
GRADEXT_COLUMN_STRUCT(nodes, NodeId, NODE, 0)  // the table of one Backward
#undef GRADEXT_COLUMN_STRUCT
#undef GRADEXT_COLUMN_TEXT
#undef GRADEXT_COLUMN_NAME

}  // namespace gradext::journal
