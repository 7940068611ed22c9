#include "guard/lines/trace.h"

#include "base/aside.h"
#include "base/signals.h"
#include "fingerprint/fingerprint.h"
#include "guard/guard.h"
#include "guard/lines/exposed.h"
#include "stacks/threads.h"
#include "state/state.h"

#include <ATen/record_function.h>

#include <frameobject.h>

#include <algorithm>
#include <chrono>
#include <unordered_map>

namespace py = pybind11;

namespace gradext::guard {
namespace {

using Clock = std::chrono::steady_clock;

// Overhead limit. After 2 s of comparing, if comparisons take more than this times the time between
// them, only every so many-th line is compared; a change is then reported as a range of lines.
constexpr double kMostShare = 1.0;

// Under the GIL.
struct Lines {
  std::unordered_map<PyCodeObject*, bool> is_user;
  uint64_t last_thread = 0;  // whose line was the last to be looked at
  uint64_t looks = 0;
  uint64_t skip = 0, skipped = 0;
  StackId first_skipped = 0;
  Clock::duration spent{};
  Clock::time_point since{};
  std::atomic<bool> armed{false};
};

Lines& lines() {
  static Lines* instance = new Lines;
  return *instance;
}

// Whether a file, by its name, is the user's own. Never destroyed.
PyObject* is_user_file = nullptr;

// The line of the user's that this thread was last seen at.
thread_local StackId current_line = 0;

bool is_user_code(PyCodeObject* code) {
  Lines& state = lines();
  auto known = state.is_user.find(code);
  if (known != state.is_user.end()) {
    return known->second;
  }
  const py::object held = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(code));
  if (is_user_file == nullptr) {
    return false;  // no guard was ever on
  }
  const py::object answer =
      base::call_back(is_user_file, py::make_tuple(py::handle(code->co_filename)));
  const bool is_user = answer.ptr() == Py_True;
  Py_INCREF(code);  // its address is the key
  state.is_user.emplace(code, is_user);
  return is_user;
}

// The innermost line of the user's on this thread's stack; 0 if there is none.
StackId user_line(StackId stack) {
  while (stack != 0) {
    PyCodeObject* code = stacks::stack_code(stack);
    if (code == nullptr || is_user_code(code)) {
      return stack;
    }
    stack = stacks::stack_parent(stack);
  }
  return 0;
}

void disarm();
int on_event(PyObject*, PyFrameObject* frame, int what, PyObject*);

// `done`: what this thread has been executing since the last look; `is_known`: no line event can
// have been missed.
void look(StackId done, bool is_known = true) {
  Lines& state = lines();
  const Clock::time_point begin = Clock::now();
  const bool alone =
      state.last_thread == 0 || state.last_thread == at::RecordFunction::currentThreadId();
  const StackId after = !is_known ? current_line : state.skipped > 0 ? state.first_skipped : done;
  const auto entries = open_entries(nullptr);
  const size_t alive = compare(entries, [&](Change& change) {
    if (alone && is_known && state.skipped == 0 && stacks::traces_all_others(&on_event)) {
      change.line = done;
    } else {
      change.after = after;
      change.before = stacks::capture_stack();
    }
  });
  state.last_thread = at::RecordFunction::currentThreadId();
  ++state.looks;
  state.skipped = 0;
  const Clock::time_point end = Clock::now();
  state.spent += end - begin;
  const auto rest = (end - state.since) - state.spent;
  const double share = static_cast<double>(state.spent.count()) /
                       static_cast<double>(std::max<int64_t>(rest.count(), 1));
  state.skip = 0;
  if (state.spent > std::chrono::seconds(2) && share > kMostShare) {
    state.skip = static_cast<uint64_t>(share / kMostShare * 8);
  }
  if (alive == 0) {
    disarm();
  }
}

void see_line(PyFrameObject* frame, int what) {
  PyCodeObject* code = PyFrame_GetCode(frame);
  const py::object held = py::reinterpret_steal<py::object>(reinterpret_cast<PyObject*>(code));
  if (!is_user_code(code)) {
    return;
  }
  Lines& state = lines();
  const StackId here = stacks::capture_stack();
  // At a return, it is still the returning frame's line that has been running.
  const StackId done = what == PyTrace_RETURN || current_line == 0 ? here : current_line;
  if (state.skip > 0 && ++state.skipped < state.skip) {
    if (state.skipped == 1) {
      state.first_skipped = done;
    }
  } else {
    look(done);
  }
  current_line = what == PyTrace_RETURN ? user_line(stacks::stack_parent(here)) : here;
}

int on_event(PyObject*, PyFrameObject* frame, int what, PyObject*) {
  if (in_guard()) {
    return 0;
  }
  in_guard() = true;
  const bool is_stopped = base::aside([&] {
    if (!lines().armed) {  // what disarmed could not take it from this thread
      PyEval_SetTrace(nullptr, nullptr);
    } else if ((what == PyTrace_LINE || what == PyTrace_RETURN) && is_on()) {
      see_line(frame, what);
    }
  });
  in_guard() = false;
  return is_stopped ? -1 : 0;
}

bool is_free(PyThreadState* thread) {
  return thread->c_tracefunc == nullptr || thread->c_tracefunc == &on_event;
}

void trace_own() {
  PyThreadState* own = PyThreadState_Get();
  if (is_free(own)) {
    PyEval_SetTrace(&on_event, nullptr);
  }
}

// Under the GIL.
void arm() {
  Lines& state = lines();
  if (!state.armed) {
    state.armed = true;
    state.since = Clock::now();
    state.spent = {};
    state.skip = state.skipped = 0;
    state.last_thread = at::RecordFunction::currentThreadId();
  }
  PyThreadState* own = PyThreadState_Get();
  if (own->c_tracefunc != &on_event) {
    current_line = user_line(stacks::capture_stack());
    trace_own();
  }
  stacks::trace_others(&on_event);
}

void disarm() {
  Lines& state = lines();
  state.armed = false;
  state.last_thread = 0;
  PyThreadState* own = PyThreadState_Get();
  if (own->c_tracefunc == &on_event) {
    PyEval_SetTrace(nullptr, nullptr);
  }
  stacks::untrace_others(&on_event);
}

// Where Python runs on this thread: elsewhere no line could be told.
void arm_here() {
  if (PyGILState_GetThisThreadState() != nullptr) {
    base::under_gil([] { arm(); });
  }
}

}  // namespace

