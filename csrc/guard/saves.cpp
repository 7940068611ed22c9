#include "guard/saves.h"

#include "base/aside.h"
#include "graph/saved_items.h"
#include "guard/device_saves.h"
#include "guard/engine_calls.h"
#include "guard/entry.h"
#include "guard/foreign_code.h"
#include "guard/gradients.h"
#include "guard/lines/exposed.h"
#include "guard/lines/trace.h"
#include "guard/live_nodes.h"
#include "guard/reports.h"
#include "journal/journal.h"
#include "recorder/before_writes.h"
#include "state/state.h"

#include <ATen/SavedTensorHooks.h>
#include <ATen/record_function.h>
#include <c10/util/SmallVector.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <utility>

namespace gradext::guard {
namespace {

// One tensor that the node would read; undefined where it saved None or what cannot be
// fingerprinted here.
struct Content {
  at::Tensor tensor;
  Value value;
  bool is_hooked = false;
  bool is_moved = false;  // torch's own check will refuse it
  bool is_deferred = false;
  at::Tensor rows;  // of a deferred one
  int64_t row = 0;
  graph::SavedItem item;

  Told told(Node& node) const {
    graph::SavedFacts facts = item.facts;
    facts.tensor = tensor;
    return told_of(node, item.label(), facts);
  }
};

std::vector<Content> contents_of(Node& node) {
  std::vector<Content> found;
  base::under_gil([&] {
    auto items = graph::saved_items(node);
    found.reserve(items.size());
    for (graph::SavedItem& item : items) {
      const auto add = [&](const at::Tensor& tensor, bool is_hooked) {
        Content content;
        content.is_hooked = is_hooked;
        if (tensor.defined() && !is_unused(node, item)) {
          content.is_deferred = is_deferred(tensor);
          if (content.is_deferred || fingerprint::can_fingerprint(tensor)) {
            content.tensor = tensor;
          }
        }
        if (is_hooked) {
          content.item = item;
        }
        const int64_t version =
            tensor.defined() ? state::version(*tensor.unsafeGetTensorImpl()) : -1;
        content.is_moved = !is_hooked && version >= 0 &&
                           static_cast<uint32_t>(version) != item.facts.saved_version;
        found.push_back(std::move(content));
      };
      if (item.packed.empty()) {
        add(item.facts.tensor, false);
        found.back().item = std::move(item);
        continue;
      }
      for (const at::Tensor& tensor : item.packed) {
        add(tensor, true);
      }
    }
  });
  return found;
}

// Fingerprints those that are defined; of those on another device all in one launch.
void read(std::vector<Content>& contents) {
  std::vector<at::Tensor> elsewhere;
  for (Content& content : contents) {
    if (!content.tensor.defined()) {
      continue;
    }
    if (content.is_deferred) {
      content.row = static_cast<int64_t>(elsewhere.size());
      elsewhere.push_back(content.tensor);
    } else {
      content.value = bytes_in(content.tensor);
    }
  }
  if (!elsewhere.empty()) {
    const at::Tensor rows = fingerprints_there(elsewhere);
    for (Content& content : contents) {
      if (content.tensor.defined() && content.is_deferred) {
        content.rows = rows;
        content.tensor = rows.defined() ? content.tensor : at::Tensor();
      }
    }
  }
}

// What is known of the tensors that a node saved. Filled once, and read from then on by each thread
// that runs the node: a graph that is kept may be run by several at once.
struct Listed {
  Entries entries;  // as contents_of() lists them; null where there is nothing to compare
  // What an autograd.Function keeps on its ctx, by name.
  std::vector<std::pair<std::string, std::shared_ptr<Entry>>> kept;
  std::atomic<bool> is_kept_compared{false};

