// Reports what the guard has found to Python (gradext.byte_guard.guard), as a dict of facts.
#pragma once

#include "graph/graph.h"
#include "guard/entry.h"
#include "guard/guard.h"
#include "guard/overlap.h"
#include "journal/events.h"

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <string>

namespace gradext::guard {

// Who is called with (kind, facts), from now on.
void report_to(const pybind11::object& on_finding);

// What is told of one saved tensor, as it was when it was used. Holds Python objects: made and let
// go under the GIL.
struct Told {
  std::shared_ptr<pybind11::dict> facts;
};
Told told_of(Node& node, const std::string& label, const graph::SavedFacts& facts);

// A saved tensor's bytes are not those that were saved. Throws a base::Stop where the program
// is to be stopped (on_change="raise").
void tell_changed(const Told& told, const Entry& entry);

// A gradient was written while others were still to use it.
struct SharedGradient {
  int64_t storage = 0;
  uint64_t since = 0, until = 0;  // the journal's order when it was made and when it was seen
  std::string producer, writer, consumer;
  journal::NodeId producer_id, writer_id;
  bool counted = true;  // its version moved
};
void tell_gradient(const SharedGradient& found);
void tell_overlap(const Overlap& found, const std::string& op);

// What was seen between lines of a change to the entry.
void add_change(pybind11::dict& out, const Entry& entry);

}  // namespace gradext::guard
