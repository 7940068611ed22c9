#include "recorder/record_times.h"

#include "recorder/switch.h"

#include <ATen/SequenceNumber.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <mutex>

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace gradext::recorder {

std::atomic<int> recordings_with_times{0};

namespace {

uint64_t unix_time() {
  using std::chrono::duration_cast;
  const auto since = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<uint64_t>(duration_cast<std::chrono::nanoseconds>(since).count());
}

uint64_t system_thread() {
#ifdef __linux__
  static thread_local uint64_t number = static_cast<uint64_t>(syscall(SYS_gettid));
  return number;
#else
  return at::RecordFunction::currentThreadId();
#endif
}

struct BegunOp final : at::ObserverContext {
  uint64_t time = unix_time();
  uint64_t sequence = at::sequence_number::peek();
};

// Up to here the nodes of this thread are noted: an op within another has made them.
uint64_t& noted_nodes() {
  static thread_local uint64_t next = 0;
  return next;
}

void push_moment(MomentKind kind, uint64_t time, uint64_t sequence, uint64_t thread, uint32_t op) {
  Journal& journal = Journal::get();
  std::lock_guard lock(journal.mutex);
  Moment& moment = journal.moments.push();
  moment.order = journal.next_order();
  moment.time = time;
  moment.sequence = sequence;
  moment.thread = thread;
  moment.system_thread = system_thread();
  moment.op = op;
  moment.kind = kind;
}

std::unique_ptr<at::ObserverContext> op_begins(const at::RecordFunction&) {
  std::unique_ptr<at::ObserverContext> begun;
  if (active()) {
    safely([&] { begun = std::make_unique<BegunOp>(); });
  }
  return begun;
}

// The middle of the op: the profiler's slice of it begins and ends around ours.
void op_ends(const at::RecordFunction& op, at::ObserverContext* context) {
  if (context == nullptr || !active()) {
    return;
  }
  safely([&] {
    const BegunOp& began = *static_cast<BegunOp*>(context);
    const uint64_t time = began.time + (unix_time() - began.time) / 2;
    if (op.scope() == at::RecordScope::BACKWARD_FUNCTION) {
      if (op.seqNr() >= 0) {
        const auto sequence = static_cast<uint64_t>(op.seqNr());
        push_moment(kOfUse, time, sequence, op.forwardThreadId(), intern_name(op.name()));
      }
      return;
    }
    const uint64_t end = at::sequence_number::peek();
    uint64_t at = std::max(began.sequence, noted_nodes());
    if (at < end) {
      const uint32_t name = intern_name(op.name());
      for (; at < end; ++at) {
        push_moment(kOfNode, time, at, thread_state().id, name);
      }
      noted_nodes() = end;
    }
  });
}

at::CallbackHandle op_observer = at::INVALID_CALLBACK_HANDLE;

}  // namespace

void want_times(int step, size_t bytes) {
  if (step > 0) {
    Journal::get().set_room_for_moments(bytes);
  }
  const int before = recordings_with_times.fetch_add(step);
  if (before == 0 && step > 0) {
    op_observer = at::addGlobalCallback(
        at::RecordFunctionCallback(&op_begins, &op_ends)
            .scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION}));
  } else if (before + step == 0 && op_observer != at::INVALID_CALLBACK_HANDLE) {
    at::removeCallback(op_observer);
    op_observer = at::INVALID_CALLBACK_HANDLE;
  }
}

void note_time_of(const Write& write) {
  Moment& moment = Journal::get().moments.push();
  moment.order = write.order;
  moment.time = unix_time();
  moment.sequence = write.sequence;
  moment.thread = write.thread;
  moment.system_thread = system_thread();
  moment.stack = write.stack;
  moment.op = write.op;
  moment.kind = kOfWrite;
}

}  // namespace gradext::recorder
