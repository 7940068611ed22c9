// Writes that no op shows: memory that the program got hold of itself (numpy, a pointer, a storage)
// is compared at each line of the user's Python code, so that the line before is known to have
// done it.
//
// A trace function of C, on only while some watched tensor's memory is exposed. It leaves
// sys.settrace alone: where a debugger or a coverage tool traces, no line is looked at, and the
// report is the window between the save and the use. A thread that runs lines unseen may have done
// any write that is found meanwhile, so then no line is blamed either.
#include "guard/guard.h"

#include "base/aside.h"
#include "base/signals.h"
#include "guard/bind.h"
#include "stacks/threads.h"
#include "state/state.h"

#include <ATen/record_function.h>
#include <c10/core/CPUAllocator.h>

#include <frameobject.h>

#include <chrono>
#include <unordered_set>

namespace py = pybind11;

namespace gradext::guard {
namespace {

using Clock = std::chrono::steady_clock;

// Looks may take this many times as long as what lies between them, after two seconds: then
// only one event in so many is looked at, and a change is known to lie between two lines.
constexpr double kMostShare = 1.0;

struct Lines {
  std::mutex mutex;  // guards what follows; never held while the GIL is waited for
  std::unordered_map<const void*, std::vector<std::weak_ptr<Entry>>> by_storage;
  std::unordered_map<const void*, recorder::Hold> exposed;
  std::unordered_set<const void*> watched;
  std::atomic<bool> watches_any{false};  // read without the mutex
  size_t entries = 0;
  size_t since_sweep = 0;

