// Notes when writes happened, when nodes were made and when they ran, for those who ask: an
// observer of every op, which a recording does without.
#pragma once

#include "journal/journal.h"
#include "recorder/thread_state.h"

#include <atomic>

namespace gradext::recorder {

extern std::atomic<int> recordings_with_times;

// One recording more (1) or less (-1) that wants them, with so many bytes of room.
void want_times(int step, size_t bytes);

inline bool times_are_on() {
  return recordings_with_times.load(std::memory_order_relaxed) > 0;
}

// A write that was just noted. Under the journal's mutex.
void note_time_of(const journal::Write& write);

}  // namespace gradext::recorder
