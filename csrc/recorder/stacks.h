// Python stacks as small numbers. A capture walks the calling thread's frames without the GIL and
// without touching a reference count; equal stacks get equal numbers, and frames become files and
// lines only when somebody asks.
#pragma once

#include <Python.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace gradext::recorder {

// 0: no Python frame (a thread of C++, an interpreter that is going away).
using StackId = uint32_t;

struct Frame {
  PyCodeObject* code;   // kept alive by the interning; null: the callers from here on are not known
  int32_t instruction;  // offset in bytes, as PyCode_Addr2Line takes it
};

// The calling thread's stack. Needs no GIL; takes it only to keep a code object that it has not
// seen before.
StackId capture_stack();

// The stack without its innermost frame, and that frame's code.
StackId stack_parent(StackId stack);
PyCodeObject* stack_code(StackId stack);

// Innermost frame first. A stack that was deeper than a capture goes ends in a frame without code.
std::vector<Frame> stack_frames(StackId stack);

struct StackStats {
  size_t nodes;
  size_t codes;
  size_t bytes;
  size_t dropped;  // captures that met a full table
};
StackStats stack_stats();

// For fork: the lock of the table of stacks.
void stacks_lock();
void stacks_unlock();

}  // namespace gradext::recorder
