// What the recorder does around an op that has no unboxed kernel (fast_kernels.cpp), and around ops
// that a program defines later.
#include "recorder/kernels/boxed_kernels.h"

#include "graph/each_tensor.h"
#include "recorder/kernels/kernel_rules.h"
#include "recorder/kernels/listened.h"
#include "recorder/lost_gradients/flows.h"
#include "state/state.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace gradext::recorder {
namespace {

template <c10::DispatchKey key>
void forward(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  if (python_dispatches(thread_state())) {
    c10::impl::ExcludeDispatchKeyGuard guard(key);
    op.callBoxed(stack);
    return;
  }
  op.redispatchBoxed(below<key>(keys), stack);
}

// The tensors among an op's arguments, kept until it has run: the op takes them off the stack.
class Arguments {
 public:
  Arguments(const OpFacts& op, const Stack& stack) {
    for (size_t k = stack.size() - op.arguments; k < stack.size(); ++k) {
      graph::each_tensor(stack[k], [&](const at::Tensor& tensor) {
        if (tensor.defined()) {
          tensors_.push_back(tensor);
        }
      });
    }
  }
  Inputs inputs(const c10::TensorImpl* but = nullptr) const {
    Inputs found;
    for (const at::Tensor& tensor : tensors_) {
      if (tensor.unsafeGetTensorImpl() != but) {
        found.push_back(tensor.unsafeGetTensorImpl());
      }
    }
    return found;
  }
  const at::Tensor* first() const {
    return tensors_.empty() ? nullptr : &tensors_[0];
  }

