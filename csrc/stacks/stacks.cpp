#include "stacks/stacks.h"

#include "stacks/stack_table.h"

#include <array>
#include <atomic>
#include <memory>
#include <utility>

// The frames of a running interpreter are in no public header. What is read of them differs by
// version and is all in this block; torch's own Dynamo reads the same fields.
// GRADEXT_PUBLIC_FRAMES: for a build that tries the way of the versions that are not known here.
#if defined(GRADEXT_PUBLIC_FRAMES) || PY_VERSION_HEX >= 0x030f0000
#elif PY_VERSION_HEX >= 0x030b0000
#define GRADEXT_RAW_FRAMES 1
#define Py_BUILD_CORE 1
extern "C" {
#if PY_VERSION_HEX >= 0x030e0000
#include "internal/pycore_interpframe.h"
#else
#include "internal/pycore_frame.h"
#endif
}
#undef Py_BUILD_CORE
#else
#define GRADEXT_RAW_FRAMES 1
#include <frameobject.h>
#endif

namespace gradext::recorder {
namespace {

constexpr int kMaxDepth = 256;
constexpr size_t kLocalCache = 2048;

// One raw frame: where the code is and which instruction, both as addresses.
struct Raw {
  PyCodeObject* code;
  const void* at;
};

#if defined(GRADEXT_RAW_FRAMES) && PY_VERSION_HEX >= 0x030b0000

using RawFrame = _PyInterpreterFrame;

inline RawFrame* top_frame(PyThreadState* thread) {
#if PY_VERSION_HEX >= 0x030d0000
  return thread->current_frame;
#else
  return thread->cframe ? thread->cframe->current_frame : nullptr;
#endif
}

inline RawFrame* caller(RawFrame* frame) {
  return frame->previous;
}

// False for frames that run no Python code of anybody's: the interpreter's own entry frames, and
// the one that 3.12 and later put below an `__init__` that a specialised call enters. CPython calls
// them incomplete, as it does frames that have not begun.
inline bool read(RawFrame* frame, Raw& raw) {
#if PY_VERSION_HEX >= 0x030e0000
  if (_PyFrame_IsIncomplete(frame)) {
    return false;
  }
  raw = {_PyFrame_GetCode(frame), frame->instr_ptr};
#elif PY_VERSION_HEX >= 0x030d0000
  if (frame->owner == FRAME_OWNED_BY_CSTACK || !PyCode_Check(frame->f_executable) ||
      _PyFrame_IsIncomplete(frame)) {
    return false;
  }
  raw = {reinterpret_cast<PyCodeObject*>(frame->f_executable), frame->instr_ptr};
#elif PY_VERSION_HEX >= 0x030c0000
  if (frame->owner == FRAME_OWNED_BY_CSTACK || _PyFrame_IsIncomplete(frame)) {
    return false;
  }
  raw = {frame->f_code, frame->prev_instr};
#else
  if (_PyFrame_IsIncomplete(frame)) {
    return false;
  }
  raw = {frame->f_code, frame->prev_instr};
#endif
  return true;
}

inline int32_t instruction_offset(const Raw& raw) {
  const auto* start = reinterpret_cast<const char*>(_PyCode_CODE(raw.code));
  return static_cast<int32_t>(static_cast<const char*>(raw.at) - start);
}

#elif defined(GRADEXT_RAW_FRAMES)

using RawFrame = PyFrameObject;

inline RawFrame* top_frame(PyThreadState* thread) {
  return thread->frame;
}

inline RawFrame* caller(RawFrame* frame) {
  return frame->f_back;
}

inline bool read(RawFrame* frame, Raw& raw) {
  // f_lasti counts instructions of two bytes in 3.10.
  raw = {frame->f_code, reinterpret_cast<const void*>(static_cast<intptr_t>(frame->f_lasti) * 2)};
  return true;
}

inline int32_t instruction_offset(const Raw& raw) {
  return static_cast<int32_t>(reinterpret_cast<intptr_t>(raw.at));
}

#endif

struct Cached {
  PyCodeObject* code = nullptr;
  const void* at = nullptr;
  StackId parent = 0;
  StackId id = 0;
};

// The last stack of this thread with the number of each of its frames, outermost first, and a
// direct-mapped cache of recent (caller, frame) pairs. Both are of one age of the table, in which
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
  const bool cut = depth == kMaxDepth && frame != nullptr;
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
    Cached& entry = path.cache[hash % kLocalCache];
    if (entry.id == 0 || entry.code != own.code || entry.at != own.at || entry.parent != parent) {
      const StackId id = table.intern(own.code, instruction_offset(own), parent);
      if (id == 0) {
        path.age = 0;
        collect_if_due();
        return parent;  // the table is full: what is known is the caller
      }
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

#else  // a Python whose frames this file does not know: the public API, under the GIL

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

}  // namespace gradext::recorder
