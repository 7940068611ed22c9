#include "guard/switch.h"

#include "base/aside.h"
#include "fingerprint/blocks.h"
#include "graph/each_tensor.h"
#include "guard/device_saves.h"
#include "guard/engine_calls.h"
#include "guard/exposure.h"
#include "guard/gradients.h"
#include "guard/guard.h"
#include "guard/lines/exposed.h"
#include "guard/lines/trace.h"
#include "guard/live_nodes.h"
#include "guard/op_kinds.h"
#include "guard/overlap.h"
#include "guard/recompute.h"
#include "guard/reports.h"
#include "guard/saves.h"
#include "journal/names.h"
#include "recorder/listener.h"
#include "state/state.h"

#include <ATen/SequenceNumber.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/python_variable.h>

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

namespace py = pybind11;

namespace gradext::guard {
namespace {

// What has to be kept of an op's arguments until it has run.
struct Pending final : at::ObserverContext {
  std::vector<at::Tensor> lists;   // written by a _foreach_ op, which returns nothing
  at::Tensor views_of;             // the first argument of an op that makes views
  std::vector<const void*> shown;  // storages that an op which is not torch's was given
  std::optional<Overlap> overlap;
};

thread_local int depth = 0;          // ops that this thread is in
thread_local uint64_t op_first = 0;  // the number of the node that the outermost makes first

// Around one op: torch swallows what its observers throw.
template <class Work>
void guarded_op(Work&& work) {
  base::raising_later([&] { guarded(work); });
}

std::unique_ptr<at::ObserverContext> op_begins(const at::RecordFunction& fn) {
  ++depth;
  if (!is_on() || in_guard()) {
    return nullptr;
  }
  std::unique_ptr<Pending> pending;
  guarded_op([&] {
    if (depth == 1) {
      op_first = at::sequence_number::peek();
    }
    const OpKind& kind = kind_of(fn);
    const auto inputs = fn.inputs();
    const auto need = [&]() -> Pending& {
      if (!pending) {
        pending = std::make_unique<Pending>();
      }
      return *pending;
    };
    if (sees_all() && kind.makes_views && knows_overlaps() && !inputs.empty() &&
        inputs[0].isTensor()) {
      need().views_of = inputs[0].toTensor();
    }
    // An op that is not torch's may write what it does not declare; some of torch's do.
    const bool may_write = !kind.is_aten || kind.is_secretive;
    if (may_write || (depth == 1 && watches_any())) {
      for (const c10::IValue& input : inputs) {
        graph::each_tensor(input, [&](const at::Tensor& tensor) {
          const void* storage =
              tensor.defined() ? state::storage(*tensor.unsafeGetTensorImpl()) : nullptr;
          if (storage != nullptr && (may_write || is_watched(storage))) {
            need().shown.push_back(storage);
          }
        });
      }
    }
    for (uint16_t argument : kind.written) {
      if (argument >= inputs.size()) {
        continue;
      }
      if (kind.writes_list) {
        graph::each_tensor(
            inputs[argument], [&](const at::Tensor& tensor) { need().lists.push_back(tensor); });
      } else if (
          sees_all() && depth == 1 && inputs[argument].isTensor() &&
          inputs[argument].toTensor().defined()) {
        Overlap found;
        if (overlaps(inputs[argument].toTensor(), found)) {
          found.line = stacks::capture_stack();
          need().overlap = std::move(found);
        }
      }
    }
  });
  return pending;
}

void op_ended(const at::RecordFunction& fn, at::ObserverContext* context) {
  depth = std::max(0, depth - 1);
  if (!is_on() || in_guard()) {
    return;
  }
  auto* pending = static_cast<Pending*>(context);
  guarded_op([&] {
    if (depth == 0) {
      finish_packs();
    }
    const auto& outputs = fn.outputs();
    if (sees_all()) {
      for (const c10::IValue& output : outputs) {
        graph::each_tensor(output, [](const at::Tensor& made) { note_saves(made, op_first); });
      }
    }
    if (sees_all() && kind_of(fn).makes_views) {
      note_views(pending != nullptr ? pending->views_of : at::Tensor(), outputs);
    }
    if (pending == nullptr) {
      return;
    }
    for (const at::Tensor& tensor : pending->lists) {
      note_saves(tensor, op_first);
    }
    if (!pending->shown.empty()) {
      look_at(pending->shown);
    }
    if (pending->overlap && !outputs.empty()) {
      tell_overlap(*pending->overlap, fn.name());
    }
  });
}

at::CallbackHandle handle = 0;

// Calls of the engine, which may be within each other (a reentrant checkpoint).
std::atomic<int> backwards{0};

void backward_begins(const std::vector<Node*>& roots) {
  ++backwards;
  call_begins();
  guarded([&] {
    look_now();
    put_hooks_below(roots);
  });
}

void backward_ended(bool may_stop) {
  call_ends();
  // Letting go of a tensor may wait for the GIL, and is done under a mutex.
  py::gil_scoped_release released;
  const bool is_outermost = --backwards == 0;
  try {
    guarded([&] {
      if (is_outermost) {
        forget_gradients();
        sweep_overlaps();
      }
      compare_deferred();
    });
  } catch (const base::Stop&) {
    if (may_stop) {
      throw;
    }
  }
}

void note_result(PyObject* value) {
  if (base::is_tensor(value)) {
    note_saves(THPVariable_Unpack(value), 0);
  } else if (PyTuple_Check(value)) {
    for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(value); ++k) {
      if (base::is_tensor(PyTuple_GET_ITEM(value, k))) {
        note_saves(THPVariable_Unpack(PyTuple_GET_ITEM(value, k)), 0);
      }
    }
  }
}

const recorder::Taps ours{
    &backward_begins,
    &backward_ended,
    [](PyObject* result) { guarded([&] { note_result(result); }); },
    [](const at::Tensor& tensor) { guarded([&] { note_exposed(tensor); }); },
    [] { wake_lines(); }};

// Of single ops, where not every one is observed.
void op_wrote(const at::Tensor& tensor, stacks::StackId stack, uint32_t op) {
  Overlap found;
  if (!sees_all() && knows_overlaps() && overlaps(tensor, found)) {
    found.line = stack;
    tell_overlap(found, journal::op_name(op));
  }
}

const recorder::OpTaps ours_of_ops{
    [](c10::ArrayRef<const c10::TensorImpl*> inputs,
       const at::Tensor& result,
       uint64_t first,
       bool is_aten) { guarded_op([&] { note_nodes(inputs, result, first, is_aten); }); },
    [] {
      if (has_unfinished_packs()) {
        guarded_op([] { finish_packs(); });
      }
    },
    [](c10::ArrayRef<at::Tensor> tensors) { guarded_op([&] { note_before_write(tensors); }); },
    [](c10::ArrayRef<at::Tensor> tensors) { guarded_op([&] { note_after_write(tensors); }); },
    [](const at::Tensor& of, const at::Tensor& view) {
      guarded_op([&] { note_one_view(of, view); });
    },
    [](const at::Tensor& tensor, stacks::StackId stack, uint32_t op) {
      guarded_op([&] { op_wrote(tensor, stack, op); });
    }};

// Guards by what they ask for; under the GIL.
int observing = 0;
int listening = 0;

// A child of fork() has the mutexes as they were, and none of the threads that held them.
void register_fork_handlers() {
  const auto lock = [] {
    deferred_mutex().lock();
    gradients_mutex().lock();
    exposed_mutex().lock();
    overlaps_mutex().lock();
    live_nodes_mutex().lock();
  };
  static constexpr auto unlock = [] {
    live_nodes_mutex().unlock();
    overlaps_mutex().unlock();
    exposed_mutex().unlock();
    gradients_mutex().unlock();
    deferred_mutex().unlock();
  };
  // Chosen now and not by the first save, which another thread may be in the middle of when the
  // program forks: the child would wait for that choice for ever.
  (void)fingerprint::blocks();
  static constexpr auto unlock_in_child = [] {
    unlock();
    forget_calls_of_others();
  };
  static const int registered = pthread_atfork(lock, unlock, unlock_in_child);
  (void)registered;
}

}  // namespace

