// The guard detects writes by content: it fingerprints a tensor when autograd saves it and again
// before backward reads it. (The other two sources of evidence are op schemas and version
// counters.) Between two lines of Python it compares memory that was handed out of torch as well.
//
// A room above the recorder: the recorder calls it through recorder/listener.h and knows nothing of
// it. Takes no saved-tensor hook; its own hooks on nodes (C++, invisible to Python) return what
// they got. Tensors are held weakly.
#pragma once

#include "base/aside.h"

#include <torch/csrc/autograd/function.h>

#include <atomic>
#include <cstdint>
#include <exception>

namespace gradext::guard {

using torch::autograd::Node;

// Whether some guard is on, and how often one has been switched on or off.
inline std::atomic<int> guards{0};
inline std::atomic<uint64_t> epoch{0};
inline bool is_on() {
  return guards.load(std::memory_order_relaxed) > 0;
}
// Guards that fingerprint all that is saved (`--guard=all`). Others leave out what nobody outside
// of torch can write: guard/exposure.h.
inline std::atomic<int> guards_of_all{0};
inline bool sees_all() {
  return guards_of_all.load(std::memory_order_relaxed) > 0;
}
// Guards that began before the program had made a tensor.
inline std::atomic<int> guards_of_programs{0};
inline bool knows_all_births() {
  return guards_of_programs.load(std::memory_order_relaxed) > 0;
}

// True while this thread runs code of the guard's own, whose ops are not the program's.
inline bool& in_guard() {
  static thread_local bool inside = false;
  return inside;
}

// The guard's own work, on any thread, with or without the GIL. Only what is meant for the program
// leaves, as a Stop.
template <class Work>
void guarded(Work&& work) {
  if (in_guard()) {
    return;
  }
  in_guard() = true;
  std::exception_ptr stop;
  base::safely([&] {
    try {
      work();
    } catch (const base::Stop&) {
      stop = std::current_exception();
    }
  });
  in_guard() = false;
  if (stop) {
    std::rethrow_exception(stop);
  }
}

}  // namespace gradext::guard
