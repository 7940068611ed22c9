// Remembers which counters do not cover the memory of their tensors, and when writes happened that
// torch's version counters did not count: a backward over a graph that is older than one of them is
// looked at before it runs.
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

// The counter is that of a tensor which `.data` gave: it does not cover the tensor whose memory it
// shares. How many tensors share memory and how many a counter says this only at times: a tensor
// that has died holds its counter for as long as somebody holds the tensor weakly.
void note_apart(const void* counter);
bool is_apart(const void* counter);

base::Mutex<base::Rank::kUncounted>& uncounted_mutex();  // for fork

}  // namespace gradext::recorder
