// Helpers that the files of findings/ share. Internal to them.
#pragma once

#include "findings/findings.h"

#include "graph/graph.h"

#include <Python.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace gradext::findings::detail {

constexpr uint64_t kNoSequence = UINT64_MAX;

void append(std::string& text, uint64_t number);
void append(std::string& text, const char* word);

// The place of one more frame within `outer`, 0 for the outermost; null `code`: callers that are
// not known. Keeps the code object. Under the GIL.
uint64_t place_within(uint64_t outer, PyCodeObject* code, int instruction);

// The nodes below some roots.
struct Below {
  std::vector<graph::GraphNode> nodes;
  bool whole = true;
  uint64_t thread = 0;            // of all nodes, 0 where they are of several
  uint64_t oldest = kNoSequence;  // the smallest sequence number

  explicit Below(const Roots& roots);
  journal::NodeId id_of(const graph::GraphNode& at) const;
};

// The following read the journal under its mutex.

// The stack that made a node, and that of the forward node that was being differentiated.
std::pair<stacks::StackId, stacks::StackId> stacks_of(
    journal::Journal& journal, const journal::NodeId& id, int depth = 0);
void append_node(std::string& text, journal::Journal& journal, const journal::NodeId& id);
// Where the backward call is that runs on this thread.
stacks::StackId call_of(const journal::Journal& journal);

}  // namespace gradext::findings::detail
