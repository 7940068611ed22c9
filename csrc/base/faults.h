// Counts gradext's own errors, which never reach the program, and keeps the text of the last.
#pragma once

#include "base/locks.h"

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>

namespace gradext::base {

struct Faults {
  uint64_t count;
  std::string last;
};
Faults faults();
void count_fault(const char* what) noexcept;
Mutex<Rank::kFaults>& faults_mutex();  // for fork

// Makes safely() (aside.h) throw instead of doing its work, for the tests of what it promises.
void inject_fault(bool on);
extern std::atomic<bool> injected;

}  // namespace gradext::base
