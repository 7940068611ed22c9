#include "observer.h"

#include "kernels.h"
#include "state/state.h"

#include <ATen/SequenceNumber.h>
#include <c10/util/SmallVector.h>
#include <pthread.h>
#include <torch/csrc/autograd/variable.h>

#include <cstring>
#include <unordered_set>

namespace gradext::recorder {

std::atomic<int> recordings{0};
std::atomic<int> recordings_with_saves{0};
std::atomic<bool> injected{false};

namespace {

// In-place ops that change how a tensor looks at its memory, and not the memory.
const std::unordered_set<std::string>& metadata_ops() {
  static const std::unordered_set<std::string> names = {
      "aten::detach_",
      "aten::squeeze_",
      "aten::unsqueeze_",
      "aten::t_",
      "aten::transpose_",
      "aten::swapaxes_",
      "aten::swapdims_",
      "aten::as_strided_",
      "aten::requires_grad_",
      "aten::rename_",
      "aten::set_",
      "aten::record_stream",
      "aten::_coalesced_",
      "aten::retain_grad",
      "aten::resize_",
      "aten::resize_as_",
      "aten::set_data",
      "aten::sparse_resize_"};
  return names;
}

struct Global {
  std::atomic<StackId> backward_stack{0};
  std::atomic<uint64_t> faults{0};
  std::atomic<uint64_t> uncounted{0};  // writes that torch's check cannot see, ever
  std::mutex mutex;                    // guards what follows
  std::string last_fault;
  std::vector<std::string> names{""};
  std::unordered_map<std::string, uint32_t> name_index;
  std::unordered_map<std::string, std::unique_ptr<OpFacts>> late_ops;
  std::vector<NodeId> uncounted_from;  // per thread: its sequence number at the last such write
  bool registered = false;
};

Global& global() {
  static Global* instance = new Global;
  return *instance;
}

}  // namespace

uint32_t intern_name(const std::string& name) {
  Global& g = global();
  std::lock_guard<std::mutex> lock(g.mutex);
  auto [place, is_new] = g.name_index.emplace(name, static_cast<uint32_t>(g.names.size()));
  if (is_new) {
    g.names.push_back(name);
  }
  return place->second;
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

std::unique_ptr<OpFacts> facts_of(const c10::FunctionSchema& schema) {
  auto facts = std::make_unique<OpFacts>();
  facts->arguments = schema.arguments().size();
  for (size_t k = 0; k < schema.arguments().size(); ++k) {
    const auto* alias = schema.arguments()[k].alias_info();
    if (alias != nullptr && alias->isWrite()) {
      facts->written.push_back(static_cast<uint16_t>(k));
    }
  }
  if (facts->written.empty()) {
    for (const auto& result : schema.returns()) {
      if (result.alias_info() != nullptr) {
        facts->makes_views = true;
        facts->makes_many_views |=
            result.type()->kind() == c10::TypeKind::ListType || schema.returns().size() > 1;
      }
    }
  }
  if (!facts->written.empty() || facts->makes_views) {
    const std::string& name = schema.name();
    facts->name = intern_name(name);
    facts->is_aten = name.compare(0, 6, "aten::") == 0;
    facts->metadata_only = metadata_ops().count(name) != 0;
  }
  return facts;
}

Extent extent_of(const c10::TensorImpl& impl) {
  if (impl.has_symbolic_sizes_strides() || state::is_wrapper_subclass(impl) ||
      impl.key_set().has(c10::DispatchKey::NestedTensor) || state::storage(impl) == nullptr ||
      impl.numel() == 0) {
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

// Tensors that stand for others while a program is traced are no memory of the program's. A fake
// tensor's own keys name the device that it stands for; its storage does not.
bool is_stand_in(const c10::TensorImpl& impl) {
  const c10::StorageImpl* storage = state::storage(impl);
  return impl.key_set().has(c10::DispatchKey::Functionalize) ||
         impl.key_set().has_backend(c10::BackendComponent::MetaBit) ||
         (storage != nullptr && storage->device_type() == c10::DeviceType::Meta);
}

uint32_t use_count(const void* target) {
  auto* held = static_cast<c10::intrusive_ptr_target*>(const_cast<void*>(target));
  return held ? c10::raw::intrusive_ptr::use_count(held) : 0;
}

}  // namespace

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

namespace {

void add_targets(Targets& targets, const OpFacts& op, const Stack& stack) {
  const size_t first = stack.size() - op.arguments;
  for (uint16_t argument : op.written) {
    const c10::IValue& value = stack[first + argument];
    if (value.isTensor()) {
      add_target(targets, value.toTensor(), argument);
    } else if (value.isTensorList()) {
      for (const at::Tensor& tensor : value.toTensorVector()) {
        add_target(targets, tensor, argument);
      }
    } else if (value.isList()) {
      for (const c10::IValue& item : value.toListRef()) {
        if (item.isTensor()) {
          add_target(targets, item.toTensor(), argument);
        }
      }
    }
  }
}

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
  g.uncounted_from.push_back(NodeId{thread, sequence});
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
      event.storage = journal.identities.of(storage);
      event.counter = journal.identities.of(target.counter);
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
    event.storage = journal.identities.of(target.storage);
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

// A tensor of vmap's: the write goes on to the tensor inside it, which has a counter of its own.
bool stands_on_another(const c10::TensorImpl& impl) {
  return impl.key_set().has(c10::DispatchKey::FuncTorchBatched);
}

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
      record_refusal(thread_, *enclosing_.op, targets[0], stack_, error.what_without_backtrace());
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

namespace {

template <c10::DispatchKey key = kKey>
void forward(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  if (python_dispatches()) {
    c10::impl::ExcludeDispatchKeyGuard guard(key);
    op.callBoxed(stack);
    return;
  }
  op.redispatchBoxed(below<key>(keys), stack);
}

void on_write(
    const OpFacts& facts, const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  before_nodes(keys);
  const c10::IValue& first = (*stack)[stack->size() - facts.arguments + facts.written[0]];
  if (!write_is_wanted(facts, first.isTensor() ? &first.toTensor() : nullptr)) {
    forward(op, keys, stack);
    return;
  }
  WriteScope scope(facts);
  safely([&] { add_targets(scope.targets, facts, *stack); });
  scope.begin();
  try {
    forward(op, keys, stack);
  } catch (const c10::Error& error) {
    scope.refused(error);
    throw;
  }
  scope.end();
}

}  // namespace

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
  event.storage = journal.identities.of(state::storage(impl));
  event.extent = extent_of(impl);
  event.sequence = at::sequence_number::peek();
  event.tensor = state::opaque_id(&impl);
  event.thread = static_cast<uint32_t>(thread_state().id);
  event.stack = stack;
  event.op = op;
  event.flags = static_cast<uint32_t>(view->get_creation_meta());
}

namespace {

void on_view(
    const OpFacts& facts, const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  before_nodes(keys);
  if (!view_is_wanted(facts.makes_many_views)) {
    forward(op, keys, stack);
    return;
  }
  const size_t results = op.schema().returns().size();
  forward(op, keys, stack);
  safely([&] {
    const StackId where = current_stack();
    for (size_t k = stack->size() - results; k < stack->size(); ++k) {
      const c10::IValue& value = (*stack)[k];
      if (value.isTensor()) {
        record_view(facts.name, value.toTensor(), where);
      } else if (value.isTensorList()) {
        for (const at::Tensor& tensor : value.toTensorVector()) {
          record_view(facts.name, tensor, where);
        }
      }
    }
  });
}

class WriteKernel final : public c10::OperatorKernel {
 public:
  explicit WriteKernel(std::unique_ptr<OpFacts> facts) : facts_(std::move(facts)) {}
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
    on_write(*facts_, op, keys, stack);
  }

 private:
  std::unique_ptr<OpFacts> facts_;
};

class ViewKernel final : public c10::OperatorKernel {
 public:
  explicit ViewKernel(std::unique_ptr<OpFacts> facts) : facts_(std::move(facts)) {}
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
    on_view(*facts_, op, keys, stack);
  }

 private:
  std::unique_ptr<OpFacts> facts_;
};

// For ops that may make graph nodes, and neither write nor make views.
void on_node(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  before_nodes(keys);
  forward<kNodeKey>(op, keys, stack);
}

// Ops that were registered after register_kernels(): a custom op that the program defines itself.
void on_late_op(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  Global& g = global();
  const std::string name = c10::toString(op.operator_name());
  OpFacts* facts = nullptr;
  {
    std::lock_guard<std::mutex> lock(g.mutex);
    auto known = g.late_ops.find(name);
    facts = known == g.late_ops.end() ? nullptr : known->second.get();
  }
  if (facts == nullptr) {
    std::unique_ptr<OpFacts> made = facts_of(op.schema());
    std::lock_guard<std::mutex> lock(g.mutex);
    facts = g.late_ops.emplace(name, std::move(made)).first->second.get();
  }
  if (!facts->written.empty()) {
    on_write(*facts, op, keys, stack);
  } else if (facts->makes_views) {
    on_view(*facts, op, keys, stack);
  } else {
    before_nodes(keys);
    forward(op, keys, stack);
  }
}

// Factories have such kernels too, and no tensor to differentiate.
bool may_make_nodes(const c10::OperatorHandle& op) {
  bool takes_tensor = false;
  for (const auto& argument : op.schema().arguments()) {
    const std::string type = argument.type()->str();
    takes_tensor |= type.find("Tensor") != std::string::npos;
  }
  if (!takes_tensor) {
    return false;
  }
  for (c10::DispatchKey key :
       {c10::DispatchKey::Autograd,
        c10::DispatchKey::AutogradCPU,
        c10::DispatchKey::AutogradCUDA,
        c10::DispatchKey::AutogradNestedTensor}) {
    if (op.hasKernelForDispatchKey(key)) {
      return true;
    }
  }
  return false;
}

// Once per process, at the first recording. The kernels stay registered: on a thread without the
// key nothing reaches them, and the dispatcher does the same work with or without them.
void register_kernels() {
  using Libraries = std::unordered_map<std::string, std::unique_ptr<torch::Library>>;
  static auto* libraries = new Libraries;  // never destroyed, so never deregistered
  const auto library = [](const std::string& space, c10::DispatchKey key) -> torch::Library& {
    auto& place = (*libraries)[space + (key == kKey ? "" : " nodes")];
    if (!place) {
      place = std::make_unique<torch::Library>(
          torch::Library::IMPL, space, key, "csrc/recorder/observer.cpp", 0);
    }
    return *place;
  };
  c10::Dispatcher& dispatcher = c10::Dispatcher::singleton();
  const FastKernels fast_ones = fast_kernels();
  library("_", kKey).fallback(torch::CppFunction::makeFromBoxedFunction<&on_late_op>());
  library("_", kNodeKey).fallback(torch::CppFunction::makeFallthrough());
  for (const c10::OperatorName& name : dispatcher.getAllOpNames()) {
    const auto op = dispatcher.findSchema(name);
    const auto space = name.getNamespace();
    if (!op || !space) {
      continue;
    }
    const std::string full = c10::toString(name);
    const std::string short_name = full.substr(space->size() + 2);
    std::unique_ptr<OpFacts> facts = facts_of(op->schema());
    torch::Library& target = library(std::string(*space), kKey);
    const auto fast = fast_ones.find(full);
    if (!facts->written.empty()) {
      target.impl(
          short_name.c_str(),
          fast != fast_ones.end() ? fast->second(std::move(facts))
                                  : torch::CppFunction::makeFromBoxedKernel(
                                        c10::BoxedKernel::makeFromFunctor(
                                            std::make_unique<WriteKernel>(std::move(facts)))));
    } else if (
        facts->makes_views &&
        !op->hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd)) {
      target.impl(
          short_name.c_str(),
          fast != fast_ones.end() ? fast->second(std::move(facts))
                                  : torch::CppFunction::makeFromBoxedKernel(
                                        c10::BoxedKernel::makeFromFunctor(
                                            std::make_unique<ViewKernel>(std::move(facts)))));
    } else {
      // Composites: the ops that they call are seen themselves.
      target.impl(short_name.c_str(), torch::CppFunction::makeFallthrough());
      if (fast != fast_ones.end()) {
        library(std::string(*space), kNodeKey)
            .impl(short_name.c_str(), fast->second(std::move(facts)));
      } else if (may_make_nodes(*op)) {
        library(std::string(*space), kNodeKey)
            .impl(short_name.c_str(), torch::CppFunction::makeFromBoxedFunction<&on_node>());
      }
    }
  }
}

void fork_locks() {
  // A fork while another thread holds one of these would leave it locked in the child for ever.
  static auto* held = new std::vector<std::mutex*>;
  pthread_atfork(
      [] {
        Journal& journal = Journal::get();
        journal.mutex.lock();
        global().mutex.lock();
        held->clear();
        for (const auto& log : journal.save_logs) {
          log->mutex.lock();
          held->push_back(&log->mutex);
        }
        stacks_lock();
      },
      [] {
        stacks_unlock();
        for (std::mutex* mutex : *held) {
          mutex->unlock();
        }
        global().mutex.unlock();
        Journal::get().mutex.unlock();
      },
      [] {
        stacks_unlock();
        for (std::mutex* mutex : *held) {
          mutex->unlock();
        }
        global().mutex.unlock();
        Journal::get().mutex.unlock();
      });
}

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
  const bool with_nodes = on && recording_saves();
  if (c10::impl::tls_is_dispatch_key_included(kKey) != on) {
    c10::impl::tls_set_dispatch_key_included(kKey, on);
  }
  if (c10::impl::tls_is_dispatch_key_included(kNodeKey) != with_nodes) {
    c10::impl::tls_set_dispatch_key_included(kNodeKey, with_nodes);
  }
}

