#include "recorder/switch.h"

#include "graph/each_tensor.h"
#include "recorder/kernels/kernel_rules.h"
#include "recorder/listener.h"
#include "recorder/lost_gradients/flows.h"
#include "state/state.h"

#include <ATen/SequenceNumber.h>
#include <c10/util/SmallVector.h>
#include <torch/csrc/autograd/variable.h>

#include <cstring>

namespace gradext::recorder {

std::atomic<int> recordings{0};
std::atomic<int> recordings_with_saves{0};
std::atomic<bool> injected{false};
std::atomic<uint32_t> origins_wanted{0};
std::atomic<uint64_t> ended_recordings{0};
std::atomic<const Taps*> taps{nullptr};

namespace {

struct Global {
  std::atomic<StackId> backward_stack{0};
  std::atomic<uint64_t> faults{0};
  std::atomic<uint64_t> uncounted{0};  // writes that torch's check cannot see, ever
  std::mutex mutex;                    // guards what follows
  std::string last_fault;
  std::vector<std::string> names{""};
  std::unordered_map<std::string, uint32_t> name_index;
  // Of a thread: its sequence number at the last such write. Of two threads, no more are needed:
  // whatever node there is, it is older than one of these writes as far as anybody can tell.
  std::vector<NodeId> uncounted_from;
};

constexpr size_t kMostNames = 1 << 17;

Global& global() {
  static Global* instance = new Global;
  return *instance;
}

}  // namespace

uint32_t intern_name(const std::string& name) {
  Global& g = global();
  std::lock_guard<std::mutex> lock(g.mutex);
  const auto known = g.name_index.find(name);
  if (known != g.name_index.end()) {
    return known->second;
  }
  if (g.names.size() >= kMostNames) {
    return 0;  // a program that defines ops without end
  }
  const auto number = static_cast<uint32_t>(g.names.size());
  g.name_index.emplace(name, number);
  g.names.push_back(name);
  return number;
}

void count_fault(const char* what) noexcept {
  try {
    Global& g = global();
    ++g.faults;
    std::lock_guard<std::mutex> lock(g.mutex);
    g.last_fault = what;
  } catch (...) {  // NOLINT: nothing of ours may leave
  }
}

StackId current_stack() {
  const StackId stack = capture_stack();
  return stack != 0 ? stack : global().backward_stack.load(std::memory_order_relaxed);
}

namespace {

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

// Whether the extent has holes: elements of other tensors between those of this one.
bool has_holes(const c10::TensorImpl& impl, const Extent& extent) {
  return extent.end - extent.begin != impl.numel() * static_cast<int64_t>(impl.itemsize());
}

uint32_t use_count(const void* target) {
  auto* held = static_cast<c10::intrusive_ptr_target*>(const_cast<void*>(target));
  return held ? c10::raw::intrusive_ptr::use_count(held) : 0;
}

}  // namespace

bool is_stand_in(const c10::TensorImpl& impl) {
  const c10::StorageImpl* storage = state::storage(impl);
  return impl.key_set().has(c10::DispatchKey::Functionalize) ||
         impl.key_set().has_backend(c10::BackendComponent::MetaBit) ||
         (storage != nullptr && storage->device_type() == c10::DeviceType::Meta);
}

bool stands_on_another(const c10::TensorImpl& impl) {
  return impl.key_set().has(c10::DispatchKey::FuncTorchBatched);
}

void add_target(Targets& targets, const at::Tensor& tensor, uint16_t argument) {
  if (!tensor.defined() || is_stand_in(*tensor.unsafeGetTensorImpl())) {
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
          !state::is_leaf(impl)});
}

