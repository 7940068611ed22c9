// Switches the guard on and off, and hands it what happens meanwhile: each op, each backward, each
// tensor whose memory the program got hold of.
#pragma once

namespace gradext::guard {

// What a guard asks for.
struct Wants {
  Wants(bool all, bool watches, bool whole_program)
      : all(all), watches(watches), whole_program(whole_program) {}
  bool all;            // fingerprint everything that is saved
  bool watches;        // tensors are to be compared after every op that gets them
  bool whole_program;  // it is on before the program has made a tensor

  // Every op has to be observed.
  bool observes() const {
    return all || watches;
  }
};

// Nestable; off with what it was switched on with.
void switch_on(const Wants& wants);
void switch_off(const Wants& wants);

// Whether this thread is within an op; known while a guard is on.
bool is_in_op();

}  // namespace gradext::guard