void start(bool saves) {
  Global& g = global();
  {
    static std::mutex once;
    std::lock_guard<std::mutex> lock(once);
    if (!g.registered) {
      register_kernels();
      fork_locks();
      g.registered = true;
    }
  }
  recordings_with_saves += saves;
  ++recordings;
  sync_thread();
}

void stop(bool saves) {
  recordings_with_saves -= saves;
  --recordings;
  sync_thread();
  if (!active()) {
    Journal::get().clear();
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

void note(const std::string& name, const at::Tensor& tensor) {
  if (!active() || !tensor.defined() ||
      is_enclosed(
          thread_state().enclosing, state::counter_address(*tensor.unsafeGetTensorImpl()))) {
    return;  // the op around it is recorded as the write
  }
  const uint32_t op = intern_name(name);
  const StackId stack = current_stack();
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  Journal& journal = Journal::get();
  std::lock_guard<std::mutex> lock(journal.mutex);
  Write& event = journal.writes.push();
  event.order = journal.next_order();
  event.storage = journal.identities.of(state::storage(impl));
  event.counter = journal.identities.of(state::counter_address(impl));
  event.extent = extent_of(impl);
  event.sequence = at::sequence_number::peek();
  event.thread = static_cast<uint32_t>(thread_state().id);
  event.stack = stack;
  event.op = op;
  event.version_before = event.version_after =
      static_cast<uint32_t>(std::max<int64_t>(state::version(impl), 0));
  event.flags = kNote;
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
