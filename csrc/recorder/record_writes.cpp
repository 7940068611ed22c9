#include "recorder/record_writes.h"

#include "graph/each_tensor.h"
#include "recorder/listener.h"
#include "recorder/record_times.h"
#include "recorder/uncounted_writes.h"
#include "state/state.h"

#include <ATen/SequenceNumber.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>

namespace gradext::recorder {

Extent extent_of(const c10::TensorImpl& impl) {
  if (!state::has_strides(impl) || state::is_wrapper_subclass(impl) ||
      state::storage(impl) == nullptr || impl.numel() == 0) {
    return {};
  }
  const auto size = static_cast<int64_t>(impl.itemsize());
  int64_t last = 0;
  const auto sizes = impl.sizes();
  const auto strides = impl.strides();
  for (size_t d = 0; d < sizes.size(); ++d) {
    last += (sizes[d] - 1) * strides[d];
  }
  const int64_t begin = impl.storage_offset() * size;
  return {begin, begin + (last + 1) * size};
}

namespace {

// Whether the extent has holes: elements of other tensors between those of this one.
bool has_holes(const c10::TensorImpl& impl, const Extent& extent) {
  return extent.end - extent.begin != impl.numel() * static_cast<int64_t>(impl.itemsize());
}

uint32_t use_count(const void* target) {
  auto* held = static_cast<c10::intrusive_ptr_target*>(const_cast<void*>(target));
  return held ? c10::raw::intrusive_ptr::use_count(held) : 0;
}

}  // namespace

void add_target(Targets& targets, const at::Tensor& tensor, uint16_t argument) {
  if (!tensor.defined() || state::is_stand_in(*tensor.unsafeGetTensorImpl())) {
    return;
  }
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  targets.push_back(
      Target{
          tensor,
          state::counter_address(impl),
          state::storage(impl),
          extent_of(impl),
          state::version(impl),
          argument,
          !state::is_leaf(impl),
          nullptr});
}

void add_targets(Targets& targets, const OpFacts& op, const Stack& stack) {
  const size_t first = stack.size() - op.arguments;
  for (uint16_t argument : op.written) {
    graph::each_tensor(stack[first + argument], [&](const at::Tensor& tensor) {
      add_target(targets, tensor, argument);
    });
  }
}

namespace {

bool is_enclosed(const Enclosing* enclosing, const void* counter) {
  for (; enclosing != nullptr; enclosing = enclosing->outer) {
    for (size_t k = 0; k < enclosing->counter_count; ++k) {
      if (enclosing->counters[k] == counter) {
        return true;
      }
    }
  }
  return false;
}

// Whether the memory belongs to tensors that this counter does not cover.
bool is_shared(const c10::StorageImpl* storage, const void* counter) {
  const uint32_t users = use_count(storage);
  return users > use_count(counter) || (users > 1 && is_apart(counter));
}

// Whether a write that is about to happen may be one that no version counter sees.
bool may_be_uncounted(const OpFacts& op, const Target& target) {
  return !op.metadata_only && target.version >= 0 && target.extent.begin != target.extent.end &&
         (op.counting.load(std::memory_order_relaxed) != OpFacts::Counting::kCounts ||
          is_shared(target.storage, target.counter));
}

void note_counting(const OpFacts& op, bool counted) {
  using Counting = OpFacts::Counting;
  const Counting known = op.counting.load(std::memory_order_relaxed);
  if (known == Counting::kNotSeen || (known == Counting::kCounts && !counted)) {
    op.counting.store(counted ? Counting::kCounts : Counting::kDoesNot, std::memory_order_relaxed);
  }
}

// `sequence`: of autograd when the op began, so that a node which it makes itself is no earlier one
// that it overwrites.
void record_write(
    const ThreadState& thread,
    const OpFacts& op,
    uint32_t inner_op,
    Targets& targets,
    StackId stack,
    uint64_t sequence) {
  Journal& journal = Journal::get();
  const bool grad_mode = c10::GradMode::is_enabled();
  bool uncounted = false;
  {
    std::lock_guard lock(journal.mutex);
    for (Target& target : targets) {
      const c10::TensorImpl& impl = *target.tensor.unsafeGetTensorImpl();
      if (is_enclosed(thread.enclosing, target.counter)) {
        continue;
      }
      const int64_t version = state::version(impl);
      uint32_t flags = grad_mode ? kGradMode : 0;
      // As it is after the op: resize_ and out= change the sizes, set_ the storage.
      const c10::StorageImpl* storage = state::storage(impl);
      const Extent extent = extent_of(impl);
      if (op.metadata_only && version == target.version && target.version >= 0 &&
          !target.had_node) {
        continue;
      }
      if (target.version < 0) {
        flags |= kInferenceTensor;
      } else if (!op.metadata_only && extent.begin != extent.end) {
        note_counting(op, version != target.version);
        if (version == target.version) {
          flags |= kDeclaredOnly;
        }
        if (is_shared(storage, target.counter)) {
          flags |= kSharedStorage;
        }
        uncounted |= (flags & (kDeclaredOnly | kSharedStorage)) != 0;
      }
      Write& event = journal.writes.push();
      event.order = journal.next_order();
      event.storage = journal.identify(storage, event.order);
      event.counter = journal.identify(target.counter, event.order);
      event.extent = extent;
      event.sequence = sequence;
      event.thread = static_cast<uint32_t>(thread.id);
      event.stack = stack;
      event.op = op.name;
      event.inner_op = inner_op;
      event.version_before = static_cast<uint32_t>(std::max<int64_t>(target.version, 0));
      event.version_after = static_cast<uint32_t>(std::max<int64_t>(version, 0));
      if (extent.begin != extent.end && has_holes(impl, extent)) {
        event.geometry = journal.intern_geometry(impl);
        flags |= event.geometry == 0 ? kHoles : 0;
      }
      event.argument = target.argument;
      event.flags = static_cast<uint16_t>(flags);
      if (times_are_on()) {
        note_time_of(event);
      }
      if (target.before != nullptr && (flags & (kDeclaredOnly | kSharedStorage)) != 0) {
        keep_before(std::move(target.before), event.order);
      }
    }
  }
  if (uncounted) {
    remember_uncounted(thread.id, sequence);
  }
}

void record_refusal(
    const ThreadState& thread,
    const OpFacts& op,
    const Target& target,
    StackId stack,
    std::string what) {
  const c10::TensorImpl& impl = *target.tensor.unsafeGetTensorImpl();
  Journal& journal = Journal::get();
  Refused event;
  event.order = journal.next_order();
  {
    std::lock_guard lock(journal.mutex);
    event.storage = journal.identify(target.storage, event.order);
  }
  event.extent = target.extent;
  event.tensor = state::opaque_id(&impl);
  event.thread = thread.id;
  event.stack = stack;
  event.op = op.name;
  event.is_leaf = state::is_leaf(impl);
  event.requires_grad = state::requires_grad(impl);
  event.is_inference = state::is_inference(impl);
  event.grad_mode = c10::GradMode::is_enabled();
  event.what = std::move(what);
  if (const auto* view = state::backward_view_meta(impl)) {
    const at::Tensor& base = view->get_backward_view().base_;
    event.is_view = true;
    event.base = state::opaque_id(base.unsafeGetTensorImpl());
    event.base_is_leaf = state::is_leaf(*base.unsafeGetTensorImpl());
    event.creation_meta = static_cast<int32_t>(view->get_creation_meta());
  }
  auto node = torch::autograd::impl::grad_fn_unsafe(target.tensor);
  auto* at = node ? &*node : nullptr;
  for (int k = 0; at != nullptr && k < 16; ++k) {
    event.chain.emplace_back(at->name(), NodeId{at->thread_id(), at->sequence_nr()});
    at = at->num_outputs() > 0 && at->next_edge(0).function ? &*at->next_edge(0).function : nullptr;
  }
  journal.push_refused(std::move(event));
}

}  // namespace

void name_inner_op(Enclosing& around, const OpFacts& op, const at::Tensor* written) {
  if (around.inner_op != 0 || written == nullptr || !written->defined()) {
    return;
  }
  const void* counter = state::counter_address(*written->unsafeGetTensorImpl());
  for (size_t k = 0; k < around.counter_count; ++k) {
    if (around.counters[k] == counter) {
      around.inner_op = op.name;
      return;
    }
  }
}

WriteScope::~WriteScope() {
  if (is_open_) {
    thread_.enclosing = enclosing_.outer;
  }
}

void WriteScope::begin() {
  safely([&] {
    if (!targets.empty()) {
      stack_ = current_stack();
    }
    sequence_ = at::sequence_number::peek();
    for (const Target& target : targets) {
      counters_.push_back(target.counter);
      enclosing_.is_wrapper |= state::stands_on_another(*target.tensor.unsafeGetTensorImpl());
    }
    const OpTaps* taps = op_listener();
    for (Target& target : targets) {
      if (may_be_uncounted(*enclosing_.op, target)) {
        target.before = look_before(target.tensor, thread_.id, sequence_);
        if (C10_UNLIKELY(taps != nullptr)) {
          taps->before_write(target.tensor);
        }
      }
    }
  });
  enclosing_.counters = counters_.data();
  enclosing_.counter_count = counters_.size();
  thread_.enclosing = &enclosing_;
  is_open_ = true;
}

void WriteScope::end() {
  thread_.enclosing = enclosing_.outer;
  is_open_ = false;
  if (!targets.empty()) {
    safely([&] {
      record_write(thread_, *enclosing_.op, enclosing_.inner_op, targets, stack_, sequence_);
      if (const OpTaps* taps = op_listener(); C10_UNLIKELY(taps != nullptr)) {
        tell_written(*taps);
      }
    });
  }
}

void WriteScope::tell_written(const OpTaps& taps) {
  for (const Target& target : targets) {
    if (state::storage(*target.tensor.unsafeGetTensorImpl()) != target.storage) {
      // set_(): whoever has that storage may write it.
      taps.before_write(target.tensor);
    } else if (!enclosing_.op->metadata_only) {
      taps.written(target.tensor, stack_, enclosing_.op->name);
    }
  }
}

void WriteScope::refused(const c10::Error& error) {
  thread_.enclosing = enclosing_.outer;
  is_open_ = false;
  if (!targets.empty()) {
    safely([&] {
      const std::string what = error.what_without_backtrace();
      const Target* blamed = &targets[0];
      if (what.find("nference tensor") != std::string::npos) {
        for (const Target& target : targets) {
          if (state::is_inference(*target.tensor.unsafeGetTensorImpl())) {
            blamed = &target;
            break;
          }
        }
      }
      record_refusal(thread_, *enclosing_.op, *blamed, stack_, what);
    });
  }
}

void record_view(uint32_t op, const at::Tensor& tensor, StackId stack) {
  if (!tensor.defined() || state::is_stand_in(*tensor.unsafeGetTensorImpl())) {
    return;
  }
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  const auto* view = state::backward_view_meta(impl);
  if (view == nullptr) {
    return;
  }
  Journal& journal = Journal::get();
  std::lock_guard lock(journal.mutex);
  View& event = journal.views.push();
  event.order = journal.next_order();
  event.storage = journal.identify(state::storage(impl), event.order);
  event.extent = extent_of(impl);
  event.sequence = at::sequence_number::peek();
  event.tensor = state::opaque_id(&impl);
  event.thread = static_cast<uint32_t>(thread_state().id);
  event.stack = stack;
  event.op = op;
  event.flags = static_cast<uint32_t>(view->get_creation_meta());
}

namespace {

void record_note(uint32_t op, const at::Tensor& tensor, uint16_t flags) {
  const StackId stack = current_stack();
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  Journal& journal = Journal::get();
  std::lock_guard lock(journal.mutex);
  Write& event = journal.writes.push();
  event.order = journal.next_order();
  event.storage = journal.identify(state::storage(impl), event.order);
  event.counter = journal.identify(state::counter_address(impl), event.order);
  event.extent = extent_of(impl);
  event.sequence = at::sequence_number::peek();
  event.thread = static_cast<uint32_t>(thread_state().id);
  event.stack = stack;
  event.op = op;
  event.version_before = event.version_after =
      static_cast<uint32_t>(std::max<int64_t>(state::version(impl), 0));
  event.flags = flags;
}

}  // namespace

void note(const std::string& name, const at::Tensor& tensor) {
  if (!active() || !tensor.defined() ||
      is_enclosed(
          thread_state().enclosing, state::counter_address(*tensor.unsafeGetTensorImpl()))) {
    return;  // the op around it is recorded as the write
  }
  record_note(intern_name(name), tensor, kNote);
}

void note_exchange(uint32_t name, const at::Tensor& tensor) {
  record_note(name, tensor, kNote | kDeclaredOnly);
}

}  // namespace gradext::recorder
