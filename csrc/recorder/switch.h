// Switches recordings on and off, and with them the dispatch keys of each thread.
//
// The recorder sees the program through kernels on dispatch keys of its own, for ops that write,
// make views, make graph nodes or new tensors. A key is in a thread's set only while a recording is
// on; on other threads nothing reaches the kernels.
//
// Why no RecordFunction callback: it is called for every op of a thread, at about 0.2 us each, and
// nine tenths of them are in backward and in the optimizer, where nothing is saved.
#pragma once

#include "base/aside.h"
#include "journal/journal.h"
#include "journal/names.h"
#include "journal/origins.h"
#include "stacks/stacks.h"

#include <c10/core/DispatchKey.h>

#include <atomic>
#include <cstdint>

namespace gradext::recorder {

// The recorder is written in terms of the rooms below it.
using namespace base;
using namespace stacks;
using namespace journal;

// Keys that torch defines for tests of its dispatcher and gives to no tensor. They lie above
// everything but PreDispatch and PythonDispatcher, so they see ops before any wrapper does. Ops
// that write or make views have kernels on the first; all others on the second, which a thread has
// only while saves, births or cuts are recorded. No op has kernels on both.
inline constexpr c10::DispatchKey kKey = c10::DispatchKey::TESTING_ONLY_GenericMode;
inline constexpr c10::DispatchKey kNodeKey = c10::DispatchKey::TESTING_ONLY_GenericWrapper;

// What one recording asks for on top of writes and views.
struct Wants {
  bool saves = true;
  bool births = true;
  bool cuts = true;
};

// One recording more or less; the calling thread records from now on. Nestable.
void start(Wants wants);
void stop(Wants wants);
bool active();
bool recording_saves();

// Brings the calling thread in line with what is being recorded now. Every Python thread calls it
// once when it starts.
void sync_thread();

// The recording is over: take the keys off this thread. False while one is on.
bool must_leave();

// How often recording has ended: what a thread remembers from before it means nothing.
extern std::atomic<uint64_t> ended_recordings;

// Read by every kernel, so not behind a function.
extern std::atomic<int> recordings;
extern std::atomic<int> recordings_with_saves;
// Whether births of inference tensors, and cuts of gradient paths, are recorded: bits of Wanted.
extern std::atomic<uint32_t> origins_wanted;
enum Wanted : uint32_t { kBirthsWanted = 1, kCutsWanted = 2 };

inline bool births_are_on() {
  return (origins_wanted.load(std::memory_order_relaxed) & kBirthsWanted) != 0;
}
inline bool cuts_are_on() {
  return (origins_wanted.load(std::memory_order_relaxed) & kCutsWanted) != 0;
}

}  // namespace gradext::recorder
