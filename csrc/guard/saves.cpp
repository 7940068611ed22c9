// Saves and uses: what a node saved is fingerprinted when its op has run, and again when the engine
// is about to run it.
#include "guard/guard.h"

#include "base/aside.h"
#include "fingerprint/blocks.h"
#include "graph/each_tensor.h"
#include "graph/saved_items.h"
#include "guard/bind.h"
#include "state/state.h"

#include <ATen/record_function.h>
#include <torch/csrc/autograd/variable.h>

#include <pthread.h>

#include <array>
#include <optional>

namespace py = pybind11;

namespace gradext::guard {

std::atomic<int> guards{0};
std::atomic<uint64_t> epoch{0};

bool& in_guard() {
  static thread_local bool inside = false;
  return inside;
}

namespace {

// The tensors that the node would read, each with its fingerprint; undefined ones where it saved
// None or what cannot be fingerprinted here.
struct Content {
  at::Tensor tensor;
  Value value;
  bool is_hooked = false;
  bool is_moved = false;  // torch's own check will refuse it
  bool is_deferred = false;
  at::Tensor rows;  // of a deferred one
  int64_t row = 0;
  SavedItem item;

  Told told(Node& node) const {
    state::SavedFacts facts = item.facts;
    facts.tensor = tensor;
    return told_of(node, item.label(), facts);
  }
};

std::vector<Content> contents_of(Node& node) {
  std::vector<Content> found;
  recorder::under_gil([&] {
    for (const SavedItem& item : saved_items(node)) {
      const auto add = [&](const at::Tensor& tensor, bool is_hooked) {
        Content content;
        content.is_hooked = is_hooked;
        if (tensor.defined() && !is_unused(node, item)) {
          content.is_deferred = is_deferred(tensor);
          if (content.is_deferred || fingerprint::can_fingerprint(tensor)) {
            content.tensor = tensor;
          }
        }
        content.item = item;
        const int64_t version =
            tensor.defined() ? state::version(*tensor.unsafeGetTensorImpl()) : -1;
        content.is_moved = !is_hooked && version >= 0 &&
                           static_cast<uint32_t>(version) != item.facts.saved_version;
        found.push_back(std::move(content));
      };
      if (item.packed.empty()) {
        add(item.facts.tensor, false);
      }
      for (const at::Tensor& tensor : item.packed) {
        add(tensor, true);
      }
    }
  });
  std::vector<at::Tensor> elsewhere;
  for (Content& content : found) {
    if (!content.tensor.defined()) {
      continue;
    }
    if (content.is_deferred) {
      content.row = static_cast<int64_t>(elsewhere.size());
      elsewhere.push_back(content.tensor);
    } else {
      content.value = fingerprint::of_cpu(content.tensor);
    }
  }
  if (!elsewhere.empty()) {
    const at::Tensor rows = fingerprints_there(elsewhere);
    for (Content& content : found) {
      if (content.is_deferred) {
        content.rows = rows;
        content.tensor = rows.defined() ? content.tensor : at::Tensor();
      }
    }
  }
  return found;
}

// The guard's own work, on any thread, with or without the GIL. Only what is meant for the program
// leaves, as a Stop.
template <class Work>
void guarded(Work&& work) {
  if (in_guard()) {
    return;
  }
  in_guard() = true;
  std::exception_ptr stop;
  recorder::safely([&] {
    try {
      work();
    } catch (const recorder::Stop&) {
      stop = std::current_exception();
    }
  });
  in_guard() = false;
  if (stop) {
    std::rethrow_exception(stop);
  }
}

// On every node that the engine may run while a guard is on. Returns what it got.
class BeforeUse final : public torch::autograd::FunctionPreHook {
 public:
  explicit BeforeUse(Node* node) : node_(node), epoch_(epoch) {}
  torch::autograd::variable_list operator()(const torch::autograd::variable_list& grads) override {
    if (is_on() && epoch_ == epoch) {
      guarded([&] {
        gradients_before(*node_);
        if (!entries.empty()) {
          compare();
        }
      });
    }
    return grads;
  }
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs&) const override {}
  bool is_current() const {
    return epoch_ == epoch;
  }

  Entries entries;  // as contents_of() lists them; null where there is nothing to compare

