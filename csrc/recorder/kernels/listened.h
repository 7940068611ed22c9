// Tells a listener of ops from within the recorder's kernels: what made nodes, and what may write
// memory without moving a version counter.
#pragma once

#include "base/aside.h"
#include "recorder/listener.h"
#include "recorder/lost_gradients/flows.h"
#include "recorder/op_facts.h"
#include "state/state.h"

#include <ATen/SequenceNumber.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/util/SmallVector.h>

#include <cstdint>
#include <tuple>
#include <utility>

namespace gradext::recorder {

// Around one op. Without a listener it costs a load of an atomic.
class Listened {
 public:
  explicit Listened(c10::DispatchKeySet keys) : taps_(op_listener()) {
    if (C10_UNLIKELY(taps_ != nullptr)) {
      ++listened_ops();
      makes_nodes_ = c10::GradMode::is_enabled() && keys.has_any(c10::autograd_dispatch_keyset);
      first_ = at::sequence_number::peek();
    }
  }
  Listened(const Listened&) = delete;
  Listened& operator=(const Listened&) = delete;
  ~Listened() {
    if (C10_UNLIKELY(taps_ != nullptr) && --listened_ops() == 0) {
      taps_->all_ended();
    }
  }
  bool is_on() const {
    return taps_ != nullptr;
  }
  // Whether the listener is to be told of the op's results: it may have made nodes.
  bool wants_nodes() const {
    return makes_nodes_;
  }
  void ran(const OpFacts& facts, const Inputs& inputs, const at::Tensor& result) const {
    if (result.defined() && state::requires_grad(*result.unsafeGetTensorImpl())) {
      taps_->ran(inputs, result, first_, facts.is_aten);
    }
  }

 private:
  const OpTaps* taps_;
  bool makes_nodes_ = false;
  uint64_t first_ = 0;
};

// Tensors that an op may write without saying so. It is over when this is.
class SecretWrites {
 public:
  SecretWrites() = default;
  SecretWrites(const SecretWrites&) = delete;
  SecretWrites& operator=(const SecretWrites&) = delete;
  ~SecretWrites() {
    if (C10_UNLIKELY(taps_ != nullptr)) {
      taps_->after_write(tensors_);
    }
  }
  void add(const at::Tensor& tensor) {
    if (tensor.defined()) {
      tensors_.push_back(tensor);
    }
  }
  void begin() {
    if (const OpTaps* taps = tensors_.empty() ? nullptr : op_listener()) {
      taps->before_write(tensors_);
      taps_ = taps;
    }
  }

 private:
  const OpTaps* taps_ = nullptr;
  c10::SmallVector<at::Tensor, 4> tensors_;
};

}  // namespace gradext::recorder
