// The order in which gradext's mutexes may be taken.
//
// A thread that holds one of them takes only such as stand further down in Rank: two threads can
// then never wait for each other. In builds that define GRADEXT_CHECK_LOCKS (those of the
// sanitizers), or that do not define NDEBUG, taking one out of order ends the process with a line
// that names both; in others a Mutex is a std::mutex and costs nothing more.
//
// Not in the list: torch's own mutexes (a node's, AutogradMeta's), which are only tried, or waited
// for with none of these held; the GIL, which is never waited for with one of these held; and the
// mutexes of one function's own work (fingerprints of one tensor by several threads, CUDA streams,
// the counts of calls), under which no other is taken.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <mutex>

#if !defined(NDEBUG) || defined(GRADEXT_CHECK_LOCKS)
#define GRADEXT_LOCKS_ARE_CHECKED 1
#endif

namespace gradext::base {

// Outermost first. A fork takes them all, in this order.
enum class Rank : uint8_t {
  kDeviceSaves = 1,  // guard/device_saves.cpp: comparisons that wait for the end of a backward
  kGradients = 2,    // guard/gradients.cpp: gradients that several nodes are to use
  kExposed = 3,      // guard/lines/exposed.cpp: memory that is written without an op
  kOverlaps = 4,     // guard/overlap.cpp: tensors that overlap themselves
  kLiveNodes = 5,    // guard/live_nodes.cpp: nodes whose saved tensors nobody has listed yet
  kJournal = 6,  // journal/journal.h: writes, views, backwards, identities, the list of save logs
  kSaveLog = 7,  // journal/journal.h: the saves of one thread; of several with the journal's alone
  kOrigins = 8,  // journal/origins.h: births and flows
  kNames = 9,    // journal/names.cpp: numbers of names; ops that were defined late
  kUncounted = 10,  // recorder/uncounted_writes.cpp: writes that no version counter has seen
  kBefore = 11,     // recorder/before_writes.cpp: what memory held before such writes
  kSnapshots = 12,  // journal/snapshot.cpp: what snapshots keep from being forgotten
  kStacks = 13,     // stacks/stack_table.h: the table of stacks
  kFaults = 14,     // base/faults.cpp: gradext's own errors, counted wherever they happen
};

#ifdef GRADEXT_LOCKS_ARE_CHECKED

// The ranks that a thread holds now.
class HeldRanks {
 public:
  void check(Rank wanted) const {
    for (size_t k = 0; k < count_; ++k) {
      const bool is_one_of_several = wanted == Rank::kSaveLog && has(Rank::kJournal);
      if (ranks_[k] > wanted || (ranks_[k] == wanted && !is_one_of_several)) {
        std::fprintf(
            stderr,
            "gradext: a mutex of rank %d is taken inside one of rank %d (csrc/base/locks.h)\n",
            static_cast<int>(wanted),
            static_cast<int>(ranks_[k]));
        std::abort();
      }
    }
  }
  void add(Rank taken) {
    if (count_ < kMost) {
      ranks_[count_++] = taken;
    }
  }
  // Mutexes are not given back in the order in which they were taken.
  void remove(Rank given_back) {
    for (size_t k = count_; k > 0; --k) {
      if (ranks_[k - 1] == given_back) {
        ranks_[k - 1] = ranks_[--count_];
        return;
      }
    }
  }
  static HeldRanks& of_thread() {
    static thread_local HeldRanks held;
    return held;
  }

 private:
  bool has(Rank rank) const {
    for (size_t k = 0; k < count_; ++k) {
      if (ranks_[k] == rank) {
        return true;
      }
    }
    return false;
  }
  static constexpr size_t kMost = 256;  // a fork takes the save log of each thread
  Rank ranks_[kMost] = {};
  size_t count_ = 0;
};

#endif

// A std::mutex with its place in the order.
template <Rank rank>
class Mutex {
 public:
  void lock() {
#ifdef GRADEXT_LOCKS_ARE_CHECKED
    HeldRanks::of_thread().check(rank);
#endif
    mutex_.lock();
#ifdef GRADEXT_LOCKS_ARE_CHECKED
    HeldRanks::of_thread().add(rank);
#endif
  }
  void unlock() {
#ifdef GRADEXT_LOCKS_ARE_CHECKED
    HeldRanks::of_thread().remove(rank);
#endif
    mutex_.unlock();
  }

 private:
  std::mutex mutex_;
};

}  // namespace gradext::base