  // Under the GIL:
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

// The line of the user's that this thread was last seen at.
thread_local StackId current_line = 0;

bool is_user_code(PyCodeObject* code) {
  Lines& state = lines();
  auto known = state.is_user.find(code);
  if (known != state.is_user.end()) {
    return known->second;
  }
  const py::object held = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(code));
  static PyObject* judge = recorder::import_module("gradext.base.package")
                               .attr("is_user_file")
                               .cast<py::object>()
                               .release()
                               .ptr();
  const py::object answer =
      recorder::call_back(judge, py::make_tuple(py::handle(code->co_filename)));
  const bool is_user = answer.ptr() == Py_True;
  Py_INCREF(code);  // its address is the key
  state.is_user.emplace(code, is_user);
  return is_user;
}

// The innermost line of the user's on this thread's stack; 0 if there is none.
StackId user_line(StackId stack) {
  while (stack != 0) {
    PyCodeObject* code = recorder::stack_code(stack);
    if (code == nullptr || is_user_code(code)) {
      return stack;
    }
    stack = recorder::stack_parent(stack);
  }
  return 0;
}

// Memory that came from somewhere else: numpy, DLPack, a file, another process.
bool is_foreign(const c10::StorageImpl& storage) {
  return storage.device_type() == c10::DeviceType::CPU && storage.nbytes() > 0 &&
         storage.data_ptr().get_deleter() != c10::GetDefaultCPUAllocator()->raw_deleter();
}

bool is_exposed(Lines& state, const void* storage) {
  auto found = state.exposed.find(storage);
  if (found == state.exposed.end()) {
    return false;
  }
  if (found->second.is_dead()) {
    state.exposed.erase(found);
    return false;
  }
  return true;
}

void sweep(Lines& state) {
  state.since_sweep = 0;
  state.entries = 0;
  for (auto place = state.by_storage.begin(); place != state.by_storage.end();) {
    auto& list = place->second;
    list.erase(
        std::remove_if(
            list.begin(),
            list.end(),
            [](const std::weak_ptr<Entry>& at) {
              auto entry = at.lock();
              return !entry || entry->change.seen || entry->tensor.use_count() == 0;
            }),
        list.end());
    state.entries += list.size();
    place = list.empty() ? state.by_storage.erase(place) : std::next(place);
  }
  for (auto place = state.exposed.begin(); place != state.exposed.end();) {
    place = place->second.is_dead() ? state.exposed.erase(place) : std::next(place);
  }
}

// The entries whose memory is exposed and of which somebody may still read.
std::vector<std::shared_ptr<Entry>> open_entries(const std::vector<const void*>* storages) {
  Lines& state = lines();
  std::vector<std::shared_ptr<Entry>> found;
  std::lock_guard<std::mutex> lock(state.mutex);
  const auto add = [&](const void* storage) {
    auto place = state.by_storage.find(storage);
    if (place == state.by_storage.end()) {
      return;
    }
    for (const auto& at : place->second) {
      auto entry = at.lock();
      if (entry && !entry->change.seen && entry->tensor.use_count() > 0) {
        found.push_back(std::move(entry));
      }
    }
  };
  if (storages != nullptr) {
    for (const void* storage : *storages) {
      add(storage);
    }
    return found;
  }
  for (auto place = state.exposed.begin(); place != state.exposed.end();) {
    if (place->second.is_dead()) {
      place = state.exposed.erase(place);
    } else {
      add(place->first);
      ++place;
    }
  }
  return found;
}

template <class Mark>
size_t compare(const std::vector<std::shared_ptr<Entry>>& entries, Mark&& mark) {
  size_t alive = 0;
  for (const auto& entry : entries) {
    at::Tensor tensor = locked(entry->tensor);
    // A tensor whose memory was exchanged is looked at when it is used.
    if (!tensor.defined() || !fingerprint::can_fingerprint(tensor) ||
        state::storage(*tensor.unsafeGetTensorImpl()) != entry->storage) {
      continue;
    }
    ++alive;
    const Value now = fingerprint::of_cpu(tensor);
    if (!(now == entry->last)) {
      entry->last = now;
      if (!entry->change.seen) {
        entry->change.seen = true;
        mark(entry->change);
      }
    }
  }
  return alive;
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
    if (alone && is_known && state.skipped == 0 && recorder::traces_all_others(&on_event)) {
      change.line = done;
    } else {
      change.after = after;
      change.before = recorder::capture_stack();
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
  const StackId here = recorder::capture_stack();
  // At a return, it is still the returning frame's line that has been running.
  const StackId done = what == PyTrace_RETURN || current_line == 0 ? here : current_line;
  if (state.skip > 0 && ++state.skipped < state.skip) {
    if (state.skipped == 1) {
      state.first_skipped = done;
    }
  } else {
    look(done);
  }
  current_line = what == PyTrace_RETURN ? user_line(recorder::stack_parent(here)) : here;
}

int on_event(PyObject*, PyFrameObject* frame, int what, PyObject*) {
  if (in_guard()) {
    return 0;
  }
  in_guard() = true;
  const bool is_stopped = recorder::aside([&] {
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
    current_line = user_line(recorder::capture_stack());
    trace_own();
  }
  recorder::trace_others(&on_event);
}

void disarm() {
  Lines& state = lines();
  state.armed = false;
  state.last_thread = 0;
  PyThreadState* own = PyThreadState_Get();
  if (own->c_tracefunc == &on_event) {
    PyEval_SetTrace(nullptr, nullptr);
  }
  recorder::untrace_others(&on_event);
}

void arm_if_needed(const void* storage) {
  Lines& state = lines();
  bool needed = false;
  {
    std::lock_guard<std::mutex> lock(state.mutex);
    needed = is_exposed(state, storage) && state.by_storage.count(storage) > 0;
  }
  if (needed && PyGILState_GetThisThreadState() != nullptr) {
    recorder::under_gil([] { arm(); });
  }
}

}  // namespace

void note_exposed(const at::Tensor& tensor) {
  if (!tensor.defined() || !fingerprint::can_fingerprint(tensor)) {
    return;
  }
  Lines& state = lines();
  const void* storage = state::storage(*tensor.unsafeGetTensorImpl());
  if (storage == nullptr) {
    return;
  }
  {
    std::lock_guard<std::mutex> lock(state.mutex);
    state.exposed.try_emplace(storage, storage);
  }
  arm_if_needed(storage);
}

void watch_lines(const std::shared_ptr<Entry>& entry, const at::Tensor& tensor) {
  Lines& state = lines();
  const auto* storage = state::storage(*tensor.unsafeGetTensorImpl());
  bool exposed = false;
  {
    std::lock_guard<std::mutex> lock(state.mutex);
    if (++state.since_sweep > 256 + state.entries) {
      sweep(state);
    }
    ++state.entries;
    state.by_storage[storage].push_back(entry);
    exposed = is_exposed(state, storage);
    if (!exposed && is_foreign(*storage)) {
      state.exposed.try_emplace(storage, static_cast<const void*>(storage));
      exposed = true;
    }
  }
  if (exposed) {
    arm_if_needed(storage);
  }
}

void look_now() {
  if (!lines().armed || PyGILState_GetThisThreadState() == nullptr) {
    return;
  }
  recorder::under_gil([] {
    const StackId here = user_line(recorder::capture_stack());
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
  const StackId here = recorder::capture_stack();
  compare(entries, [&](Change& change) { change.line = here; });
}

bool watches_any() {
  return lines().watches_any;
}

bool is_watched(const void* storage) {
  std::lock_guard<std::mutex> lock(lines().mutex);
  return lines().watched.count(storage) > 0;
}

void watch_storage(const void* storage) {
  std::lock_guard<std::mutex> lock(lines().mutex);
  lines().watched.insert(storage);
  lines().watches_any = true;
}

void wake_lines() {
  if (lines().armed) {
    trace_own();
  }
}

void forget_lines() {
  Lines& state = lines();
  {
    std::lock_guard<std::mutex> lock(state.mutex);
    state.by_storage.clear();
    state.watched.clear();
    state.watches_any = false;
    state.exposed.clear();
    state.entries = 0;
  }
  if (state.armed) {
    disarm();
  }
  current_line = 0;
}

LineFacts line_facts() {
  Lines& state = lines();
  std::lock_guard<std::mutex> lock(state.mutex);
  return {state.entries, state.exposed.size(), state.looks, state.armed};
}

std::mutex& lines_mutex() {
  return lines().mutex;
}

}  // namespace gradext::guard
