// Findings about uses of a tensor that torch refused: an in-place write, or an inference tensor
// where autograd is at work.
#pragma once

#include "findings/findings.h"

#include <ATen/core/Tensor.h>

#include <Python.h>

#include <cstdint>
#include <string>

namespace gradext::findings {

// A use of a tensor that torch refused with `text`: the lines of the error's `traceback` (or null),
// of the refused call, and of those that made the tensor. Not found: the call was not noted, and
// only the traceback's lines are known.
Finding refused(const std::string& text, PyObject* traceback, bool is_backward, uint64_t since);
// A use of a view that was refused because the memory was written after the view was made.
Finding used(const at::Tensor& view, PyObject* traceback);
}  // namespace gradext::findings