 private:
  void compare() {
    look_now();
    std::vector<Content> now = contents_of(*node_);
    if (now.size() != entries.size()) {
      return;  // released, or hooks were put on it since
    }
    for (size_t k = 0; k < now.size(); ++k) {
      const std::shared_ptr<Entry> entry = entries[k];
      if (entry == nullptr || !now[k].tensor.defined() || now[k].is_moved ||
          now[k].is_deferred != entry->rows.defined()) {
        continue;
      }
      if (now[k].is_deferred) {
        compare_later(entry, now[k].rows, now[k].row, now[k].told(*node_));
      } else if (now[k].value != entry->value) {
        entries[k] = nullptr;  // once is enough
        tell_changed(now[k].told(*node_), *entry);
      }
    }
  }

  Node* node_;
  uint64_t epoch_;
};

class AfterUse final : public torch::autograd::FunctionPostHook {
 public:
  explicit AfterUse(Node* node) : node_(node), epoch_(epoch) {}
  torch::autograd::variable_list operator()(
      const torch::autograd::variable_list& outgoing,
      const torch::autograd::variable_list&) override {
    if (is_on() && epoch_ == epoch) {
      guarded([&] { gradients_after(*node_, outgoing); });
    }
    return outgoing;
  }
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs&) const override {}
  bool is_current() const {
    return epoch_ == epoch;
  }

 private:
  Node* node_;
  uint64_t epoch_;
};

// Ours among the hooks of a node; one that an earlier guard has left is none.
template <class Kind, class Hooks>
Kind* hook_on(const Hooks& hooks) {
  for (const auto& hook : hooks) {
    auto* ours = dynamic_cast<Kind*>(hook.get());
    if (ours != nullptr && ours->is_current()) {
      return ours;
    }
  }
  return nullptr;
}

void add_entries(Node& node) {
  if (hook_on<BeforeUse>(node.pre_hooks()) != nullptr) {
    return;  // made by an earlier op
  }
  Entries entries;
  bool any = false;
  const uint64_t order = recorder::Journal::get().order();
  for (Content& content : contents_of(node)) {
    if (!content.tensor.defined()) {
      entries.push_back(nullptr);
      continue;
    }
    auto entry = std::make_shared<Entry>(content.tensor, content.value);
    entry->last = content.value;
    entry->order = order;
    entry->is_hooked = content.is_hooked;
    entry->storage = state::storage(*content.tensor.unsafeGetTensorImpl());
    if (content.is_deferred) {
      entry->rows = content.rows;
      entry->row = content.row;
    } else {
      watch_lines(entry, content.tensor);
    }
    entries.push_back(std::move(entry));
    any = true;
  }
  if (any) {
    auto hook = std::make_unique<BeforeUse>(&node);
    hook->entries = std::move(entries);
    node.add_pre_hook(std::move(hook));
  }
}

}  // namespace

void note_saves(const at::Tensor& result) {
  if (!result.defined() || !state::requires_grad(*result.unsafeGetTensorImpl())) {
    return;
  }
  auto node = torch::autograd::impl::grad_fn_unsafe(result);
  if (node) {
    add_entries(*node);
  }
}

