// Copies the journal out as numpy tables, so that Python reads it without a lock.
#pragma once

#include "base/locks.h"

#include <pybind11/pybind11.h>

#include <mutex>

namespace gradext::journal {

// Guards what snapshots keep; for fork.
base::Mutex<base::Rank::kSnapshots>& snapshots_mutex();

void bind_snapshot(pybind11::module_& m);

}  // namespace gradext::journal