void judge_files_by(const py::object& function) {
  Py_XDECREF(is_user_file);
  is_user_file = function.inc_ref().ptr();
}

void watch_lines_of(const c10::StorageImpl* storage) {
  if (!entries_in(storage).empty()) {
    arm_here();
  }
}

By watch_lines(const std::shared_ptr<Entry>& entry, const at::Tensor& tensor) {
  const By by = add_entry(entry, state::storage(*tensor.unsafeGetTensorImpl()));
  if (by == By::kHands) {
    arm_here();
  }
  return by;
}

void look_now() {
  if (!lines().armed || PyGILState_GetThisThreadState() == nullptr) {
    return;
  }
  base::under_gil([] {
    const StackId here = user_line(stacks::capture_stack());
    // A thread that runs no Python, or whose trace function is a debugger's, tells no lines.
    const bool is_known = here != 0 && PyThreadState_Get()->c_tracefunc == &on_event;
    look(here != 0 ? here : current_line, is_known);
  });
}

void look_at(const std::vector<const void*>& storages) {
  const auto entries = open_entries(&storages);
  if (entries.empty()) {
    return;
  }
  const StackId here = stacks::capture_stack();
  compare(entries, [&](Change& change) { change.line = here; });
}

void wake_lines() {
  if (lines().armed) {
    trace_own();
  }
}

void forget_lines() {
  forget_exposed();
  if (lines().armed) {
    disarm();
  }
  current_line = 0;
}

LineFacts line_facts() {
  const ExposedCounts counts = exposed_counts();
  return {counts.entries, counts.exposed, lines().looks, lines().armed};
}

}  // namespace gradext::guard
