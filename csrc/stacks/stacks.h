// Captures Python stacks as small numbers. A capture walks the calling thread's frames without the
// GIL and without touching a reference count; equal stacks get equal numbers, and frames become
// files and lines only when somebody asks.
#pragma once

#include <Python.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace gradext::stacks {

// 0: no Python frame (a thread of C++, an interpreter that is going away).
using StackId = uint32_t;

struct Frame {
  PyCodeObject* code;   // borrowed; null: the callers from here on are not known
  int32_t instruction;  // offset in bytes, as PyCode_Addr2Line takes it
};

// The calling thread's stack. Needs no GIL; takes it only to keep a code object that it has not
// seen before. Under no mutex: stacks that no event names may be forgotten meanwhile, and what is
// read for that (StackRoots) takes those of the journal.
StackId capture_stack();

// The same; on a thread without Python frames (the engine's), the line that runs backward.
StackId current_stack();
// The line that runs backward now, 0 where none does.
void set_backward_stack(StackId stack);
StackId backward_stack();

// `stack`, which is not forgotten although no event names it: where a block was entered.
StackId pinned(StackId stack);

// The stack without its innermost frame, and that frame's code.
StackId stack_parent(StackId stack);
PyCodeObject* stack_code(StackId stack);

// Innermost frame first. A stack that was deeper than a capture goes ends in a frame without code.
// Under the GIL, and the code lives until Python code runs next: take references at once.
std::vector<Frame> stack_frames(StackId stack);

// How much memory the table of stacks may take.
void set_stack_memory(size_t bytes);
// Appends the stacks that are still named somewhere.
using StackRoots = void (*)(std::vector<StackId>&);
void set_stack_roots(StackRoots gather);

struct StackStats {
  size_t nodes;
  size_t codes;
  size_t bytes;
  size_t dropped;  // stacks that events name and that were given up, at least in part
};
StackStats stack_stats();

// Calls visit(thread, how many of its frames run the code) for each thread with such a frame. Under
// the GIL; runs no Python code.
void each_count_of_frames(
    const PyCodeObject* code, const std::function<void(PyThreadState*, size_t)>& visit);

// For fork: the lock of the table of stacks.
void stacks_lock();
void stacks_unlock();

}  // namespace gradext::stacks