namespace {

// What has to be kept of an op's arguments until it has run.
struct Pending final : at::ObserverContext {
  std::vector<at::Tensor> lists;   // written by a _foreach_ op, which returns nothing
  at::Tensor views_of;             // the first argument of an op that makes views
  std::vector<const void*> shown;  // storages that an op which is not torch's was given
  std::optional<Overlap> overlap;
};

thread_local int depth = 0;  // ops that this thread is in

// Around one op: torch swallows what its observers throw.
template <class Work>
void guarded_op(Work&& work) {
  recorder::raising_later([&] { guarded(work); });
}

std::unique_ptr<at::ObserverContext> op_begins(const at::RecordFunction& fn) {
  ++depth;
  if (!is_on() || in_guard()) {
    return nullptr;
  }
  std::unique_ptr<Pending> pending;
  guarded_op([&] {
    const OpKind& kind = kind_of(fn);
    const auto inputs = fn.inputs();
    const auto need = [&]() -> Pending& {
      if (!pending) {
        pending = std::make_unique<Pending>();
      }
      return *pending;
    };
    if (kind.makes_views && knows_overlaps() && !inputs.empty() && inputs[0].isTensor()) {
      need().views_of = inputs[0].toTensor();
    }
    // An op that is not torch's may write what it does not declare; some of torch's do.
    const bool may_write = !kind.is_aten || kind.is_secretive;
    if (may_write || (depth == 1 && watches_any())) {
      for (const c10::IValue& input : inputs) {
        recorder::each_tensor(input, [&](const at::Tensor& tensor) {
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
        recorder::each_tensor(
            inputs[argument], [&](const at::Tensor& tensor) { need().lists.push_back(tensor); });
      } else if (
          depth == 1 && inputs[argument].isTensor() && inputs[argument].toTensor().defined()) {
        Overlap found;
        if (overlaps(inputs[argument].toTensor(), found)) {
          found.line = recorder::capture_stack();
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
    const auto& outputs = fn.outputs();
    for (const c10::IValue& output : outputs) {
      recorder::each_tensor(output, note_saves);
    }
    if (kind_of(fn).makes_views) {
      note_views(pending != nullptr ? pending->views_of : at::Tensor(), outputs);
    }
    if (pending == nullptr) {
      return;
    }
    for (const at::Tensor& tensor : pending->lists) {
      note_saves(tensor);
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
  guarded([&] {
    look_now();
    bool whole = true;
    for (const state::GraphNode& at : state::walk_graph(roots, 200'000, whole)) {
      if (at.inner_of >= 0) {
        continue;
      }
      if (hook_on<AfterUse>(at.node->post_hooks()) != nullptr) {
        continue;
      }
      if (hook_on<BeforeUse>(at.node->pre_hooks()) == nullptr) {
        at.node->add_pre_hook(std::make_unique<BeforeUse>(at.node));
      }
      // An AccumulateGrad with a post hook copies where it would take over the gradient.
      if (at.node->num_outputs() > 0) {
        at.node->add_post_hook(std::make_unique<AfterUse>(at.node));
      }
    }
  });
}

void backward_ended(bool may_stop) {
  // Letting go of a tensor may wait for the GIL, and is done under a mutex.
  py::gil_scoped_release released;
  const bool is_outermost = --backwards == 0;
  try {
    guarded([&] {
      if (is_outermost) {
        forget_gradients();
      }
      compare_deferred();
    });
  } catch (const recorder::Stop&) {
    if (may_stop) {
      throw;
    }
  }
}

void note_result(PyObject* value) {
  if (recorder::is_tensor(value)) {
    note_saves(THPVariable_Unpack(value));
  } else if (PyTuple_Check(value)) {
    for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(value); ++k) {
      if (recorder::is_tensor(PyTuple_GET_ITEM(value, k))) {
        note_saves(THPVariable_Unpack(PyTuple_GET_ITEM(value, k)));
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

// A child of fork() has the mutexes as they were, and none of the threads that held them.
void register_fork_handlers() {
  using Mutexes = std::array<std::mutex*, 4>;
  static const Mutexes mutexes{
      &deferred_mutex(), &gradients_mutex(), &lines_mutex(), &overlaps_mutex()};
  const auto lock = [] {
    for (std::mutex* mutex : mutexes) {
      mutex->lock();
    }
  };
  const auto unlock = [] {
    for (auto mutex = mutexes.rbegin(); mutex != mutexes.rend(); ++mutex) {
      (*mutex)->unlock();
    }
  };
  // Chosen now and not by the first save, which another thread may be in the middle of when the
  // program forks: the child would wait for that choice for ever.
  (void)fingerprint::blocks();
  static const int registered = pthread_atfork(lock, unlock, unlock);
  (void)registered;
}

}  // namespace

void switch_on() {
  if (guards++ == 0) {
    register_fork_handlers();
    ++epoch;
    recorder::taps = &ours;
    handle = at::addGlobalCallback(
        at::RecordFunctionCallback(&op_begins, &op_ended)
            .needsInputs(true)
            .needsOutputs(true)
            .scopes({at::RecordScope::FUNCTION}));
  }
}

void switch_off() {
  if (guards > 0 && --guards == 0) {
    at::removeCallback(handle);
    recorder::taps = nullptr;
    ++epoch;
    forget_lines();
    forget_gradients();
    forget_deferred();
    forget_overlaps();
  }
}

}  // namespace gradext::guard
