// Finds the line that wrote memory without an op: it compares memory that the program got hold of
// itself (numpy, a pointer, a storage) at each line of the user's Python code, so a change was made
// by the line before.
//
// A trace function of C, on only while some watched tensor's memory is exposed. It leaves
// sys.settrace alone: where a debugger or a coverage tool traces, no line is looked at, and the
// report is the window between the save and the use. A thread that runs lines unseen may have done
// any write that is found meanwhile, so then no line is blamed either.
#pragma once

#include "guard/entry.h"
#include "guard/lines/exposed.h"

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace gradext::guard {

// Which files are the user's: a function of Python's, of a file's name. From now on.
void judge_files_by(const pybind11::object& is_user_file);

// The program got hold of the memory itself (numpy, a pointer, a storage): what lies in it is
// looked at between lines.
void watch_lines_of(const c10::StorageImpl* storage);
// An entry to be looked at between lines if its memory is, or comes to be, in other hands. By what
// it can be written now.
By watch_lines(const std::shared_ptr<Entry>& entry, const at::Tensor& tensor);
// Compares all exposed tensors now. Called just before a use, so that a change since the last
// traced line is not missed.
void look_now();
// Compares what lies in these storages now: an op that is not torch's has just had them.
void look_at(const std::vector<const void*>& storages);
// A Python thread has started: its lines are seen too.
void wake_lines();
void forget_lines();
struct LineFacts {
  size_t entries, exposed;
  uint64_t looks;
  bool armed;
};
LineFacts line_facts();

}  // namespace gradext::guard