  bool any_taken() const {
    return std::any_of(entries.begin(), entries.end(), [](const std::shared_ptr<Entry>& entry) {
      return entry != nullptr && entry->is_taken.load(std::memory_order_acquire);
    });
  }
};

// On every node whose saves the guard knows of, and on every node that the engine may run while a
// guard watches gradients. Returns what it got.
class BeforeUse final : public torch::autograd::FunctionPreHook, public LiveNode {
 public:
  // `makes_fresh`: what the node's op has returned lies in memory that it has allocated itself.
  BeforeUse(Node* node, bool makes_fresh)
      : LiveNode(node), epoch_(epoch), makes_fresh_(makes_fresh) {}
  BeforeUse(const BeforeUse&) = delete;
  BeforeUse& operator=(const BeforeUse&) = delete;
  ~BeforeUse() override {
    delete at_save_.load();
    delete later_.load();
  }
  torch::autograd::variable_list operator()(const torch::autograd::variable_list& grads) override {
    if (is_on() && epoch_ == epoch) {
      guarded([&] {
        if (knows_gradients()) {
          gradients_before(*node_);
        }
        for (auto* part : {&at_save_, &later_}) {
          Listed* listed = part->load(std::memory_order_acquire);
          if (listed != nullptr && listed->any_taken()) {
            compare(listed->entries);
          }
          // At the first use alone: backward may write what it keeps, and be run again.
          if (listed != nullptr && !listed->kept.empty() &&
              !listed->is_kept_compared.exchange(true)) {
            compare_kept(listed->kept);
          }
        }
      });
    }
    return grads;
  }
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs&) const override {}
  bool is_current() const {
    return epoch_ == epoch;
  }
  bool makes_fresh() const {
    return makes_fresh_;
  }
  void list() override {
    if (is_current()) {
      list_fresh();
    }
  }
  // When the node is made: fingerprints what lies in memory that may be written from outside of
  // torch. `all`: the rest too; else list_fresh() is for that.
  void take_saves(bool all);

 private:
  using Kept = std::vector<std::pair<std::string, std::shared_ptr<Entry>>>;

  bool is_fresh_here(const Content& content) const;
  void list_fresh();
  std::shared_ptr<Entry> add_entry_of(const Content& content) const;
  static void publish(std::atomic<Listed*>& part, std::unique_ptr<Listed> listed);

  void compare_kept(const Kept& before) {
    look_now();
    std::vector<graph::ContextItem> now;
    base::under_gil([&] { now = graph::context_items(*node_); });
    for (const auto& [name, entry] : before) {
      entry->is_told = true;
      for (const graph::ContextItem& item : now) {
        if (item.name != name || !item.tensor.is_same(locked(entry->tensor)) ||
            !fingerprint::can_fingerprint(item.tensor) || bytes_in(item.tensor) == entry->value) {
          continue;
        }
        graph::SavedFacts facts;
        facts.kind = "context";
        facts.tensor = item.tensor;
        facts.is_original = true;
        tell_changed(told_of(*node_, "ctx." + name, facts), *entry);
      }
    }
  }
  static bool is_to_compare(const std::shared_ptr<Entry>& entry) {
    return entry != nullptr && entry->is_taken.load(std::memory_order_acquire) &&
           !entry->is_told.load(std::memory_order_relaxed);
  }
  // Whether all that is taken lies in the memory in which it was saved, unchanged. The node need
  // not be asked what it saved then: it reads this memory, or what hooks have made of it.
  static bool is_untouched(const Entries& entries) {
    return std::all_of(entries.begin(), entries.end(), [](const std::shared_ptr<Entry>& entry) {
      if (!is_to_compare(entry)) {
        return true;
      }
      const at::Tensor tensor = locked(entry->tensor);
      return tensor.defined() && !entry->rows.defined() && fingerprint::can_fingerprint(tensor) &&
             entry->is_outline_of(tensor) && bytes_in(tensor) == entry->value;
    });
  }
  void compare(const Entries& entries) {
    look_now();
    if (is_untouched(entries)) {
      return;
    }
    std::vector<Content> now = contents_of(*node_);
    if (now.size() != entries.size()) {
      return;  // released, or hooks were put on it since
    }
    for (size_t k = 0; k < now.size(); ++k) {
      if (!is_to_compare(entries[k])) {
        now[k].tensor = at::Tensor();
      }
    }
    read(now);
    for (size_t k = 0; k < now.size(); ++k) {
      const std::shared_ptr<Entry>& entry = entries[k];
      if (!now[k].tensor.defined() || now[k].is_moved ||
          now[k].is_deferred != entry->rows.defined()) {
        continue;
      }
      // Hooks that were put on it since may pack something else, less precise on purpose.
      if (now[k].is_hooked && !entry->is_hooked) {
        if (!entry->is_outline_of(now[k].tensor)) {
          continue;
        }
        entry->is_hooked = true;
      }
      if (now[k].is_deferred) {
        compare_later(entry, now[k].rows, now[k].row, now[k].told(*node_));
      } else if (
          now[k].value != entry->value &&
          !recorder::came_back_since(in_memory_order(now[k].tensor), entry->order, entry->value)) {
        if (!entry->is_told.exchange(true)) {
          tell_changed(now[k].told(*node_), *entry);
        }
      }
    }
  }

