#include "stacks/stacks.h"

#include "stacks/interpreter_frames.h"
#include "stacks/stack_table.h"
#include "stacks/threads.h"

#include <array>
#include <atomic>
#include <memory>
#include <utility>

namespace gradext::stacks {
namespace {

constexpr int kMaxDepth = 256;
constexpr size_t kLocalCache = 2048;

struct Cached {
  PyCodeObject* code = nullptr;
  const void* at = nullptr;
  StackId parent = 0;
  StackId id = 0;

  bool is_of(const Raw& frame, StackId caller) const {
    return id != 0 && code == frame.code && at == frame.at && parent == caller;
  }
};

// The last stack of this thread with the number of each of its frames, outermost first, and a
// two-way cache of recent (caller, frame) pairs. Both are of one age of the table, in which
// no frame is forgotten and no code freed, so an address in here cannot have come to mean something
// else.
struct ThreadPath {
  uint32_t age = 0;
  uint64_t captures = 0;
  int depth = 0;
  bool cut = false;
  std::array<Raw, kMaxDepth> raw;
  std::array<StackId, kMaxDepth> ids;
  std::array<Cached, kLocalCache> cache;
};

ThreadPath& thread_path() {
  static thread_local std::unique_ptr<ThreadPath> path;
  if (!path) {
    path = std::make_unique<ThreadPath>();
  }
  return *path;
}

// The stacks that events name, where there are events.
std::atomic<StackRoots> named_stacks{nullptr};

void collect_if_due() {
  StackTable& table = StackTable::get();
  if (table.is_collection_due()) {
    std::vector<StackId> roots;
    if (const StackRoots gather = named_stacks) {
      gather(roots);
    }
    table.collect(std::move(roots));
  }
}

}  // namespace

#ifdef GRADEXT_RAW_FRAMES

StackId capture_stack() {
  PyThreadState* thread = PyGILState_GetThisThreadState();
  if (thread == nullptr || !Py_IsInitialized()) {
    return 0;
  }
  StackTable& table = StackTable::get();
  ThreadPath& path = thread_path();
  const uint32_t age = table.age();
  if (path.age != age) {
    path.age = age;
    path.depth = 0;
    path.cache.fill(Cached{});
  }
  const uint64_t capture = ++path.captures;
  std::array<Raw, kMaxDepth> raw;
  int depth = 0;
  RawFrame* frame = top_frame(thread);
  for (; frame != nullptr && depth < kMaxDepth; frame = caller(frame)) {
    depth += read(frame, raw[depth]);
  }
  // What lies further out is perhaps the interpreter's own frames alone.
  for (Raw beyond; frame != nullptr && !read(frame, beyond);) {
    frame = caller(frame);
  }
  const bool cut = frame != nullptr;
  // The outer frames that are as they were at the last capture keep their numbers.
  int same = 0;
  const int most = cut != path.cut ? 0 : depth < path.depth ? depth : path.depth;
  while (same < most && raw[depth - 1 - same].code == path.raw[same].code &&
         raw[depth - 1 - same].at == path.raw[same].at) {
    ++same;
  }
  StackId parent = same ? path.ids[same - 1] : cut ? kCut : 0;
  path.depth = same;  // what follows is not known until it is written
  path.cut = cut;
  for (int k = same; k < depth; ++k) {
    const Raw& own = raw[depth - 1 - k];
    const uint64_t hash =
        mix(reinterpret_cast<uintptr_t>(own.at) ^ parent, reinterpret_cast<uintptr_t>(own.code));
    // Two places for each, the later found first: a loop whose frames fall on the same place would
    // go to the table, and its mutex, in each round.
    Cached& entry = path.cache[hash % kLocalCache];
    Cached& other = path.cache[(hash % kLocalCache) ^ 1];
    if (!entry.is_of(own, parent) && other.is_of(own, parent)) {
      std::swap(entry, other);
    }
    if (!entry.is_of(own, parent)) {
      const StackId id = table.intern(own.code, instruction_offset(own), parent);
      if (id == 0) {
        path.age = 0;
        collect_if_due();
        return parent;  // the table is full: what is known is the caller
      }
      other = entry;
      entry = Cached{own.code, own.at, parent, id};
    }
    path.raw[k] = own;
    path.ids[k] = parent = entry.id;
    path.depth = k + 1;
  }
  if (path.captures != capture) {
    path.age = 0;  // code that was freed has called Python, and that this function
  }
  collect_if_due();
  return parent > kCut ? parent : 0;
}

void each_count_of_frames(
    const PyCodeObject* code, const std::function<void(PyThreadState*, size_t)>& visit) {
  each_thread([&](PyThreadState* thread) {
    size_t count = 0;
    for (RawFrame* frame = top_frame(thread); frame != nullptr; frame = caller(frame)) {
      Raw raw{};
      count += read(frame, raw) && raw.code == code;
    }
    if (count > 0) {
      visit(thread, count);
    }
  });
}

#else  // a Python whose frames this file does not know: the public API, under the GIL

void each_count_of_frames(
    const PyCodeObject* code, const std::function<void(PyThreadState*, size_t)>& visit) {
  // Frames become objects here. A collection that these begin could let a thread end meanwhile.
  const bool was_on = PyGC_Disable() != 0;
  each_thread([&](PyThreadState* thread) {
    size_t count = 0;
    PyFrameObject* frame = PyThreadState_GetFrame(thread);
    while (frame != nullptr) {
      PyCodeObject* own = PyFrame_GetCode(frame);
      count += own == code;
      Py_DECREF(own);
      PyFrameObject* back = PyFrame_GetBack(frame);
      Py_DECREF(frame);
      frame = back;
    }
    if (count > 0) {
      visit(thread, count);
    }
  });
  if (was_on) {
    PyGC_Enable();
  }
}

StackId capture_stack() {
  PyThreadState* thread = PyGILState_GetThisThreadState();
  if (thread == nullptr || !Py_IsInitialized()) {
    return 0;
  }
  PyGILState_STATE gil = PyGILState_Ensure();
  std::array<Frame, kMaxDepth> frames;  // each holds a reference to its code
  int depth = 0;
  // No frame that CPython calls incomplete is among these.
  PyFrameObject* frame = PyThreadState_GetFrame(thread);
  while (frame != nullptr && depth < kMaxDepth) {
    frames[depth++] = Frame{PyFrame_GetCode(frame), PyFrame_GetLasti(frame)};
    PyFrameObject* back = PyFrame_GetBack(frame);
    Py_DECREF(frame);
    frame = back;
  }
  StackTable& table = StackTable::get();
  StackId parent = frame != nullptr ? kCut : 0;
  Py_XDECREF(frame);
  for (int k = depth - 1; k >= 0; --k) {
    const StackId id = table.intern(frames[k].code, frames[k].instruction, parent);
    if (id == 0) {
      break;  // the table is full: what is known is the caller
    }
    parent = id;
  }
  for (int k = 0; k < depth; ++k) {
    Py_DECREF(frames[k].code);
  }
  PyGILState_Release(gil);
  collect_if_due();
  return parent;
}

#endif

namespace {

std::atomic<StackId> stack_of_backward{0};

}  // namespace

void set_backward_stack(StackId stack) {
  stack_of_backward = stack;
}

StackId backward_stack() {
  return stack_of_backward;
}

StackId current_stack() {
  const StackId stack = capture_stack();
  return stack != 0 ? stack : stack_of_backward.load(std::memory_order_relaxed);
}

StackId pinned(StackId stack) {
  // A block is entered again and again.
  static thread_local std::array<StackId, 64> known{};
  static thread_local uint32_t age = 0;
  StackTable& table = StackTable::get();
  if (age != table.age()) {
    age = table.age();
    known.fill(0);
  }
  StackId& place = known[stack % known.size()];
  if (stack != 0 && place != stack) {
    place = stack;
    table.pin(stack);
  }
  return stack;
}

void set_stack_memory(size_t bytes) {
  StackTable::get().set_memory(bytes);
}

void set_stack_roots(StackRoots gather) {
  named_stacks = gather;
}

StackId stack_parent(StackId stack) {
  return StackTable::get().parent(stack);
}

PyCodeObject* stack_code(StackId stack) {
  return StackTable::get().code(stack);
}

std::vector<Frame> stack_frames(StackId stack) {
  return StackTable::get().frames(stack);
}

void stacks_lock() {
  StackTable::get().mutex().lock();
}

void stacks_unlock() {
  StackTable::get().mutex().unlock();
}

StackStats stack_stats() {
  return StackTable::get().stats();
}

}  // namespace gradext::stacks
