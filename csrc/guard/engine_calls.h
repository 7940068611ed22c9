// Knows the calls of the engine that are under way, and which nodes they may run: the engine goes
// through a node's hooks without a lock, so none may be added to a node that it may be running. All
// of it under the GIL.
#pragma once

#include "guard/guard.h"

#include <cstdint>
#include <vector>

namespace gradext::guard {

// What one call may run.
enum class Reach : uint8_t {
  kUnknown,
  kOwn,    // nodes that its thread made before it began, and leaves
  kHooked  // nodes that have all of the guard's hooks
};

// A guard begins: calls that are under way are seen only by their frames.
void look_for_engine_calls();
// This thread calls the engine. Until call_reaches() says more, of what it may run nothing is
// known.
void call_begins();
void call_reaches(Reach reach);
void call_ends();

void forget_calls_of_others();  // in a child of fork(), which has none of the other threads

// Whether some call beside the last one of this thread may run the node. Asked only of nodes that
// lack a hook.
class OtherCalls {
 public:
  OtherCalls();
  bool may_run(const Node& node) const;

 private:
  bool any_unknown_ = false;
  struct Other {
    uint64_t thread, sequence;
  };
  std::vector<Other> others_;
};

// Whether the calling thread has made the node.
bool is_of_this_thread(const Node& node);
// Whether the node fills a `.grad`: it belongs to all graphs that the leaf is in.
bool is_of_a_leaf(const Node& node);

}  // namespace gradext::guard