 private:
  c10::SmallVector<at::Tensor, 6> tensors_;
};

// What the op may write without saying so, told to the listener before and after.
class SecretsOfStack : public SecretWrites {
 public:
  SecretsOfStack(const OpFacts& facts, const Stack& stack) {
    if (C10_UNLIKELY(!facts.secret.empty() && op_listener() != nullptr)) {
      safely([&] {
        for (uint16_t argument : facts.secret) {
          graph::each_tensor(
              stack[stack.size() - facts.arguments + argument],
              [&](const at::Tensor& tensor) { add(tensor); });
        }
        begin();
      });
    }
  }
};

// An op's results, on the stack, to the listener.
void tell_results(
    const Listened& listened,
    const OpFacts& facts,
    const Arguments& arguments,
    const Stack& stack,
    size_t results) {
  const Inputs inputs = arguments.inputs();
  for (size_t k = stack.size() - results; k < stack.size(); ++k) {
    graph::each_tensor(
        stack[k], [&](const at::Tensor& tensor) { listened.ran(facts, inputs, tensor); });
  }
}

bool follows_values(Watch watch) {
  return watch == Watch::kGrad || watch == Watch::kNoGrad;
}

void note_written(
    Watch watch,
    const OpFacts& facts,
    const Targets& targets,
    const Arguments& all,
    StackId stack) {
  for (const Target& target : targets) {
    const c10::TensorImpl* impl = target.tensor.unsafeGetTensorImpl();
    if (writes_are_noteworthy(facts, *impl)) {
      note_flow_into(watch, facts, target.tensor, all.inputs(impl), stack);
    } else if (!facts.writes_lists) {
      note_given_by_write(watch, facts, *impl, all.inputs(impl), stack);
    }
  }
}

void on_write(
    const OpFacts& facts, const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  ThreadState& thread = thread_state();
  before_nodes(thread, keys);
  const c10::IValue& first = (*stack)[stack->size() - facts.arguments + facts.written[0]];
  const at::Tensor* written = first.isTensor() ? &first.toTensor() : nullptr;
  if (!write_is_wanted(thread, facts, keys, written)) {
    forward<kKey>(op, keys, stack);
    return;
  }
  const Listened listened(keys);
  WriteScope scope(thread, facts);
  std::optional<Arguments> arguments, told;
  const Watch watch = how_to_watch(thread, keys);
  safely([&] {
    add_targets(scope.targets, facts, *stack);
    // Which of many goes into which is not followed.
    if (follows_values(watch) && !facts.writes_lists) {
      arguments.emplace(facts, *stack);
    }
    if (C10_UNLIKELY(listened.wants_nodes())) {
      told.emplace(facts, *stack);
    }
  });
  scope.begin();
  try {
    WatchedOp running(thread, facts);
    forward<kKey>(op, keys, stack);
  } catch (const c10::Error& error) {
    scope.refused(error);
    if (arguments) {
      safely([&] { note_misuse(facts, arguments->inputs(), error); });
    }
    throw;
  }
  scope.end();
  if (told) {
    safely([&] {
      const Inputs inputs = told->inputs();
      for (const Target& target : scope.targets) {
        listened.ran(facts, inputs, target.tensor);
      }
    });
  }
  if (arguments) {
    safely([&] {
      if (facts.detaches) {
        for (const Target& target : scope.targets) {
          if (target.had_node) {
            note_detached(facts, target.tensor);
          }
        }
      } else {
        note_written(watch, facts, scope.targets, *arguments, scope.stack());
      }
    });
  }
}

void on_view(
    const OpFacts& facts, const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  ThreadState& thread = thread_state();
  before_nodes(thread, keys);
  const bool wanted = view_is_wanted(thread, keys, facts.makes_many_views);
  const Watch watch = how_to_watch(thread, keys);
  const OpTaps* taps = op_listener();
  if (!wanted && !follows_values(watch) && taps == nullptr) {
    forward<kKey>(op, keys, stack);
    return;
  }
  std::optional<Arguments> arguments;
  safely([&] { arguments.emplace(facts, *stack); });
  const size_t results = op.schema().returns().size();
  {
    Closed closed(thread, facts, keys);
    forward<kKey>(op, keys, stack);
  }
  safely([&] {
    StackId where = 0;
    for (size_t k = stack->size() - results; k < stack->size(); ++k) {
      graph::each_tensor((*stack)[k], [&](const at::Tensor& tensor) {
        if (wanted && tensor.defined() &&
            state::backward_view_meta(*tensor.unsafeGetTensorImpl()) != nullptr) {
          where = where != 0 ? where : current_stack();
          record_view(facts.name, tensor, where);
        }
        if (follows_values(watch) && arguments && arguments->first() != nullptr) {
          note_view(watch, facts, *arguments->first(), tensor, where);
        }
        if (C10_UNLIKELY(taps != nullptr) && arguments && arguments->first() != nullptr) {
          taps->view_made(*arguments->first(), tensor);
        }
      });
    }
  });
}

template <c10::DispatchKey key>
void on_result(
    const OpFacts& facts, const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  ThreadState& thread = thread_state();
  before_nodes(thread, keys);
  const Watch watch = how_to_watch(thread, keys, facts.is_factory);
  const Listened listened(keys);
  if (watch == Watch::kNone && !listened.wants_nodes()) {
    forward<key>(op, keys, stack);
    return;
  }
  std::optional<Arguments> arguments;
  safely([&] { arguments.emplace(facts, *stack); });
  const size_t results = op.schema().returns().size();
  if (watch == Watch::kNone) {
    {
      WatchedOp running(thread, facts);
      Closed closed(thread, facts, keys);
      forward<key>(op, keys, stack);
    }
    safely([&] {
      if (arguments) {
        tell_results(listened, facts, *arguments, *stack, results);
      }
    });
    return;
  }
  try {
    WatchedOp running(thread, facts);
    Closed closed(thread, facts, keys);
    forward<key>(op, keys, stack);
  } catch (const c10::Error& error) {
    if (arguments) {
      safely([&] { note_misuse(facts, arguments->inputs(), error); });
    }
    throw;
  }
  safely([&] {
    const Inputs inputs = arguments ? arguments->inputs() : Inputs();
    bool first_has_gradient = false;
    const size_t first = stack->size() - results;
    const bool follows = may_be_followed(watch, facts, inputs);
    for (size_t k = first; follows && k < stack->size(); ++k) {
      graph::each_tensor((*stack)[k], [&](const at::Tensor& tensor) {
        if (k == first) {
          first_has_gradient =
              tensor.defined() && state::requires_grad(*tensor.unsafeGetTensorImpl());
        } else if (first_has_gradient && !facts.gives_indices) {
          return;  // the mask of a dropout, the mean of a normalisation
        }
        note_results(watch, facts, inputs, tensor);
      });
    }
    if (C10_UNLIKELY(listened.wants_nodes()) && arguments) {
      tell_results(listened, facts, *arguments, *stack, results);
    }
  });
}

// Nothing of it is recorded.
void on_secret(
    const OpFacts&, const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  forward<kKey>(op, keys, stack);
}

using Body = void (*)(
    const OpFacts& facts, const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack);

template <Body body, c10::DispatchKey key>
class Kernel final : public c10::OperatorKernel {
 public:
  explicit Kernel(std::unique_ptr<OpFacts> facts) : facts_(std::move(facts)) {}
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
    if (op.schema().arguments().size() != facts_->arguments) {
      forward<key>(op, keys, stack);  // defined anew, as a notebook does, after we had registered
      return;
    }
    const SecretsOfStack secrets(*facts_, *stack);
    body(*facts_, op, keys, stack);
  }