  uint64_t epoch_;
  bool makes_fresh_;
  // Each is set once; null where there is nothing in it. An exposure may be in one thread and the
  // use in another.
  std::atomic<Listed*> at_save_{nullptr};
  std::atomic<Listed*> later_{nullptr};
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

// Whether torch alone can have got hold of the storage's memory, as far as the guard has seen it.
bool is_sealed(const c10::StorageImpl& storage) {
  return storage.device_type() == c10::DeviceType::CPU && !is_foreign(storage) &&
         exposed_by(&storage) == By::kNobody;
}

// Whether the tensor's memory was allocated while a guard was on, and is sealed. Of a guard that
// begins in the middle of a program nothing is known of what was there before: fresh is then the
// result of an op that it has seen, and a view of one, until an op in place has changed its node.
bool is_fresh(const c10::TensorImpl& impl) {
  const c10::StorageImpl* storage =
      state::is_wrapper_subclass(impl) ? nullptr : state::storage(impl);
  if (storage == nullptr || impl.is_wrapped_number()) {
    return true;  // it has no bytes to compare, or is the 2 in `x * 2`
  }
  if (!is_sealed(*storage)) {
    return false;
  }
  if (knows_all_births()) {
    return true;
  }
  const auto* view = state::backward_view_meta(impl);
  const c10::TensorImpl& base =
      view != nullptr ? *view->get_backward_view().base_.unsafeGetTensorImpl() : impl;
  const auto* meta = state::autograd_meta(base);
  if (meta == nullptr || meta->grad_fn_ == nullptr) {
    return false;
  }
  // To a node of another thread that thread may be adding a hook just now.
  if (!is_of_this_thread(*meta->grad_fn_)) {
    return false;
  }
  const BeforeUse* hook = hook_on<BeforeUse>(meta->grad_fn_->pre_hooks());
  return hook != nullptr && hook->makes_fresh();
}

// Whether an op of torch's own has put its result into memory that it has allocated: it is none of
// its arguments', and nobody has written it.
bool is_newly_made(
    c10::ArrayRef<const c10::TensorImpl*> inputs, const c10::TensorImpl& result, Node& node) {
  const c10::StorageImpl* storage = state::storage(result);
  return storage != nullptr && state::version(result) == 0 &&
         state::backward_view_meta(result) == nullptr && graph::class_of(node).is_generated &&
         std::none_of(inputs.begin(), inputs.end(), [&](const c10::TensorImpl* input) {
           return state::storage(*input) == storage;
         });
}

bool are_hooks_on() {
  return !at::SavedTensorDefaultHooks::get_tls_state().stack.empty();
}

BeforeUse& add_hook(Node& node, bool makes_fresh) {
  auto hook = std::make_unique<BeforeUse>(&node, makes_fresh);
  BeforeUse& added = *hook;
  node.add_pre_hook(std::move(hook));
  return added;
}

bool BeforeUse::is_fresh_here(const Content& content) const {
  if (content.is_hooked || content.is_deferred) {
    return false;  // torch does not check its version, or it lies on another device
  }
  const c10::TensorImpl& impl = *content.tensor.unsafeGetTensorImpl();
  const graph::SavedFacts& facts = content.item.facts;
  if (!facts.is_output || facts.is_original) {
    return is_fresh(impl);
  }
  // A result of the node's own is saved without its node.
  const c10::StorageImpl* storage = state::storage(impl);
  return storage != nullptr && is_sealed(*storage) &&
         (knows_all_births() || (makes_fresh_ && facts.saved_version == 0));
}

std::shared_ptr<Entry> BeforeUse::add_entry_of(const Content& content) const {
  auto entry = std::make_shared<Entry>(content.tensor);
  entry->is_hooked = content.is_hooked;
  if (content.is_deferred) {
    entry->rows = content.rows;
    entry->row = content.row;
  }
  return entry;
}

void BeforeUse::publish(std::atomic<Listed*>& part, std::unique_ptr<Listed> listed) {
  Listed* none = nullptr;
  if (part.compare_exchange_strong(none, listed.get())) {
    (void)listed.release();
  }
}

void BeforeUse::take_saves(bool all) {
  auto listed = std::make_unique<Listed>();
  const uint64_t order = journal::Journal::get().order();
  std::vector<Content> contents = contents_of(*node_);
  bool any = false, any_fresh = false;
  for (Content& content : contents) {
    if (content.tensor.defined() && !all && is_fresh_here(content)) {
      content.tensor = at::Tensor();
      any_fresh = true;
    }
    any |= content.tensor.defined();
  }
  if (any) {
    read(contents);
    for (const Content& content : contents) {
      listed->entries.push_back(nullptr);
      if (!content.tensor.defined()) {
        continue;
      }
      auto entry = add_entry_of(content);
      entry->take(content.value, order);
      ++taken_at_saves;
      if (!content.is_deferred) {
        watch_lines(entry, content.tensor);
      }
      listed->entries.back() = std::move(entry);
    }
  }
  if (graph::is_python_function(*node_)) {
    base::under_gil([&] {
      for (graph::ContextItem& item : graph::context_items(*node_)) {
        if (!fingerprint::can_fingerprint(item.tensor)) {
          continue;
        }
        auto entry = std::make_shared<Entry>(item.tensor);
        entry->take(bytes_in(item.tensor), order);
        entry->storage = state::storage(*item.tensor.unsafeGetTensorImpl());
        watch_lines(entry, item.tensor);
        listed->kept.emplace_back(std::move(item.name), std::move(entry));
      }
    });
  }
  if (any || !listed->kept.empty()) {
    publish(at_save_, std::move(listed));
  }
  if (any_fresh) {
    link();
  }
}

// What take_saves() has left out. Fingerprinted by who has asked for it, where it lies in the
// memory that is exposed.
void BeforeUse::list_fresh() {
  auto listed = std::make_unique<Listed>();
  const Listed* taken = at_save_.load(std::memory_order_acquire);
  const std::vector<Content> contents = contents_of(*node_);
  const bool is_same =
      taken != nullptr && !taken->entries.empty() && taken->entries.size() == contents.size();
  bool any = false;
  for (size_t k = 0; k < contents.size(); ++k) {
    listed->entries.push_back(nullptr);
    const Content& content = contents[k];
    const bool is_known = is_same && taken->entries[k] != nullptr;
    if (!content.tensor.defined() || content.is_moved || content.is_deferred || is_known) {
      continue;
    }
    auto entry = add_entry_of(content);
    // It may have been exposed since the op ran, while another thread listed it.
    if (watch_lines(entry, content.tensor) != By::kNobody) {
      entry->take_now();
    }
    listed->entries.back() = std::move(entry);
    any = true;
  }
  if (any) {
    publish(later_, std::move(listed));
  }
}

constexpr size_t kMostInOneOp = 10'000;

}  // namespace

void note_saves(const at::Tensor& result, uint64_t first) {
  if (!result.defined() || !state::requires_grad(*result.unsafeGetTensorImpl())) {
    return;
  }
  auto node = torch::autograd::impl::grad_fn_unsafe(result);
  const bool is_new = node && is_of_this_thread(*node) && node->sequence_nr() >= first;
  if (is_new && hook_on<BeforeUse>(node->pre_hooks()) == nullptr) {
    add_hook(*node, false).take_saves(sees_all());
  }
}

void note_nodes(
    c10::ArrayRef<const c10::TensorImpl*> inputs,
    const at::Tensor& result,
    uint64_t first,
    bool is_aten) {
  const c10::TensorImpl& impl = *result.unsafeGetTensorImpl();
  const auto* meta = state::autograd_meta(impl);
  if (sees_all() || meta == nullptr || meta->grad_fn_ == nullptr) {
    return;
  }
  Node* last = &*meta->grad_fn_;
  if (last->sequence_nr() < first || !is_of_this_thread(*last) ||
      hook_on<BeforeUse>(last->pre_hooks()) != nullptr) {
    return;
  }
  const bool is_at_once = are_hooks_on() || defers_all.load(std::memory_order_relaxed) ||
                          !std::all_of(inputs.begin(), inputs.end(), [](const auto* input) {
                            return is_fresh(*input);
                          });
  const bool makes_fresh = is_aten && is_newly_made(inputs, impl, *last);
  // An op that is made of others may have made several.
  c10::SmallVector<Node*, 8> pending{last};
  size_t count = 0;
  while (!pending.empty() && ++count < kMostInOneOp) {
    Node* node = pending.pop_back_val();
    if (hook_on<BeforeUse>(node->pre_hooks()) != nullptr) {
      continue;
    }
    // Within an op of torch's own, each of the ops that it is made of allocates its result, too.
    const graph::NodeClass& kind = graph::class_of(*node);
    const bool is_inner = makes_fresh && node != last && kind.is_generated && !kind.is_alias;
    const bool is_proof = ((node == last && makes_fresh) || is_inner) && !knows_all_births();
    if (kind.may_save) {
      BeforeUse& hook = add_hook(*node, is_proof);
      if (is_at_once) {
        hook.take_saves(false);
      } else {
        hook.link();
      }
    } else if (is_proof) {
      add_hook(*node, true);
    }
    for (const auto& edge : node->next_edges()) {
      Node* next = edge.function ? &*edge.function : nullptr;
      // One without a number fills a `.grad`.
      if (next != nullptr && next->sequence_nr() != UINT64_MAX && next->sequence_nr() >= first &&
          is_of_this_thread(*next) && hook_on<BeforeUse>(next->pre_hooks()) == nullptr) {
        pending.push_back(next);
      }
    }
  }
}

void put_hooks_below(const std::vector<Node*>& roots) {
  Reach reach = Reach::kUnknown;
  if (!sees_all() && !any_foreign_code(roots, reach)) {
    call_reaches(reach);
    return;
  }
  const OtherCalls others;
  bool whole = true, are_hooked = true, are_own = true;
  for (const graph::GraphNode& at : graph::walk_graph(roots, 200'000, whole)) {
    if (at.inner_of >= 0) {
      continue;
    }
    Node& node = *at.node;
    const bool is_shared = is_of_a_leaf(node);
    const bool is_own = is_of_this_thread(node);
    are_own &= is_own || is_shared;
    const bool lacks_before = hook_on<BeforeUse>(node.pre_hooks()) == nullptr;
    // An AccumulateGrad with a post hook copies where it would take over the gradient.
    const bool lacks_after =
        node.num_outputs() > 0 && hook_on<AfterUse>(node.post_hooks()) == nullptr;
    if (!lacks_before && !lacks_after) {
      continue;
    }
    if (others.may_run(node)) {
      are_hooked = false;
      continue;
    }
    if (lacks_before && (is_own || is_shared)) {
      add_hook(node, false);
    } else {
      are_hooked &= !lacks_before;  // its own thread may be reading its hooks: is_fresh()
    }
    if (lacks_after) {
      node.add_post_hook(std::make_unique<AfterUse>(&node));
    }
  }
  reach = are_hooked ? Reach::kHooked : are_own ? Reach::kOwn : Reach::kUnknown;
  call_reaches(whole ? reach : Reach::kUnknown);
}

}  // namespace gradext::guard