void switch_on(const Wants& wants) {
  guards_of_all += wants.all;
  guards_of_programs += wants.whole_program;
  if (guards++ == 0) {
    register_fork_handlers();
    ++epoch;
    recorder::taps = &ours;
  }
  look_for_engine_calls();
  if (!wants.all && listening++ == 0) {
    recorder::op_taps = &ours_of_ops;
  }
  if (wants.observes() && observing++ == 0) {
    handle = at::addGlobalCallback(
        at::RecordFunctionCallback(&op_begins, &op_ended)
            .needsInputs(true)
            .needsOutputs(true)
            .scopes({at::RecordScope::FUNCTION}));
  }
}

bool is_in_op() {
  return depth > 0 || recorder::listened_ops() > 0;
}

void switch_off(const Wants& wants) {
  if (guards == 0) {
    return;
  }
  if (wants.observes() && --observing == 0) {
    at::removeCallback(handle);
  }
  if (!wants.all && --listening == 0) {
    recorder::op_taps = nullptr;
  }
  guards_of_all -= wants.all;
  guards_of_programs -= wants.whole_program;
  if (--guards == 0) {
    recorder::taps = nullptr;
    ++epoch;
    forget_live_nodes();
    forget_lines();
    forget_gradients();
    forget_deferred();
    forget_overlaps();
  }
}

}  // namespace gradext::guard
