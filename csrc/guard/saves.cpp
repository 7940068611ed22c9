#include "guard/saves.h"

#include "base/aside.h"
#include "graph/saved_items.h"
#include "guard/device_saves.h"
#include "guard/entry.h"
#include "guard/gradients.h"
#include "guard/lines/trace.h"
#include "guard/reports.h"
#include "journal/journal.h"
#include "state/state.h"

#include <torch/csrc/autograd/variable.h>

#include <memory>
#include <utility>

namespace gradext::guard {
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
    for (const graph::SavedItem& item : graph::saved_items(node)) {
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
        if (!kept.empty()) {
          compare_kept();
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
  // What an autograd.Function keeps on its ctx, by name.
  std::vector<std::pair<std::string, std::shared_ptr<Entry>>> kept;

 private:
  // At the first use alone: backward may write what it keeps, and be run again.
  void compare_kept() {
    const auto before = std::exchange(kept, {});
    look_now();
    std::vector<graph::ContextItem> now;
    base::under_gil([&] { now = graph::context_items(*node_); });
    for (const auto& [name, entry] : before) {
      for (const graph::ContextItem& item : now) {
        if (item.name != name || !item.tensor.is_same(locked(entry->tensor)) ||
            !fingerprint::can_fingerprint(item.tensor) ||
            fingerprint::of_cpu(item.tensor) == entry->value) {
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
  const uint64_t order = journal::Journal::get().order();
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
  std::vector<std::pair<std::string, std::shared_ptr<Entry>>> kept;
  base::under_gil([&] {
    for (graph::ContextItem& item : graph::context_items(node)) {
      if (!fingerprint::can_fingerprint(item.tensor)) {
        continue;
      }
      auto entry = std::make_shared<Entry>(item.tensor, fingerprint::of_cpu(item.tensor));
      entry->last = entry->value;
      entry->order = order;
      entry->storage = state::storage(*item.tensor.unsafeGetTensorImpl());
      watch_lines(entry, item.tensor);
      kept.emplace_back(std::move(item.name), std::move(entry));
    }
  });
  if (any || !kept.empty()) {
    auto hook = std::make_unique<BeforeUse>(&node);
    hook->entries = any ? std::move(entries) : Entries{};
    hook->kept = std::move(kept);
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

void put_hooks_below(const std::vector<Node*>& roots) {
  bool whole = true;
  for (const graph::GraphNode& at : graph::walk_graph(roots, 200'000, whole)) {
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
}

}  // namespace gradext::guard
