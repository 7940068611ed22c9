#include "recorder/python/grad_mode_blocks.h"

#include "recorder/switch.h"
#include "recorder/thread_state.h"

#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>

#include <Python.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace gradext::recorder {
namespace {

// Who sets grad mode: code that enters or leaves a `with` block, or a plain call.
struct ModeSetter {
  enum Kind { kPlain, kEnters, kLeaves } kind = kPlain;
  const void* frame = nullptr;  // that has the block, or the call
  bool is_doubtful = true;      // GradModeOff
};

bool is_of_distributions(PyCodeObject* code) {
  const char* file = PyUnicode_AsUTF8(code->co_filename);
  if (file == nullptr) {
    PyErr_Clear();
    return false;
  }
  return std::strstr(file, "torch/distributions/") != nullptr ||
         std::strstr(file, "torch\\distributions\\") != nullptr;
}

ModeSetter mode_setter() {
  ModeSetter setter;
  PyFrameObject* frame = PyEval_GetFrame();
  Py_XINCREF(frame);
  // Past the methods of context managers, which call each other: no_grad.__exit__ makes a
  // set_grad_enabled, ExitStack.enter_context enters what it is given.
  for (int k = 0; k < 8 && frame != nullptr; ++k) {
    PyCodeObject* code = PyFrame_GetCode(frame);
    const auto is = [&](const char* name) {
      return PyUnicode_CompareWithASCIIString(code->co_name, name) == 0;
    };
    const auto kind = is("__enter__")  ? ModeSetter::kEnters
                      : is("__exit__") ? ModeSetter::kLeaves
                                       : ModeSetter::kPlain;
    const bool is_manager = kind != ModeSetter::kPlain || is("__init__") || is("enter_context");
    Py_DECREF(code);
    if (!is_manager ||
        (kind != setter.kind && kind != ModeSetter::kPlain && setter.kind != ModeSetter::kPlain)) {
      break;  // the second: a manager's own method has a block in it
    }
    setter.kind = kind != ModeSetter::kPlain ? kind : setter.kind;
    PyFrameObject* above = PyFrame_GetBack(frame);
    Py_DECREF(frame);
    frame = above;
  }
  setter.frame = frame;  // compared, never followed
  if (setter.kind == ModeSetter::kEnters && frame != nullptr) {
    PyCodeObject* code = PyFrame_GetCode(frame);
    constexpr int kWaits = CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR;
    setter.is_doubtful = (code->co_flags & kWaits) != 0 || is_of_distributions(code);
    Py_DECREF(code);
  }
  Py_XDECREF(frame);
  return setter;
}

}  // namespace

// Keeps the thread's stack of open no_grad/set_grad_enabled blocks. Leaving a block restores the
// state before it. Blocks are matched by Python frame, because some exits are never observed.
void grad_mode_set(bool was) {
  constexpr size_t kDeepest = 64;
  const bool is = c10::GradMode::is_enabled();
  const ModeSetter setter = mode_setter();
  ThreadState& thread = thread_state();
  auto& blocks = thread.blocks;
  if (thread.grad_mode_recording != ended_recordings.load(std::memory_order_relaxed)) {
    thread.grad_mode_recording = ended_recordings.load(std::memory_order_relaxed);
    blocks.clear();
    thread.last_set = {};
  }
  const GradModeBlock last_set = std::exchange(thread.last_set, {});
  const GradModeOff before = thread.off;
  if (is) {
    thread.off = {};
  } else if (was && setter.kind != ModeSetter::kLeaves) {
    thread.off = GradModeOff{pinned(current_stack()), false, setter.is_doubtful};
  }
  const bool is_its_own = last_set.frame == setter.frame && setter.frame != nullptr;
  if (!is && !was && setter.kind == ModeSetter::kEnters) {
    // set_grad_enabled() has switched it off before its block began; or it was off, and a block
    // within says what is meant.
    thread.off.is_doubtful = is_its_own && setter.is_doubtful;
  }
  if (setter.kind == ModeSetter::kPlain) {
    thread.last_set = GradModeBlock{setter.frame, before};
  } else if (setter.kind == ModeSetter::kEnters) {
    if (blocks.size() == kDeepest) {
      blocks.erase(blocks.begin());  // the least likely to be left yet
    }
    blocks.push_back(GradModeBlock{setter.frame, is_its_own ? last_set.before : before});
  } else {
    auto block = std::find_if(blocks.rbegin(), blocks.rend(), [&](const GradModeBlock& entered) {
      return entered.frame == setter.frame;
    });
    if (block == blocks.rend()) {
      block = blocks.rbegin();  // entered through another frame, by hand
    }
    if (block != blocks.rend()) {
      thread.off = is ? GradModeOff{} : block->before;
      blocks.resize(static_cast<size_t>(blocks.rend() - block) - 1);
    } else if (was) {
      thread.off = {};  // entered before the recording
    }
  }
}

void inference_entered() {
  thread_state().inference.push_back(
      c10::InferenceMode::is_enabled() ? pinned(current_stack()) : 0);
}

void inference_left() {
  auto& entered = thread_state().inference;
  if (!entered.empty()) {
    entered.pop_back();
  }
}

}  // namespace gradext::recorder
