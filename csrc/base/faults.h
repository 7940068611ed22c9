// The count of gradext's own errors: what goes wrong in its work never reaches the program.
#pragma once

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
std::mutex& faults_mutex();  // for fork

// Makes safely() (aside.h) throw instead of doing its work, for the tests of what it promises.
void inject_fault(bool on);
extern std::atomic<bool> injected;

}  // namespace gradext::base
