#include "recorder/fork.h"

#include "base/faults.h"
#include "journal/journal.h"
#include "journal/names.h"
#include "journal/origins.h"
#include "journal/snapshot.h"
#include "recorder/before_writes.h"
#include "recorder/switch.h"
#include "recorder/uncounted_writes.h"
#include "stacks/stacks.h"

#include <pthread.h>

#include <mutex>
#include <vector>

namespace gradext::recorder {
namespace {

std::vector<decltype(SaveLog::mutex)*>& held_logs() {
  static auto* held = new std::vector<decltype(SaveLog::mutex)*>;
  return *held;
}

// In the order of base/locks.h. The guard's come before these: what was registered last is called
// first.
void lock_all() {
  Journal& journal = Journal::get();
  journal.mutex.lock();
  held_logs().clear();
  for (const auto& log : journal.save_logs) {
    log->mutex.lock();
    held_logs().push_back(&log->mutex);
  }
  Origins::get().mutex.lock();
  names_mutex().lock();
  uncounted_mutex().lock();
  before_mutex().lock();
  snapshots_mutex().lock();
  stacks_lock();
  faults_mutex().lock();
}

void unlock_all() {
  faults_mutex().unlock();
  stacks_unlock();
  snapshots_mutex().unlock();
  before_mutex().unlock();
  uncounted_mutex().unlock();
  names_mutex().unlock();
  Origins::get().mutex.unlock();
  for (auto* mutex : held_logs()) {
    mutex->unlock();
  }
  Journal::get().mutex.unlock();
}

}  // namespace

// A fork while another thread holds one of the locks would leave it locked in the child for ever.
void register_fork_handlers() {
  pthread_atfork(&lock_all, &unlock_all, &unlock_all);
}

}  // namespace gradext::recorder
