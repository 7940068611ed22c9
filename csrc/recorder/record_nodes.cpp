#include "recorder/record_nodes.h"

#include "recorder/switch.h"
#include "recorder/thread_state.h"

#include <ATen/SequenceNumber.h>
#include <torch/csrc/autograd/function.h>

#include <mutex>

namespace gradext::recorder {

namespace {

uint32_t origin_of(ThreadState& thread) {
  auto node = torch::autograd::get_current_node();
  if (!node || node->sequence_nr() == UINT64_MAX) {
    return 0;
  }
  SaveLog& log = *thread.log;
  const NodeId id{node->thread_id(), node->sequence_nr()};
  if (log.origins.empty() || log.origins.back().sequence != id.sequence ||
      log.origins.back().thread != id.thread) {
    log.origins.push_back(id);
    if (log.origins.size() > (1 << 16)) {
      log.origins.pop_front();
      ++log.origins_dropped;
    }
  }
  return static_cast<uint32_t>(log.origins.size() + log.origins_dropped);
}

}  // namespace

void note_nodes() {
  safely([] {
    ThreadState& thread = thread_state();
    if (!thread.log) {
      thread.log = Journal::get().new_save_log(thread.id);
    }
    const uint64_t sequence = at::sequence_number::peek();
    const StackId stack = current_stack();
    SaveLog& log = *thread.log;
    std::lock_guard lock(log.mutex);
    const uint32_t origin = origin_of(thread);
    if (log.last != nullptr) {
      if (log.last->sequence == sequence) {
        // The op noted before made no node.
        log.last->stack = stack;
        log.last->origin = origin;
        return;
      }
      if (log.last->stack == stack && log.last->origin == origin) {
        return;
      }
    }
    log.last = &log.saves.push();
    *log.last = Save{sequence, stack, origin};
  });
}

}  // namespace gradext::recorder
