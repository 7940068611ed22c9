// The reads of gradext.ops for tensors that the dispatcher would do nothing for.
#pragma once

#include <pybind11/pybind11.h>

namespace gradext::state {

// Adds `plain_reader(name, otherwise)` to the module.
void bind_plain_reads(pybind11::module_& m);

}  // namespace gradext::state
