#include "stacks.h"

#include <array>
#include <memory>
#include <mutex>
#include <unordered_map>

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
constexpr StackId kCut = 1;  // the caller of the outermost frame kept, where the stack went on
constexpr size_t kMaxNodes = size_t{1} << 20;
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

struct Node {
  StackId parent;  // the calling frame
  uint32_t code;   // index into `codes`
  int32_t instruction;
};

struct Key {
  StackId parent;
  uint32_t code;
  int32_t instruction;
  bool operator==(const Key& other) const {
    return parent == other.parent && code == other.code && instruction == other.instruction;
  }
};

inline uint64_t mix(uint64_t a, uint64_t b) {
  uint64_t h = a * 0x9e3779b97f4a7c15ull ^ b;
  h ^= h >> 32;
  h *= 0xd6e8feb86659fd93ull;
  return h ^ (h >> 29);
}

struct KeyHash {
  size_t operator()(const Key& key) const {
    const uint64_t low = (static_cast<uint64_t>(key.parent) << 32) | key.code;
    return mix(low, static_cast<uint32_t>(key.instruction));
  }
};

// All stacks of the process form one tree: a node is a frame under its caller. It only grows, up to
// kMaxNodes, so a number means the same for as long as the process lives.
struct Tree {
  std::mutex mutex;
  std::vector<Node> nodes{2, Node{0, 0, 0}};  // numbers 0, "no frame", and kCut have no code
  std::vector<PyCodeObject*> codes;
  std::unordered_map<PyCodeObject*, uint32_t> code_index;
  std::unordered_map<Key, StackId, KeyHash> index;
  size_t dropped = 0;
};

// Never destroyed: threads may still capture while the process ends.
Tree& tree() {
  static Tree* instance = new Tree;
  return *instance;
}

struct Cached {
  PyCodeObject* code = nullptr;
  const void* at = nullptr;
  StackId parent = 0;
  StackId id = 0;
};

// The last stack of this thread with the number of each of its frames, outermost first, and a
// direct-mapped cache of recent (caller, frame) pairs. Entries name interned code only, which is
// never freed, so an address in here cannot have come to mean something else.
struct ThreadPath {
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

#ifdef GRADEXT_RAW_FRAMES

StackId intern(const Raw& raw, StackId parent) {
  Tree& all = tree();
  const int32_t instruction = instruction_offset(raw);
  std::unique_lock<std::mutex> lock(all.mutex);
  auto code = all.code_index.find(raw.code);
  if (code == all.code_index.end()) {
    // Keeping the code object needs the GIL, and the GIL must not be waited for under the mutex.
    lock.unlock();
    PyGILState_STATE gil = PyGILState_Ensure();
    Py_INCREF(raw.code);
    lock.lock();
    auto [place, is_new] =
        all.code_index.emplace(raw.code, static_cast<uint32_t>(all.codes.size()));
    if (is_new) {
      all.codes.push_back(raw.code);
    }
    code = place;
    const uint32_t index = code->second;
    lock.unlock();
    if (!is_new) {
      Py_DECREF(raw.code);
    }
    PyGILState_Release(gil);
    lock.lock();
    code = all.code_index.find(raw.code);
    if (code == all.code_index.end() || code->second != index) {
      return 0;
    }
  }
  const Key key{parent, code->second, instruction};
  auto found = all.index.find(key);
  if (found != all.index.end()) {
    return found->second;
  }
  if (all.nodes.size() >= kMaxNodes) {
    ++all.dropped;
    return 0;
  }
  const auto id = static_cast<StackId>(all.nodes.size());
  all.nodes.push_back(Node{parent, key.code, instruction});
  all.index.emplace(key, id);
  return id;
}

#endif

}  // namespace

#ifdef GRADEXT_RAW_FRAMES

StackId capture_stack() {
  PyThreadState* thread = PyGILState_GetThisThreadState();
  if (thread == nullptr || !Py_IsInitialized()) {
    return 0;
  }
  ThreadPath& path = thread_path();
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
      const StackId id = intern(own, parent);
      if (id == 0) {
        return parent;  // the table is full: what is known is the caller
      }
      entry = Cached{own.code, own.at, parent, id};
    }
    path.raw[k] = own;
    path.ids[k] = parent = entry.id;
    path.depth = k + 1;
  }
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
  Tree& all = tree();
  StackId parent = frame != nullptr ? kCut : 0;
  Py_XDECREF(frame);
  // Under the mutex no Python object is made or given up.
  std::array<PyCodeObject*, kMaxDepth> spare;
  int spares = 0;
  {
    std::lock_guard<std::mutex> lock(all.mutex);
    bool is_full = false;
    for (int k = depth - 1; k >= 0; --k) {
      if (is_full) {
        spare[spares++] = frames[k].code;
        continue;
      }
      auto [code, is_new] =
          all.code_index.emplace(frames[k].code, static_cast<uint32_t>(all.codes.size()));
      if (is_new) {
        all.codes.push_back(frames[k].code);
      } else {
        spare[spares++] = frames[k].code;
      }
      const Key key{parent, code->second, frames[k].instruction};
      auto found = all.index.find(key);
      if (found != all.index.end()) {
        parent = found->second;
      } else if (all.nodes.size() < kMaxNodes) {
        const auto id = static_cast<StackId>(all.nodes.size());
        all.nodes.push_back(Node{parent, key.code, key.instruction});
        all.index.emplace(key, id);
        parent = id;
      } else {
        ++all.dropped;
        is_full = true;  // what is known is the caller
      }
    }
  }
  for (int k = 0; k < spares; ++k) {
    Py_DECREF(spare[k]);
  }
  PyGILState_Release(gil);
  return parent;
}

#endif

StackId stack_parent(StackId stack) {
  Tree& all = tree();
  std::lock_guard<std::mutex> lock(all.mutex);
  const StackId parent = stack < all.nodes.size() ? all.nodes[stack].parent : 0;
  return parent > kCut ? parent : 0;
}

PyCodeObject* stack_code(StackId stack) {
  Tree& all = tree();
  std::lock_guard<std::mutex> lock(all.mutex);
  return stack > kCut && stack < all.nodes.size() ? all.codes[all.nodes[stack].code] : nullptr;
}

std::vector<Frame> stack_frames(StackId stack) {
  Tree& all = tree();
  std::lock_guard<std::mutex> lock(all.mutex);
  std::vector<Frame> frames;
  while (stack > kCut && stack < all.nodes.size()) {
    const Node& node = all.nodes[stack];
    frames.push_back(Frame{all.codes[node.code], node.instruction});
    stack = node.parent;
  }
  if (stack == kCut && !frames.empty()) {
    frames.push_back(Frame{nullptr, 0});
  }
  return frames;
}

void stacks_lock() {
  tree().mutex.lock();
}

void stacks_unlock() {
  tree().mutex.unlock();
}

StackStats stack_stats() {
  Tree& all = tree();
  std::lock_guard<std::mutex> lock(all.mutex);
  const size_t per_node = sizeof(Node) + sizeof(Key) + sizeof(StackId) + 2 * sizeof(void*);
  return {
      all.nodes.size() - 1 - kCut,
      all.codes.size(),
      all.nodes.size() * per_node + all.codes.size() * 6 * sizeof(void*),
      all.dropped};
}

}  // namespace gradext::recorder
