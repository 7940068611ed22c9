// The journal as Python reads it: copied out, so that readers hold no lock.
#pragma once

#include <pybind11/pybind11.h>

#include <mutex>

namespace gradext::journal {

// Guards what snapshots keep; for fork.
std::mutex& snapshots_mutex();

void bind_snapshot(pybind11::module_& m);

}  // namespace gradext::journal
