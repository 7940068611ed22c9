// Helpers that flows.cpp and python_crossings.cpp share. Internal to these two.
#pragma once

#include "recorder/lost_gradients/flows.h"

namespace gradext::recorder::detail {

// Tensors of tracing and of functorch stand for others.
bool is_wanted(const c10::TensorImpl& impl);
uint32_t low(uint64_t number);
bool in_backward();

// What is the same for every flow. Not under the mutex: a code object that is new to the table of
// stacks needs the GIL.
void complete(Flow& flow, uint32_t op, StackId stack = 0);

// Of a cut: the leaves behind it. Not under the mutex.
void add_leaves(Watch watch, Flow& flow, const Inputs& inputs);

// Whether one of them was computed with grad mode on: it requires grad and is no leaf.
bool has_history(const Inputs& inputs);

// Under the mutex of the origins:

// What the inputs say of a result.
void add_inputs(Origins& origins, Flow& flow, const Inputs& inputs);
// Keeps the flow of a living tensor in the place of the one that it had.
void keep(Origins& origins, const c10::TensorImpl& impl, Flow& flow);
void keep_past(Origins& origins, Flow& flow);

// Not under it:

uint32_t mode_flags(Watch watch, const ThreadState& thread, StackId& mode);
// `renames`: a function of Python's that has just made the tensor by an op. `of_tensor`: it is an
// alias that is to be known by itself, for its storage may be exchanged (a parameter).
void note_birth(
    const c10::TensorImpl& impl,
    uint32_t op,
    const Inputs& inputs,
    bool renames = false,
    bool of_tensor = false);

}  // namespace gradext::recorder::detail
