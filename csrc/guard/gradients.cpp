#include "guard/gradients.h"

#include "graph/saved_items.h"
#include "guard/reports.h"
#include "journal/journal.h"
#include "state/state.h"

#include <algorithm>
#include <atomic>
#include <optional>

namespace gradext::guard {
namespace {

// A gradient on its way to one node.
struct Use {
  Node* node;  // compared, never followed
  WeakTensor tensor;
  Value value;  // as it was handed over
  bool has_value = false;
  bool is_spoiled = false;
};

// The memory of one gradient that several nodes get, whole or in parts.
struct Record {
  WeakTensor tensor;
  const void* storage;
  int64_t version;
  std::vector<Use> pending;  // who is still to use it
  std::vector<Node*> users;
  std::string producer;
  journal::NodeId producer_id;
  uint64_t since = 0;
  std::optional<SharedGradient> written;
};

struct Gradients {
  base::Mutex<base::Rank::kGradients> mutex;
  std::vector<Record> records;
  std::atomic<bool> any{false};  // read without the mutex
};

Gradients& gradients() {
  static Gradients* instance = new Gradients;
  return *instance;
}

journal::NodeId id_of(Node& node) {
  return {node.thread_id(), node.sequence_nr()};
}

bool is_pending(const Record& record, const Node* node) {
  return std::any_of(
      record.pending.begin(), record.pending.end(), [&](const Use& at) { return at.node == node; });
}

// Tensors that are looked at under the mutex are let go after it: the last reference to one may
// have to wait for the GIL.
using Kept = std::vector<at::Tensor>;

const at::Tensor& look(Kept& kept, const WeakTensor& held) {
  kept.push_back(locked(held));
  return kept.back();
}

void remember(Kept& kept, Use& use) {
  const at::Tensor tensor = look(kept, use.tensor);
  use.has_value = tensor.defined() && fingerprint::can_fingerprint(tensor);
  if (use.has_value) {
    use.value = fingerprint::of_cpu(tensor);
  }
}

// Whether what the node is to get is not what was handed over. `counted`: the version says so.
bool has_changed(Kept& kept, const Use& use, bool counted) {
  const at::Tensor tensor = look(kept, use.tensor);
  if (!tensor.defined()) {
    return false;
  }
  if (!use.has_value || !fingerprint::can_fingerprint(tensor)) {
    return counted;
  }
  return !(fingerprint::of_cpu(tensor) == use.value);
}

// The name of a node of Python: asking for it takes the GIL, so that it is asked for before the
// lock, which is also taken by who holds the GIL. Empty for other nodes, whose name takes no GIL.
std::string python_name(const Node& node) {
  return graph::is_python_function(node) ? node.name() : std::string();
}

std::string name_of(const Node& node, const std::string& python_name) {
  return python_name.empty() ? node.name() : python_name;
}

// Whether `by` wrote in what others are to use: its tensor hooks, which have run before it does
// (`has_run` false), or its formula.
void find_writes(
    Gradients& state, Kept& kept, Node& by, const std::string& python_name, bool has_run) {
  for (Record& record : state.records) {
    const bool alone =
        std::all_of(record.pending.begin(), record.pending.end(), [&](const Use& at) {
          return at.node == &by;
        });
    if (record.written || alone) {
      continue;
    }
    const at::Tensor tensor = look(kept, record.tensor);
    if (!tensor.defined()) {
      continue;
    }
    const int64_t version = state::version(*tensor.unsafeGetTensorImpl());
    const bool counted = version != record.version;
    record.version = version;
    if (!has_run && !is_pending(record, &by)) {
      // Between two nodes the engine adds gradients up, in place where nobody else has them.
      if (counted) {
        for (Use& use : record.pending) {
          remember(kept, use);
        }
      }
      continue;
    }
    const bool is_user =
        std::find(record.users.begin(), record.users.end(), &by) != record.users.end();
    if (!counted && !is_user) {
      continue;
    }
    bool any = false;
    for (Use& use : record.pending) {
      use.is_spoiled = use.node != &by && has_changed(kept, use, counted);
      any |= use.is_spoiled;
    }
    if (!any) {
      continue;
    }
    SharedGradient found;
    found.storage = state::opaque_id(record.storage);
    found.since = record.since;
    found.until = journal::Journal::get().order();
    found.producer = record.producer;
    found.producer_id = record.producer_id;
    found.writer = name_of(by, python_name);
    found.writer_id = id_of(by);
    found.counted = counted;
    record.written = std::move(found);
  }
}

}  // namespace

void gradients_before(Node& node) {
  Gradients& state = gradients();
  std::vector<SharedGradient> told;
  Kept kept;
  const std::string python = python_name(node);
  {
    std::lock_guard lock(state.mutex);
    find_writes(state, kept, node, python, false);
    for (Record& record : state.records) {
      auto& pending = record.pending;
      const bool spoiled = std::any_of(pending.begin(), pending.end(), [&](const Use& at) {
        return at.node == &node && at.is_spoiled;
      });
      if (spoiled && record.written) {
        record.written->consumer = name_of(node, python);
        told.push_back(*record.written);
        pending.clear();
      }
      pending.erase(
          std::remove_if(
              pending.begin(), pending.end(), [&](const Use& at) { return at.node == &node; }),
          pending.end());
    }
  }
  for (const SharedGradient& found : told) {
    tell_gradient(found);
  }
}

void gradients_after(Node& node, const std::vector<at::Tensor>& outgoing) {
  Gradients& state = gradients();
  Kept kept;
  const std::string python = python_name(node);
  std::lock_guard lock(state.mutex);
  find_writes(state, kept, node, python, true);
  auto& records = state.records;
  records.erase(
      std::remove_if(
          records.begin(), records.end(), [](const Record& at) { return at.pending.empty(); }),
      records.end());
  state.any = !records.empty();
  for (size_t k = 0; k < outgoing.size() && k < node.num_outputs(); ++k) {
    const auto& edge = node.next_edge(k);
    if (!outgoing[k].defined() || !edge.function) {
      continue;
    }
    const c10::TensorImpl& impl = *outgoing[k].unsafeGetTensorImpl();
    const void* storage = state::storage(impl);
    if (storage == nullptr) {
      continue;
    }
    auto record = std::find_if(records.begin(), records.end(), [&](const Record& at) {
      return at.storage == storage && at.tensor.use_count() > 0;
    });
    if (record == records.end()) {
      const bool is_shared = std::any_of(
          outgoing.begin() + static_cast<std::ptrdiff_t>(k) + 1,
          outgoing.end(),
          [&](const at::Tensor& other) {
            return other.defined() && state::storage(*other.unsafeGetTensorImpl()) == storage;
          });
      if (!is_shared) {
        continue;  // one node gets it: its bytes are nobody else's business
      }
      Record made{weak(outgoing[k]), storage, state::version(impl)};
      made.producer = name_of(node, python);
      made.producer_id = id_of(node);
      made.since = journal::Journal::get().order();
      records.push_back(std::move(made));
      record = std::prev(records.end());
    }
    state.any = true;
    record->pending.push_back(Use{&*edge.function, weak(outgoing[k]), {}});
    record->users.push_back(&*edge.function);
    remember(kept, record->pending.back());
  }
}

bool knows_gradients() {
  return gradients().any;
}

base::Mutex<base::Rank::kGradients>& gradients_mutex() {
  return gradients().mutex;
}

void forget_gradients() {
  Gradients& state = gradients();
  std::lock_guard lock(state.mutex);
  state.records.clear();
  state.any = false;
}

}  // namespace gradext::guard