 private:
  std::unique_ptr<OpFacts> facts_;
};

template <Body body, c10::DispatchKey key>
torch::CppFunction boxed(std::unique_ptr<OpFacts> facts) {
  return torch::CppFunction::makeFromBoxedKernel(
      c10::BoxedKernel::makeFromFunctor(std::make_unique<Kernel<body, key>>(std::move(facts))));
}

using KnownOps = std::unordered_map<
    std::string,
    std::vector<std::pair<c10::FunctionSchema, std::unique_ptr<OpFacts>>>>;

// Guarded by the mutex of the names, its making too: a fork waits for that one.
KnownOps& known_ops() {
  static auto* known = new KnownOps;
  return *known;
}

// An op as it is defined now. What was found of it before a new definition stays: it may be in use.
const OpFacts& late_facts(const c10::OperatorHandle& op) {
  const std::string name = c10::toString(op.operator_name());
  const auto look = [&]() -> const OpFacts* {
    for (const auto& [schema, facts] : known_ops()[name]) {
      if (schema == op.schema()) {
        return facts.get();
      }
    }
    return nullptr;
  };
  {
    std::lock_guard lock(names_mutex());
    if (const OpFacts* facts = look()) {
      return *facts;
    }
  }
  std::unique_ptr<OpFacts> made = facts_of(op.schema());
  std::lock_guard lock(names_mutex());
  if (const OpFacts* facts = look()) {
    return *facts;  // another thread was first
  }
  return *known_ops()[name].emplace_back(op.schema(), std::move(made)).second;
}

// Ops that were registered after register_kernels(): a custom op that the program defines itself.
void on_late_op(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  const OpFacts* facts = nullptr;
  safely([&] { facts = &late_facts(op); });
  if (facts == nullptr) {
    forward<kKey>(op, keys, stack);
    return;
  }
  const SecretsOfStack secrets(*facts, *stack);
  if (!facts->written.empty()) {
    on_write(*facts, op, keys, stack);
  } else if (facts->makes_views) {
    on_view(*facts, op, keys, stack);
  } else {
    on_result<kKey>(*facts, op, keys, stack);
  }
}

}  // namespace

torch::CppFunction boxed_write(std::unique_ptr<OpFacts> facts) {
  return boxed<&on_write, kKey>(std::move(facts));
}

torch::CppFunction boxed_view(std::unique_ptr<OpFacts> facts) {
  return boxed<&on_view, kKey>(std::move(facts));
}

torch::CppFunction boxed_result(std::unique_ptr<OpFacts> facts) {
  return boxed<&on_result<kNodeKey>, kNodeKey>(std::move(facts));
}

torch::CppFunction boxed_secret(std::unique_ptr<OpFacts> facts) {
  return boxed<&on_secret, kKey>(std::move(facts));
}

torch::CppFunction boxed_fallback() {
  return torch::CppFunction::makeFromBoxedFunction<&on_late_op>();
}

}  // namespace gradext::recorder
