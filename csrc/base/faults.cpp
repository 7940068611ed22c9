#include "base/faults.h"

namespace gradext::base {

std::atomic<bool> injected{false};

namespace {

struct Counted {
  std::atomic<uint64_t> count{0};
  Mutex<Rank::kFaults> mutex;  // guards what follows
  std::string last;
};

// Never destroyed: threads may outlive main().
Counted& counted() {
  static Counted* instance = new Counted;
  return *instance;
}

}  // namespace

void count_fault(const char* what) noexcept {
  try {
    Counted& all = counted();
    ++all.count;
    std::lock_guard lock(all.mutex);
    all.last = what;
  } catch (...) {  // NOLINT: nothing of gradext's may leave
  }
}

Faults faults() {
  Counted& all = counted();
  std::lock_guard lock(all.mutex);
  return {all.count.load(), all.last};
}

Mutex<Rank::kFaults>& faults_mutex() {
  return counted().mutex;
}

void inject_fault(bool on) {
  injected = on;
}

}  // namespace gradext::base
