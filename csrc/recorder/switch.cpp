#include "recorder/switch.h"

#include "recorder/before_writes.h"
#include "recorder/fork.h"
#include "recorder/kernels/registration.h"
#include "recorder/lost_gradients/python_crossings.h"
#include "recorder/uncounted_writes.h"

#include <c10/core/impl/LocalDispatchKeySet.h>

#include <mutex>

namespace gradext::recorder {

std::atomic<int> recordings{0};
std::atomic<int> recordings_with_saves{0};
std::atomic<uint32_t> origins_wanted{0};
std::atomic<uint64_t> ended_recordings{0};

void sync_thread() {
  const bool on = active();
  const bool with_nodes = on && (recording_saves() || origins_wanted.load() != 0);
  if (c10::impl::tls_is_dispatch_key_included(kKey) != on) {
    c10::impl::tls_set_dispatch_key_included(kKey, on);
  }
  if (c10::impl::tls_is_dispatch_key_included(kNodeKey) != with_nodes) {
    c10::impl::tls_set_dispatch_key_included(kNodeKey, with_nodes);
  }
}

bool must_leave() {
  if (active()) {
    return false;
  }
  sync_thread();
  return true;
}

namespace {

std::atomic<int> recordings_with_births{0};
std::atomic<int> recordings_with_cuts{0};

void count(Wants wants, int step) {
  recordings_with_saves += wants.saves * step;
  recordings_with_births += wants.births * step;
  recordings_with_cuts += wants.cuts * step;
  origins_wanted = (recordings_with_births > 0 ? kBirthsWanted : 0) |
                   (recordings_with_cuts > 0 ? kCutsWanted : 0);
  recordings += step;
}

}  // namespace

void start(Wants wants) {
  static std::once_flag once;
  std::call_once(once, [] {
    register_kernels();
    register_fork_handlers();
  });
  count(wants, 1);
  sync_thread();
}

void stop(Wants wants) {
  count(wants, -1);
  sync_thread();
  if (!active()) {
    Journal::get().clear();
    Origins::get().clear();
    forget_crossings();
    ++ended_recordings;
    forget_uncounted_writes();
    forget_before();
    set_backward_stack(0);
  }
}

bool recording_saves() {
  return recordings_with_saves.load() > 0;
}

bool active() {
  return recordings.load() > 0;
}

}  // namespace gradext::recorder
