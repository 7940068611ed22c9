// Notes an op's arguments and results for the unboxed kernels (fast_kernels.cpp), whatever types
// its schema gives them.
#pragma once

#include "recorder/kernels/kernel_rules.h"
#include "recorder/kernels/listened.h"
#include "recorder/lost_gradients/flows.h"
#include "recorder/lost_gradients/python_crossings.h"
#include "state/state.h"

#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

namespace gradext::recorder {

// Before the stack is taken: of most views under inference_mode there is nothing to record.
inline bool is_tracked(const at::Tensor& tensor) {
  return tensor.defined() && state::backward_view_meta(*tensor.unsafeGetTensorImpl()) != nullptr;
}

// These return where the views were made, 0 if nothing was recorded.
inline StackId record_views(uint32_t op, const at::Tensor& tensor) {
  if (!is_tracked(tensor)) {
    return 0;
  }
  const StackId where = current_stack();
  record_view(op, tensor, where);
  return where;
}

inline StackId record_views(uint32_t op, const std::vector<at::Tensor>& tensors) {
  if (tensors.empty() || !is_tracked(tensors[0])) {
    return 0;
  }
  const StackId where = current_stack();
  for (const at::Tensor& tensor : tensors) {
    record_view(op, tensor, where);
  }
  return where;
}

// The tensors among an op's arguments. They belong to the caller, and outlive the call.
inline void collect(Inputs& inputs, const at::Tensor& tensor) {
  if (tensor.defined()) {
    inputs.push_back(tensor.unsafeGetTensorImpl());
  }
}
inline void collect(Inputs& inputs, const std::optional<at::Tensor>& tensor) {
  if (tensor) {
    collect(inputs, *tensor);
  }
}
inline void collect(Inputs& inputs, at::TensorList tensors) {
  for (const at::Tensor& tensor : tensors) {
    collect(inputs, tensor);
  }
}
inline void collect(Inputs& inputs, const at::ITensorListRef& tensors) {
  for (const at::Tensor& tensor : tensors) {
    collect(inputs, tensor);
  }
}
inline void collect(Inputs& inputs, const c10::List<std::optional<at::Tensor>>& tensors) {
  for (const std::optional<at::Tensor>& tensor : tensors.vec()) {
    collect(inputs, tensor);
  }
}
template <class Other>
inline void collect(Inputs&, const Other&) {}

template <class... Arguments>
inline Inputs inputs_of(const Arguments&... arguments) {
  Inputs inputs;
  (collect(inputs, arguments), ...);
  return inputs;
}

// The same of arguments that are not collected yet.
inline bool may_be_known(const at::Tensor& tensor) {
  return tensor.defined() && may_be_known(*tensor.unsafeGetTensorImpl());
}
template <class Argument>
inline bool argument_may_be_known(const Argument& argument) {
  if constexpr (std::is_same_v<Argument, at::Tensor>) {
    return may_be_known(argument);
  } else if constexpr (std::is_same_v<Argument, std::optional<at::Tensor>>) {
    return argument && may_be_known(*argument);
  } else {
    Inputs inputs;  // of a list; of what holds no tensor, none
    collect(inputs, argument);
    return any_may_be_known(inputs);
  }
}
template <class... Arguments>
inline bool any_may_be_known(const Arguments&... arguments) {
  return (argument_may_be_known(arguments) || ...);
}

template <class... Arguments>
inline bool may_be_followed(Watch watch, const OpFacts& facts, const Arguments&... arguments) {
  return watch != Watch::kNoGrad || (facts.carries_data && any_may_be_known(arguments...));
}

// The argument at each place, null where it is no tensor.
inline const at::Tensor* as_tensor(const at::Tensor& tensor) {
  return &tensor;
}
inline const at::Tensor* as_tensor(const std::optional<at::Tensor>& tensor) {
  return tensor ? &*tensor : nullptr;
}
template <class Other>
inline const at::Tensor* as_tensor(const Other&) {
  return nullptr;
}

// Out of line, as below.
C10_NOINLINE inline void begin_secrets(
    SecretWrites& secrets, const OpFacts& facts, c10::ArrayRef<const at::Tensor*> arguments) {
  safely([&] {
    for (uint16_t argument : facts.secret) {
      if (argument < arguments.size() && arguments[argument] != nullptr) {
        secrets.add(*arguments[argument]);
      }
    }
    secrets.begin();
  });
}

C10_NOINLINE inline void tell_ran(
    const Listened& listened,
    const OpFacts& facts,
    const Inputs& inputs,
    const at::Tensor& result) {
  safely([&] { listened.ran(facts, inputs, result); });
}
template <class... T>
inline void tell_ran(
    const Listened& listened,
    const OpFacts& facts,
    const Inputs& inputs,
    const std::tuple<T...>& results) {
  std::apply(
      [&](const auto&... each) {
        const auto one = [&](const auto& result) {
          if constexpr (std::is_same_v<std::decay_t<decltype(result)>, at::Tensor>) {
            tell_ran(listened, facts, inputs, result);
          }
        };
        (one(each), ...);
      },
      results);
}

C10_NOINLINE inline void tell_view(
    const OpTaps& taps, const at::Tensor& of, const at::Tensor& view) {
  safely([&] { taps.view_made(of, view); });
}
inline void tell_view(
    const OpTaps& taps, const at::Tensor& of, const std::vector<at::Tensor>& views) {
  for (const at::Tensor& view : views) {
    tell_view(taps, of, view);
  }
}

template <class T>
inline constexpr bool kIsTensor = std::is_same_v<std::decay_t<T>, at::Tensor>;

template <class... T>
inline constexpr bool kTakesTensors =
    ((kIsTensor<T> || std::is_same_v<std::decay_t<T>, std::optional<at::Tensor>>) || ...);

inline bool has_gradient(const at::Tensor& tensor) {
  return tensor.defined() && state::requires_grad(*tensor.unsafeGetTensorImpl());
}

// Nothing is to be noted of most results: they require grad, as they should.
inline bool is_noteworthy(Watch watch, const OpFacts& facts, const at::Tensor& result) {
  return watch == Watch::kBirths || facts.is_additive || !has_gradient(result) ||
         notes_all_merges();
}

// Of the further results of an op only those that a program computes with on purpose are values
// that have lost their gradient: the indices of max(), not the mask of a dropout.
template <class First, class... Others>
inline bool is_noteworthy(
    Watch watch, const OpFacts& facts, const std::tuple<First, Others...>& results) {
  return watch == Watch::kBirths || facts.gives_indices || !has_gradient(std::get<0>(results)) ||
         notes_all_merges();
}

// Out of line: instantiated for every op, they would take half of the compiler's time.
C10_NOINLINE inline void note_one(
    Watch watch, const OpFacts& facts, const Inputs& inputs, const at::Tensor& result) {
  safely([&] { note_results(watch, facts, inputs, result); });
}

C10_NOINLINE inline void note_failure(
    const OpFacts& facts, const Inputs& inputs, const c10::Error& error) {
  safely([&] { note_misuse(facts, inputs, error); });
}

inline void note_each(
    Watch watch, const OpFacts& facts, const Inputs& inputs, const at::Tensor& result) {
  note_one(watch, facts, inputs, result);
}
template <class... T>
inline void note_each(
    Watch watch, const OpFacts& facts, const Inputs& inputs, const std::tuple<T...>& results) {
  std::apply(
      [&](const auto&... each) {
        const auto one = [&](const auto& result) {
          if constexpr (kIsTensor<decltype(result)>) {
            note_one(watch, facts, inputs, result);
          }
        };
        (one(each), ...);
      },
      results);
}

inline void note_views(
    Watch watch,
    const OpFacts& facts,
    const at::Tensor& base,
    const at::Tensor& view,
    StackId stack) {
  if (!has_gradient(view)) {
    note_view(watch, facts, base, view, stack);
  }
}
inline void note_views(
    Watch watch,
    const OpFacts& facts,
    const at::Tensor& base,
    const std::vector<at::Tensor>& views,
    StackId stack) {
  for (const at::Tensor& view : views) {
    note_views(watch, facts, base, view, stack);
  }
}

}  // namespace gradext::recorder
