// Tells whether a fault is one that was found before, by the lines that take part in it.
//
// A program that goes wrong in a loop goes wrong in the same places each time. These functions name
// the places (as numbers of stacks) in microseconds, so that the explanation is made once. They
// read the graph that the failing call was given, and the journal; they name nothing and judge
// nothing.
#pragma once

#include "journal/journal.h"

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function.h>

#include <cstdint>
#include <string>
#include <vector>

namespace gradext::findings {

struct Finding {
  bool found = false;    // whether there is anything of the kind
  bool is_whole = true;  // false: something could not be read, so it may be another finding
  std::string places;    // the lines: two findings with other places are two
  std::string details;   // which bytes, how often: what else a text may tell of
  int64_t tensor = 0;    // of the first tensor that is told of, its id and its version counter's
  int64_t counter = 0;
};

// A number for the places in the source that a stack stands for.
uint64_t place_of(stacks::StackId stack);

using Roots = std::vector<torch::autograd::Node*>;

// Saved tensors whose version has moved, and the writes that moved it.
Finding stale(const Roots& roots, uint64_t since);
// Saved tensors whose memory was written past their version counter.
Finding silent(const Roots& roots, uint64_t since);
// Nodes whose saved tensors have been released, and the backward that did so.
Finding freed(const Roots& roots);
// The writes to one storage, and exchanges of memory under one counter, after `order`.
Finding written(
    const journal::NodeId& node, const void* storage, const void* counter, uint64_t order);

}  // namespace gradext::findings
