// What sees the program: kernels on dispatch keys of its own, for ops that write, make views, make
// graph nodes or new tensors. The key is in a thread's set only while a recording is on; on other
// threads nothing reaches the kernels.
//
// Why no RecordFunction callback: it is called for every op of a thread, at about 0.2 us each, and
// nine tenths of them are in backward and in the optimizer, where nothing is saved.
#pragma once

#include "journal/journal.h"

#include <ATen/core/Tensor.h>
#include <c10/core/DispatchKey.h>

#include <string>
#include <vector>

namespace gradext::recorder {

// Keys that torch defines for tests of its dispatcher and gives to no tensor. They lie above
// everything but PreDispatch and PythonDispatcher, so they see ops before any wrapper does. Ops
// that write or make views have kernels on the first; all others on the second, which a thread has
// only while saves, births or cuts are recorded. No op has kernels on both.
inline constexpr c10::DispatchKey kKey = c10::DispatchKey::TESTING_ONLY_GenericMode;
inline constexpr c10::DispatchKey kNodeKey = c10::DispatchKey::TESTING_ONLY_GenericWrapper;

// What one recording asks for on top of writes and views.
struct Wants {
  bool saves = true;
  bool births = true;
  bool cuts = true;
};

// One recording more or less; the calling thread records from now on. Nestable.
void start(Wants wants);
void stop(Wants wants);
bool active();
bool recording_saves();

// Brings the calling thread in line with what is being recorded now. Every Python thread calls it
// once when it starts.
void sync_thread();

// From autograd's present sequence number on, this thread's nodes are made at its present stack.
void note_nodes();

// The line that runs backward, for threads without Python frames.
void set_backward_stack(StackId stack);
StackId backward_stack();

// True when some node is older than a write that torch's version check cannot see.
bool spans_uncounted_write(const std::vector<NodeId>& nodes);
// Forget such writes up to now.
void forget_uncounted_writes();

// A Python call that moves the tensor's counter without an op.
void note(const std::string& name, const at::Tensor& tensor);
// The program has given the tensor other memory (`tensor.data = other`), past its counter.
void note_exchange(uint32_t name, const at::Tensor& tensor);

// An op's name by its number in the events.
std::string op_name(uint32_t op);

struct Faults {
  uint64_t count;
  std::string last;
};
// Errors of the observer itself, which never reach the program.
Faults faults();
void count_fault(const char* what) noexcept;
// Makes the observer throw inside itself, for the test that proves the line above.
void inject_fault(bool on);

}  // namespace gradext::recorder
