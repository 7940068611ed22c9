#include "guard/engine_calls.h"

#include "recorder/python/wrappers.h"
#include "stacks/stacks.h"

#include <ATen/SequenceNumber.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <vector>

namespace gradext::guard {
namespace {

struct Call {
  uint64_t thread;       // torch's number of it
  PyThreadState* state;  // compared, never followed
  uint64_t sequence;     // of the node that the thread was to make next
  uint64_t epoch;
  Reach reach = Reach::kUnknown;
};

struct Calls {
  std::vector<Call> known;
  bool may_be_others = false;  // calls that no guard has seen begin
};

Calls& calls() {
  static Calls* instance = new Calls;
  return *instance;
}

std::vector<Call>::iterator last_of_this_thread() {
  auto& known = calls().known;
  const auto found = std::find_if(known.rbegin(), known.rend(), [](const Call& call) {
    return call.state == PyThreadState_Get();
  });
  return found == known.rend() ? known.end() : std::prev(found.base());
}

size_t known_of(const PyThreadState* thread) {
  const auto& known = calls().known;
  return static_cast<size_t>(std::count_if(
      known.begin(), known.end(), [&](const Call& call) { return call.state == thread; }));
}

// Whether a thread is in a call that no guard has seen begin. One that was seen has a frame, too; a
// call that is just beginning (`begins`: on this thread) has none yet.
bool are_there_others(bool begins) {
  bool any = false;
  stacks::each_count_of_frames(recorder::engine_code(), [&](PyThreadState* thread, size_t frames) {
    any |= frames + (begins && thread == PyThreadState_Get()) > known_of(thread);
  });
  return any;
}

}  // namespace

void look_for_engine_calls() {
  calls().may_be_others = are_there_others(false);
}

void call_begins() {
  // Each call that this one is within has a frame. One that lacks it has ended unseen.
  size_t within = 0;
  if (known_of(PyThreadState_Get()) > 0) {
    stacks::each_count_of_frames(
        recorder::engine_code(), [&](PyThreadState* thread, size_t frames) {
          within = thread == PyThreadState_Get() ? frames : within;
        });
  }
  while (known_of(PyThreadState_Get()) > within) {
    call_ends();
  }
  calls().known.push_back(
      {at::RecordFunction::currentThreadId(),
       PyThreadState_Get(),
       at::sequence_number::peek(),
       epoch});
}

void call_reaches(Reach reach) {
  const auto call = last_of_this_thread();
  if (call != calls().known.end()) {
    call->reach = reach;
  }
}

void call_ends() {
  const auto call = last_of_this_thread();
  if (call != calls().known.end()) {
    calls().known.erase(call);
  }
}

void forget_calls_of_others() {
  if (PyGILState_Check() == 0) {
    return;  // somebody else may have been changing them
  }
  auto& known = calls().known;
  const auto is_others = [](const Call& call) {
    return call.thread != at::RecordFunction::currentThreadId();
  };
  known.erase(std::remove_if(known.begin(), known.end(), is_others), known.end());
}

OtherCalls::OtherCalls() {
  Calls& all = calls();
  all.may_be_others = all.may_be_others && are_there_others(true);
  any_unknown_ = all.may_be_others;
  const auto own = last_of_this_thread();
  for (auto call = all.known.begin(); call != all.known.end(); ++call) {
    // Where all nodes have the hooks, one that lacks them is none of these.
    if (call != own && !(call->reach == Reach::kHooked && call->epoch == epoch)) {
      any_unknown_ |= call->reach == Reach::kUnknown || call->reach == Reach::kHooked;
      others_.push_back({call->thread, call->sequence});
    }
  }
}

bool OtherCalls::may_run(const Node& node) const {
  return any_unknown_ || std::any_of(others_.begin(), others_.end(), [&](const Other& call) {
           return is_of_a_leaf(node) || (const_cast<Node&>(node).thread_id() == call.thread &&
                                         node.sequence_nr() < call.sequence);
         });
}

bool is_of_this_thread(const Node& node) {
  return const_cast<Node&>(node).thread_id() == at::RecordFunction::currentThreadId();
}

bool is_of_a_leaf(const Node& node) {
  return node.sequence_nr() == UINT64_MAX;
}

}  // namespace gradext::guard
