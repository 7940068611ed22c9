#include "recorder/fork.h"

#include "base/faults.h"
#include "journal/journal.h"
#include "journal/names.h"
#include "journal/origins.h"
#include "journal/snapshot.h"
#include "recorder/switch.h"
#include "recorder/uncounted_writes.h"
#include "stacks/stacks.h"

#include <pthread.h>

#include <mutex>
#include <vector>

namespace gradext::recorder {
namespace {

std::vector<std::mutex*>& held_logs() {
  static auto* held = new std::vector<std::mutex*>;
  return *held;
}

void lock_all() {
  Journal& journal = Journal::get();
  journal.mutex.lock();
  Origins::get().mutex.lock();
  names_mutex().lock();
  uncounted_mutex().lock();
  base::faults_mutex().lock();
  held_logs().clear();
  for (const auto& log : journal.save_logs) {
    log->mutex.lock();
    held_logs().push_back(&log->mutex);
  }
  snapshots_mutex().lock();
  stacks_lock();
}

void unlock_all() {
  stacks_unlock();
  snapshots_mutex().unlock();
  for (std::mutex* mutex : held_logs()) {
    mutex->unlock();
  }
  base::faults_mutex().unlock();
  uncounted_mutex().unlock();
  names_mutex().unlock();
  Origins::get().mutex.unlock();
  Journal::get().mutex.unlock();
}

}  // namespace

// A fork while another thread holds one of the locks would leave it locked in the child for ever.
void register_fork_handlers() {
  pthread_atfork(&lock_all, &unlock_all, &unlock_all);
}

}  // namespace gradext::recorder
