#include "recorder/lost_gradients/leaves.h"

#include "journal/origins.h"
#include "state/state.h"

#include <atomic>
#include <set>
#include <unordered_map>
#include <unordered_set>
#include <utility>

namespace gradext::recorder {

using journal::Origins;
using torch::autograd::Node;

namespace {

constexpr size_t kMostNodes = 20'000;
constexpr uint32_t kMostWalks = 8;  // of the graphs that end at one place
constexpr size_t kMostPlaces = 4096;

struct Place {
  uint32_t walks = 0;
  uint32_t set = 0;
};

// Guarded by the mutex of the origins.
std::unordered_map<StackId, Place>& places() {
  static auto* places = new std::unordered_map<StackId, Place>;
  return *places;
}

// Guarded likewise.
std::set<std::pair<uint64_t, uint64_t>>& flat_nodes() {
  static auto* nodes = new std::set<std::pair<uint64_t, uint64_t>>;
  return *nodes;
}

constexpr uint32_t kMostLooks = 4;  // at what the Functions give that are applied at one place

// Guarded likewise.
std::unordered_map<StackId, uint32_t>& function_looks() {
  static auto* looks = new std::unordered_map<StackId, uint32_t>;
  return *looks;
}

std::atomic<bool> are_functions_new{false};

bool is_flat(const Node& node) {
  const auto& flat = flat_nodes();
  return !flat.empty() && flat.count({node.thread_id(), node.sequence_nr()}) != 0;
}

// The leaves that something else than zeros comes to; the mutex is held.
std::vector<const c10::TensorImpl*> leaves_past_steps(const std::vector<Node*>& roots) {
  std::vector<const c10::TensorImpl*> leaves;
  std::unordered_set<const Node*> seen;
  std::vector<Node*> pending;
  const auto add = [&](Node* node) {
    if (node != nullptr && seen.insert(node).second) {
      pending.push_back(node);
    }
  };
  for (Node* root : roots) {
    add(root);
  }
  while (!pending.empty()) {
    Node* node = pending.back();
    pending.pop_back();
    if (const at::Tensor* leaf = state::leaf_of(*node)) {
      leaves.push_back(leaf->unsafeGetTensorImpl());
    } else if (!is_flat(*node)) {
      for (const auto& edge : node->next_edges()) {
        add(edge.function ? &*edge.function : nullptr);
      }
    }
  }
  return leaves;
}

// False where the graph is too large.
bool collect(const c10::TensorImpl& viewed, std::vector<const c10::TensorImpl*>& leaves) {
  const c10::TensorImpl& impl = with_history_of(viewed);
  const auto* meta = state::autograd_meta(impl);
  Node* root = meta != nullptr ? meta->grad_fn_.get() : nullptr;
  if (root == nullptr) {
    leaves.push_back(&impl);
    return true;
  }
  std::unordered_set<const Node*> seen{root};
  std::vector<Node*> pending{root};
  while (!pending.empty()) {
    Node* node = pending.back();
    pending.pop_back();
    if (node->num_outputs() == 0) {
      if (const at::Tensor* leaf = state::leaf_of(*node)) {
        leaves.push_back(leaf->unsafeGetTensorImpl());
      }
      continue;
    }
    for (const auto& edge : node->next_edges()) {
      Node* next = edge.function ? &*edge.function : nullptr;
      if (next != nullptr && seen.insert(next).second) {
        if (seen.size() > kMostNodes) {
          return false;
        }
        pending.push_back(next);
      }
    }
  }
  return true;
}

}  // namespace

uint32_t leaves_behind(const Inputs& inputs, StackId place) {
  Origins& origins = Origins::get();
  {
    std::lock_guard lock(origins.mutex);
    auto& known = places();
    if (known.size() > kMostPlaces) {
      known.clear();
    }
    Place& at = known[place];
    if (!origins.leaves.is_known(at.set)) {
      at = Place{};
    }
    if (++at.walks > kMostWalks) {
      return at.set;
    }
  }
  std::vector<const c10::TensorImpl*> leaves;
  for (const c10::TensorImpl* impl : inputs) {
    if (state::requires_grad(*impl) && !collect(*impl, leaves)) {
      return 0;
    }
  }
  std::lock_guard lock(origins.mutex);
  return places()[place].set = origins.leaves.number_of(leaves);
}

bool leaves_are_awaited() {
  return Origins::get().leaves.unreached.load(std::memory_order_relaxed) > 0;
}

void note_reached(const std::vector<Node*>& roots, const std::vector<Node*>& accumulators) {
  const uint64_t thread = at::RecordFunction::currentThreadId();
  Origins& origins = Origins::get();
  std::lock_guard lock(origins.mutex);
  if (!flat_nodes().empty()) {
    for (const c10::TensorImpl* leaf : leaves_past_steps(roots)) {
      origins.leaves.reached(*leaf, thread);
    }
    return;
  }
  for (const Node* node : accumulators) {
    if (const at::Tensor* leaf = node != nullptr ? state::leaf_of(*node) : nullptr) {
      origins.leaves.reached(*leaf->unsafeGetTensorImpl(), thread);
    }
  }
}

void note_function(StackId place) {
  std::lock_guard lock(Origins::get().mutex);
  auto& looks = function_looks();
  if (looks.size() < kMostPlaces || looks.count(place) != 0) {
    uint32_t& count = looks[place];
    if (count < kMostLooks) {
      ++count;
      are_functions_new = true;
    }
  }
}

bool functions_are_awaited() {
  return are_functions_new.load(std::memory_order_relaxed);
}

std::vector<base::Hold> without_gradient(const std::vector<Node*>& accumulators) {
  are_functions_new = false;
  std::vector<base::Hold> found;
  for (Node* node : accumulators) {
    const at::Tensor* leaf = node != nullptr ? state::leaf_of(*node) : nullptr;
    const auto* meta = leaf != nullptr && leaf->defined() && node->post_hooks().empty()
                           ? state::autograd_meta(*leaf->unsafeGetTensorImpl())
                           : nullptr;
    // A hook may take the gradient away.
    if (meta != nullptr && !meta->grad_.defined() && meta->post_acc_grad_hooks_ == nullptr) {
      found.emplace_back(journal::as_target(*leaf->unsafeGetTensorImpl()));
    }
  }
  return found;
}

bool leaves_are_starved() {
  return Origins::get().leaves.starved_count.load(std::memory_order_relaxed) > 0;
}

bool note_filled(const std::vector<base::Hold>& leaves) {
  const uint64_t thread = at::RecordFunction::currentThreadId();
  journal::LeafSets::Kept kept;  // outlives the lock: what dies with it runs Python
  Origins& origins = Origins::get();
  std::lock_guard lock(origins.mutex);
  bool found = false;
  for (const base::Hold& leaf : leaves) {
    auto alive = leaf.alive();
    if (!alive) {
      continue;
    }
    kept.push_back(std::move(alive));
    const auto& impl = static_cast<const c10::TensorImpl&>(
        *static_cast<const c10::intrusive_ptr_target*>(leaf.target()));
    const auto* meta = state::autograd_meta(impl);
    if (meta != nullptr && !meta->grad_.defined()) {
      origins.leaves.starved(impl, thread);
      found = true;
    }
  }
  if (leaves_are_starved()) {
    origins.leaves.look_at_starved(thread, kept);
  }
  return found;
}

void add_flat_node(const NodeId& node) {
  if (flat_nodes().size() >= kMostPlaces) {
    flat_nodes().clear();
  }
  flat_nodes().emplace(node.thread, node.sequence);
}

void forget_leaves() {
  places().clear();
  flat_nodes().clear();
  function_looks().clear();
  are_functions_new = false;
}

}  // namespace gradext::recorder
