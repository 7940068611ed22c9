// The guard's pybind11 door, and how the room speaks to Python.
#pragma once

#include "graph/graph.h"
#include "guard/guard.h"
#include "recorder/listener.h"

#include <pybind11/pybind11.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <string>

namespace gradext::guard {

void switch_on();
void switch_off();

// What is told of one saved tensor, as it was when it was used. Holds Python objects: made and let
// go under the GIL.
struct Told {
  std::shared_ptr<pybind11::dict> facts;
};
Told told_of(Node& node, const std::string& label, const state::SavedFacts& facts);

// A saved tensor's bytes are not those that were saved. Throws a recorder::Stop where the program
// is to be stopped (on_change="raise").
void tell_changed(const Told& told, const Entry& entry);

// Compares the entry's fingerprint with row `row` of `now`, on their device, when backward has
// ended.
void compare_later(
    const std::shared_ptr<Entry>& entry, const at::Tensor& now, int64_t row, Told told);

// A gradient was written while others were still to use it.
struct SharedGradient {
  int64_t storage = 0;
  uint64_t since = 0, until = 0;  // the journal's order when it was made and when it was seen
  std::string producer, writer, consumer;
  recorder::NodeId producer_id, writer_id;
  bool counted = true;  // its version moved
};
void tell_gradient(const SharedGradient& found);
void tell_overlap(const Overlap& found, const std::string& op);

void bind(pybind11::module_& m);

}  // namespace gradext::guard
