#include "recorder/uncounted_writes.h"

#include "journal/live_table.h"

#include <atomic>

namespace gradext::recorder {
namespace {

using journal::LiveTable;

struct Apart {
  uint64_t order = 0;  // among them
};

struct Uncounted {
  std::atomic<uint64_t> count{0};
  base::Mutex<base::Rank::kUncounted> mutex;  // guards what follows
  // Of a thread: its sequence number at the last such write. Of two threads, no more are needed:
  // whatever node there is, it is older than one of these writes as far as anybody can tell.
  std::vector<NodeId> from;
  LiveTable<Apart> apart;
  std::atomic<size_t> apart_count{0};
};

// Never destroyed: threads may outlive main().
Uncounted& uncounted() {
  static Uncounted* instance = new Uncounted;
  return *instance;
}

}  // namespace

void remember_uncounted(uint64_t thread, uint64_t sequence) {
  Uncounted& g = uncounted();
  ++g.count;
  std::lock_guard lock(g.mutex);
  for (NodeId& known : g.from) {
    if (known.thread == thread) {
      known.sequence = sequence;
      return;
    }
  }
  if (g.from.size() < 2) {
    g.from.push_back(NodeId{thread, sequence});
  }
}

bool spans_uncounted_write(const std::vector<NodeId>& nodes) {
  Uncounted& g = uncounted();
  if (g.count.load(std::memory_order_relaxed) == 0) {
    return false;
  }
  std::vector<NodeId> writes;
  {
    std::lock_guard lock(g.mutex);
    writes = g.from;
  }
  for (const NodeId& write : writes) {
    for (const NodeId& node : nodes) {
      // Numbers of different threads say nothing about before and after.
      if (node.thread != write.thread || node.sequence < write.sequence) {
        return true;
      }
    }
  }
  return false;
}

void forget_uncounted_writes() {
  Uncounted& g = uncounted();
  std::lock_guard lock(g.mutex);
  g.from.clear();
  g.count = 0;
  g.apart.clear();
  g.apart_count = 0;
}

void note_apart(const void* counter) {
  if (counter == nullptr) {
    return;
  }
  Uncounted& g = uncounted();
  std::lock_guard lock(g.mutex);
  static uint64_t last = 0;
  bool is_new = false;
  g.apart.put(counter, is_new, [](const Apart&) {})->order = ++last;
  g.apart_count = g.apart.size();
}

bool is_apart(const void* counter) {
  Uncounted& g = uncounted();
  if (g.apart_count.load(std::memory_order_relaxed) == 0) {
    return false;
  }
  std::lock_guard lock(g.mutex);
  return g.apart.find(counter) != nullptr;
}

base::Mutex<base::Rank::kUncounted>& uncounted_mutex() {
  return uncounted().mutex;
}

}  // namespace gradext::recorder
