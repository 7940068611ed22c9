// Remembers when writes happened that torch's version counters did not count: a backward over a
// graph that is older than one of them is looked at before it runs.
#pragma once

#include "base/locks.h"
#include "journal/events.h"

#include <cstdint>
#include <mutex>
#include <vector>

namespace gradext::recorder {

using journal::NodeId;

// The thread has made such a write at this sequence number of autograd's.
void remember_uncounted(uint64_t thread, uint64_t sequence);
// True when some node is older than a write that torch's version check cannot see.
bool spans_uncounted_write(const std::vector<NodeId>& nodes);
// Forget such writes up to now.
void forget_uncounted_writes();

base::Mutex<base::Rank::kUncounted>& uncounted_mutex();  // for fork

}  // namespace gradext::recorder
