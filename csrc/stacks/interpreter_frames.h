// Reads the frames of a running interpreter without the GIL and without touching a reference count.
//
// Their layout is in no public header. What is read of them differs by version and is all in this
// file; torch's own Dynamo reads the same fields. Included by stacks.cpp alone. Without
// GRADEXT_RAW_FRAMES, which it defines where it can, frames are read by the public API.
#pragma once

#include <Python.h>

#include <cstdint>

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

namespace gradext::stacks {

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

}  // namespace gradext::stacks