void add_targets(Targets& targets, const OpFacts& op, const Stack& stack) {
  const size_t first = stack.size() - op.arguments;
  for (uint16_t argument : op.written) {
    each_tensor(stack[first + argument], [&](const at::Tensor& tensor) {
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

void remember_uncounted(uint64_t thread, uint64_t sequence) {
  Global& g = global();
  ++g.uncounted;
  std::lock_guard<std::mutex> lock(g.mutex);
  for (NodeId& known : g.uncounted_from) {
    if (known.thread == thread) {
      known.sequence = sequence;
      return;
    }
  }
  if (g.uncounted_from.size() < 2) {
    g.uncounted_from.push_back(NodeId{thread, sequence});
  }
}

void record_write(
    const ThreadState& thread,
    const OpFacts& op,
    uint32_t inner_op,
    const Targets& targets,
    StackId stack) {
  Journal& journal = Journal::get();
  const uint64_t sequence = at::sequence_number::peek();
  const bool grad_mode = c10::GradMode::is_enabled();
  bool uncounted = false;
  {
    std::lock_guard<std::mutex> lock(journal.mutex);
    for (const Target& target : targets) {
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
        if (version == target.version) {
          flags |= kDeclaredOnly;
        }
        if (storage != nullptr && use_count(storage) > use_count(target.counter)) {
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
    std::lock_guard<std::mutex> lock(journal.mutex);
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
    for (const Target& target : targets) {
      counters_.push_back(target.counter);
      enclosing_.is_wrapper |= stands_on_another(*target.tensor.unsafeGetTensorImpl());
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
    safely([&] { record_write(thread_, *enclosing_.op, enclosing_.inner_op, targets, stack_); });
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

bool must_leave() {
  if (active()) {
    return false;
  }
  sync_thread();
  return true;
}

void record_view(uint32_t op, const at::Tensor& tensor, StackId stack) {
  if (!tensor.defined() || is_stand_in(*tensor.unsafeGetTensorImpl())) {
    return;
  }
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  const auto* view = state::backward_view_meta(impl);
  if (view == nullptr) {
    return;
  }
  Journal& journal = Journal::get();
  std::lock_guard<std::mutex> lock(journal.mutex);
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

uint32_t origin_of(ThreadState& thread) {
  auto node = torch::autograd::get_current_node();
  if (!node || node->sequence_nr() == UINT64_MAX) {
    return 0;
  }
  SaveLog& log = *thread.log;
  const NodeId id{node->thread_id(), node->sequence_nr()};
  if (log.origins.empty() || log.origins.back().sequence != id.sequence ||
      log.origins.back().thread != id.thread) {
    log.origins.push_back(id);
    if (log.origins.size() > (1 << 16)) {
      log.origins.pop_front();
      ++log.origins_dropped;
    }
  }
  return static_cast<uint32_t>(log.origins.size() + log.origins_dropped);
}

}  // namespace

void note_nodes() {
  safely([] {
    ThreadState& thread = thread_state();
    if (!thread.log) {
      thread.log = Journal::get().new_save_log(thread.id);
    }
    const uint64_t sequence = at::sequence_number::peek();
    const StackId stack = current_stack();
    SaveLog& log = *thread.log;
    std::lock_guard<std::mutex> lock(log.mutex);
    const uint32_t origin = origin_of(thread);
    if (log.last != nullptr) {
      if (log.last->sequence == sequence) {
        // The op noted before made no node.
        log.last->stack = stack;
        log.last->origin = origin;
        return;
      }
      if (log.last->stack == stack && log.last->origin == origin) {
        return;
      }
    }
    log.last = &log.saves.push();
    *log.last = Save{sequence, stack, origin};
  });
}

void sync_thread() {
  const bool on = active();
  const bool with_nodes = on && (recording_saves() || origins_wanted.load() != 0);
  if (c10::impl::tls_is_dispatch_key_included(kKey) != on) {
    c10::impl::tls_set_dispatch_key_included(kKey, on);
  }
  if (c10::impl::tls_is_dispatch_key_included(kNodeKey) != with_nodes) {
    c10::impl::tls_set_dispatch_key_included(kNodeKey, with_nodes);
  }
}

namespace {

std::atomic<int> recordings_with_births{0};
std::atomic<int> recordings_with_cuts{0};

void count(Wants wants, int step) {
  recordings_with_saves += wants.saves * step;
  recordings_with_births += wants.births * step;
  recordings_with_cuts += wants.cuts * step;
  origins_wanted = (recordings_with_births > 0 ? kBirthsWanted : 0) |
                   (recordings_with_cuts > 0 ? kCutsWanted : 0);
  recordings += step;
}

}  // namespace

void start(Wants wants) {
  static std::once_flag once;
  std::call_once(once, [] {
    register_kernels();
    register_fork_handlers();
  });
  count(wants, 1);
  sync_thread();
}

void stop(Wants wants) {
  count(wants, -1);
  sync_thread();
  if (!active()) {
    Journal::get().clear();
    Origins::get().clear();
    ++ended_recordings;
    forget_uncounted_writes();
    global().backward_stack = 0;
  }
}

bool recording_saves() {
  return recordings_with_saves.load() > 0;
}

bool active() {
  return recordings.load() > 0;
}

void set_backward_stack(StackId stack) {
  global().backward_stack = stack;
}

StackId backward_stack() {
  return global().backward_stack;
}

bool spans_uncounted_write(const std::vector<NodeId>& nodes) {
  Global& g = global();
  if (g.uncounted.load(std::memory_order_relaxed) == 0) {
    return false;
  }
  std::vector<NodeId> writes;
  {
    std::lock_guard<std::mutex> lock(g.mutex);
    writes = g.uncounted_from;
  }
  for (const NodeId& write : writes) {
    for (const NodeId& node : nodes) {
      // Numbers of different threads say nothing about before and after.
      if (node.thread != write.thread || node.sequence < write.sequence) {
        return true;
      }
    }
  }
  return false;
}

void forget_uncounted_writes() {
  Global& g = global();
  std::lock_guard<std::mutex> lock(g.mutex);
  g.uncounted_from.clear();
  g.uncounted = 0;
}

namespace {

void record_note(uint32_t op, const at::Tensor& tensor, uint16_t flags) {
  const StackId stack = current_stack();
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  Journal& journal = Journal::get();
  std::lock_guard<std::mutex> lock(journal.mutex);
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

std::mutex& names_mutex() {
  return global().mutex;
}

std::string op_name(uint32_t op) {
  Global& g = global();
  std::lock_guard<std::mutex> lock(g.mutex);
  return op < g.names.size() ? g.names[op] : std::string();
}

Faults faults() {
  Global& g = global();
  std::lock_guard<std::mutex> lock(g.mutex);
  return {g.faults.load(), g.last_fault};
}

void inject_fault(bool on) {
  injected = on;
}

}  // namespace gradext::recorder
