#include "python.h"

#include "hooks.h"
#include "journal.h"
#include "observer.h"
#include "stacks.h"
#include "state/graph.h"
#include "state/state.h"

#include <ATen/record_function.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_cpp_function.h>
#include <torch/csrc/autograd/python_function.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <unordered_map>
#include <unordered_set>

namespace py = pybind11;

namespace gradext::recorder {
namespace {

using torch::autograd::Node;

constexpr size_t kMaxBackwardNodes = 200'000;

at::Tensor unpack(py::handle object) {
  if (!THPVariable_Check(object.ptr())) {
    throw py::type_error("expected a torch.Tensor");
  }
  return THPVariable_Unpack(object.ptr());
}

// What holds a node differs by version of torch: std::shared_ptr, std::weak_ptr, intrusive_ptr.
template <class T>
Node* pointee(const std::weak_ptr<T>& held) {
  return held.lock().get();
}

template <class Pointer>
Node* pointee(const Pointer& held) {
  return held ? &*held : nullptr;
}

// A node behind its Python object, kept alive by it.
Node* node_behind(py::handle object) {
  if (THPFunction_Check(object.ptr())) {
    return pointee(reinterpret_cast<THPFunction*>(object.ptr())->cdata);
  }
  if (torch::autograd::THPCppFunction_Check(object.ptr())) {
    return &*reinterpret_cast<torch::autograd::THPCppFunction*>(object.ptr())->cdata;
  }
  return nullptr;
}

// Tensors and GradientEdges (tuples whose first item is a node), as torch.autograd takes them.
std::vector<Node*> root_nodes(py::handle roots) {
  std::vector<Node*> nodes;
  const auto add = [&](py::handle item) {
    Node* node = nullptr;
    if (THPVariable_Check(item.ptr())) {
      node = state::node_of(THPVariable_Unpack(item.ptr()));
    } else if (PyTuple_Check(item.ptr()) && PyTuple_GET_SIZE(item.ptr()) > 0) {
      node = node_behind(PyTuple_GET_ITEM(item.ptr(), 0));
    } else {
      node = node_behind(item);
    }
    if (node != nullptr) {
      nodes.push_back(node);
    }
  };
  if (THPVariable_Check(roots.ptr())) {
    add(roots);
  } else {
    for (py::handle item : roots) {
      add(item);
    }
  }
  return nodes;
}

// A set of node addresses that is filled anew for every backward: open addressing, no allocation
// after the first few.
class Visited {
 public:
  void clear() {
    std::fill(slots_.begin(), slots_.end(), nullptr);
    count_ = 0;
  }
  bool insert(const Node* node) {
    if (slots_.size() < 2 * (count_ + 1)) {
      grow();
    }
    if (!place(slots_, node)) {
      return false;
    }
    ++count_;
    return true;
  }

 private:
  static bool place(std::vector<const Node*>& slots, const Node* node) {
    const size_t mask = slots.size() - 1;
    size_t at = (reinterpret_cast<uintptr_t>(node) * 0x9e3779b97f4a7c15ull >> 20) & mask;
    while (slots[at] != nullptr) {
      if (slots[at] == node) {
        return false;
      }
      at = (at + 1) & mask;
    }
    slots[at] = node;
    return true;
  }
  void grow() {
    std::vector<const Node*> larger(std::max<size_t>(64, slots_.size() * 2), nullptr);
    for (const Node* node : slots_) {
      if (node != nullptr) {
        place(larger, node);
      }
    }
    slots_ = std::move(larger);
  }
  std::vector<const Node*> slots_;
  size_t count_ = 0;
};

// The numbers of all nodes below `roots`: what the engine is about to use.
std::vector<NodeId> node_ids(const std::vector<Node*>& roots, bool& whole) {
  static thread_local Visited visited;
  static thread_local std::vector<Node*> pending;
  visited.clear();
  pending.clear();
  std::vector<NodeId> ids;
  const auto add = [&](Node* node) {
    if (node != nullptr && node->sequence_nr() != UINT64_MAX && visited.insert(node)) {
      pending.push_back(node);
      ids.push_back(NodeId{node->thread_id(), node->sequence_nr()});
    }
  };
  for (Node* root : roots) {
    add(root);
  }
  whole = true;
  while (!pending.empty()) {
    if (ids.size() >= kMaxBackwardNodes) {
      whole = false;
      break;
    }
    Node* node = pending.back();
    pending.pop_back();
    for (const auto& edge : node->next_edges()) {
      add(edge.function ? &*edge.function : nullptr);
    }
  }
  return ids;
}

}  // namespace

bool enter_backward(py::handle roots, bool keeps_graph, bool creates_graph) {
  Backward event;
  event.stack = capture_stack();
  event.thread = at::RecordFunction::currentThreadId();
  event.keeps_graph = keeps_graph;
  event.creates_graph = creates_graph;
  set_backward_stack(event.stack);
  sync_thread();
  event.nodes = node_ids(root_nodes(roots), event.whole);
  const bool suspicious = spans_uncounted_write(event.nodes);
  Journal& journal = Journal::get();
  event.order = journal.next_order();
  journal.push_backward(std::move(event));
  return suspicious;
}

namespace {

// Keeps the addresses in a snapshot from being used again, and so their meaning.
struct Held {
  std::vector<Hold> holds;
};

// The orders of the columns are gradext.recording's WRITE_COLUMNS, VIEW_COLUMNS, SAVE_COLUMNS.
constexpr size_t kWriteColumns = 15, kViewColumns = 10, kSaveColumns = 5;

struct Columns {
  std::vector<int64_t> values;
  void row(std::initializer_list<int64_t> facts) {
    values.insert(values.end(), facts);
  }
  py::array_t<int64_t> array(size_t columns) const {
    const auto rows = static_cast<py::ssize_t>(values.size() / columns);
    py::array_t<int64_t> out({rows, static_cast<py::ssize_t>(columns)});
    std::copy(values.begin(), values.end(), out.mutable_data());
    return out;
  }
};

int64_t number(uint64_t value) {
  return static_cast<int64_t>(value);
}

// Everything that a snapshot takes from the journal, as plain C++: no Python object may be made
// under the journal's mutex (a collection may run anything), nor the GIL be waited for.
struct Copied {
  Columns writes, views, saves;
  std::vector<Backward> backwards;
  std::vector<std::pair<int64_t, Refused>> refused;  // with the storage as shown
  std::vector<std::vector<int64_t>> geometries;
  std::unique_ptr<Held> held = std::make_unique<Held>();
  size_t dropped_writes = 0, dropped_views = 0, dropped_saves = 0, dropped_backwards = 0;
  uint64_t order = 0;
};

Copied copy_journal(uint64_t since) {
  Journal& journal = Journal::get();
  Copied out;
  std::lock_guard<std::mutex> lock(journal.mutex);
  // The living go by their addresses, which is what everybody else knows of them; the dead by
  // numbers that nothing else has.
  std::unordered_map<uint64_t, int64_t> shown;
  const auto show = [&](uint64_t identity) -> int64_t {
    if (identity == 0) {
      return 0;
    }
    auto [place, is_new] = shown.emplace(identity, -number(identity));
    const void* address = is_new ? journal.identities.address_of(identity) : nullptr;
    if (address != nullptr) {
      out.held->holds.emplace_back(address);
      place->second = static_cast<int64_t>(reinterpret_cast<intptr_t>(address));
    }
    return place->second;
  };
  journal.writes.each([&](const Write& e) {
    if (e.order > since) {
      out.writes.row(
          {number(e.order),
           show(e.storage),
           show(e.counter),
           e.extent.begin,
           e.extent.end,
           number(e.sequence),
           e.thread,
           e.stack,
           e.op,
           e.inner_op,
           e.version_before,
           e.version_after,
           e.geometry,
           e.argument,
           e.flags});
    }
  });
  journal.views.each([&](const View& e) {
    if (e.order > since) {
      out.views.row(
          {number(e.order),
           show(e.storage),
           e.extent.begin,
           e.extent.end,
           number(e.sequence),
           e.tensor,
           e.thread,
           e.stack,
           e.op,
           e.flags});
    }
  });
  for (const auto& log : journal.save_logs) {
    std::lock_guard<std::mutex> log_lock(log->mutex);
    log->saves.each([&](const Save& e) {
      const bool known = e.origin > log->origins_dropped;
      const NodeId origin =
          known ? log->origins[e.origin - 1 - log->origins_dropped] : NodeId{0, 0};
      out.saves.row(
          {number(log->thread),
           number(e.sequence),
           e.stack,
           known ? number(origin.thread) : -1,
           known ? number(origin.sequence) : -1});
    });
    out.dropped_saves += log->saves.dropped();
  }
  for (const Backward& e : journal.backwards) {
    if (e.order > since) {
      out.backwards.push_back(e);
    }
  }
  for (const Refused& e : journal.refused) {
    if (e.order > since) {
      out.refused.emplace_back(show(e.storage), e);
    }
  }
  out.geometries = journal.geometries;
  out.dropped_writes = journal.writes.dropped();
  out.dropped_views = journal.views.dropped();
  out.dropped_backwards = journal.backwards_dropped;
  out.order = journal.order();
  return out;
}

py::dict shown_refused(int64_t storage, const Refused& e) {
  py::list chain;
  for (const auto& [name, id] : e.chain) {
    chain.append(py::make_tuple(name, id.thread, id.sequence));
  }
  py::dict facts;
  facts["order"] = e.order;
  facts["storage"] = storage;
  facts["begin"] = e.extent.begin;
  facts["end"] = e.extent.end;
  facts["tensor"] = e.tensor;
  facts["base"] = e.base;
  facts["thread"] = e.thread;
  facts["stack"] = e.stack;
  facts["op"] = op_name(e.op);
  facts["creation_meta"] = e.creation_meta;
  facts["is_view"] = e.is_view;
  facts["is_leaf"] = e.is_leaf;
  facts["requires_grad"] = e.requires_grad;
  facts["base_is_leaf"] = e.base_is_leaf;
  facts["is_inference"] = e.is_inference;
  facts["grad_mode"] = e.grad_mode;
  // Not necessarily UTF-8: the text may quote bytes of a user's.
  facts["what"] = py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(e.what.data(), static_cast<Py_ssize_t>(e.what.size()), "replace"));
  facts["chain"] = chain;
  return facts;
}

py::dict snapshot(uint64_t since) {
  Copied copied;
  {
    py::gil_scoped_release release;
    copied = copy_journal(since);
  }
  py::list backwards, refused;
  for (const Backward& e : copied.backwards) {
    Columns nodes;
    for (const NodeId& id : e.nodes) {
      nodes.row({number(id.thread), number(id.sequence)});
    }
    backwards.append(
        py::make_tuple(
            e.order, e.thread, e.stack, e.keeps_graph, e.creates_graph, e.whole, nodes.array(2)));
  }
  for (const auto& [storage, e] : copied.refused) {
    refused.append(shown_refused(storage, e));
  }
  std::unordered_set<int64_t> ops;
  for (size_t k = 0; k < copied.writes.values.size(); k += kWriteColumns) {
    ops.insert(copied.writes.values[k + 8]);
    ops.insert(copied.writes.values[k + 9]);
  }
  for (size_t k = 0; k < copied.views.values.size(); k += kViewColumns) {
    ops.insert(copied.views.values[k + 8]);
  }
  py::dict names, dropped, out;
  for (int64_t op : ops) {
    names[py::int_(op)] = op_name(static_cast<uint32_t>(op));
  }
  dropped["writes"] = copied.dropped_writes;
  dropped["views"] = copied.dropped_views;
  dropped["saves"] = copied.dropped_saves;
  dropped["backwards"] = copied.dropped_backwards;
  out["held"] = py::cast(std::move(copied.held));
  out["order"] = copied.order;
  out["writes"] = copied.writes.array(kWriteColumns);
  out["views"] = copied.views.array(kViewColumns);
  out["saves"] = copied.saves.array(kSaveColumns);
  out["backwards"] = backwards;
  out["refused"] = refused;
  out["geometries"] = copied.geometries;
  out["ops"] = names;
  out["dropped"] = dropped;
  return out;
}

py::list frames(StackId stack) {
  py::list out;
  for (const Frame& frame : stack_frames(stack)) {
    out.append(
        py::make_tuple(
            py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(frame.code)),
            frame.instruction));
  }
  return out;
}

// (node, name, thread, sequence number or None, indices of the next nodes, index of the CopySlices
// around it or -1) for every node below `roots`.
py::tuple graph(py::object roots, size_t most) {
  bool whole = true;
  const std::vector<state::GraphNode> nodes = state::walk_graph(root_nodes(roots), most, whole);
  py::list out;
  for (const state::GraphNode& at : nodes) {
    PyObject* object = torch::autograd::functionToPyObject(at.node->getptr());
    const uint64_t sequence = at.node->sequence_nr();
    out.append(
        py::make_tuple(
            py::reinterpret_steal<py::object>(object),
            at.node->name(),
            at.node->thread_id(),
            sequence == UINT64_MAX ? py::object(py::none()) : py::object(py::int_(sequence)),
            at.next,
            at.inner_of));
  }
  return py::make_tuple(out, whole);
}

// What a SavedTensor holds, without unpacking it.
py::dict saved(py::handle object) {
  const auto& variable = py::cast<const torch::autograd::SavedVariable&>(object);
  const state::SavedFacts facts = state::saved_facts(variable);
  py::dict out;
  out["kind"] = facts.kind;
  if (!facts.tensor.defined()) {
    return out;
  }
  const c10::TensorImpl& impl = *facts.tensor.unsafeGetTensorImpl();
  const int64_t version = state::version(impl);
  out["saved_version"] = facts.saved_version;
  out["version"] = version < 0 ? py::object(py::none()) : py::object(py::int_(version));
  out["counter"] = state::opaque_id(state::counter_address(impl));
  out["storage"] = state::opaque_id(state::storage(impl));
  out["id"] = state::opaque_id(&impl);
  out["is_original"] = facts.is_original;
  out["is_output"] = facts.is_output;
  out["is_leaf"] = facts.is_leaf;
  out["output_nr"] = facts.output_nr;
  out["dtype"] = py::cast(c10::typeMetaToScalarType(impl.dtype()));
  out["itemsize"] = impl.itemsize();
  const bool plain = !impl.has_symbolic_sizes_strides() && !state::is_wrapper_subclass(impl);
  const bool strided = plain && state::storage(impl) != nullptr;
  out["sizes"] = plain ? std::vector<int64_t>(impl.sizes().begin(), impl.sizes().end())
                       : std::vector<int64_t>();
  out["strides"] = strided ? std::vector<int64_t>(impl.strides().begin(), impl.strides().end())
                           : std::vector<int64_t>();
  out["offset"] = strided ? impl.storage_offset() : 0;
  out["is_strided"] = strided;
  return out;
}

// A floor to measure against: a RecordFunction callback that does nothing.
class EmptyObserver {
 public:
  explicit EmptyObserver(std::string mode) : inputs_(mode == "inputs") {
    if (mode != "inputs" && mode != "none") {
      throw py::value_error("empty_observer: mode is \"none\" or \"inputs\", got " + mode);
    }
  }
  void enter() {
    handle_ = at::addGlobalCallback(
        at::RecordFunctionCallback(
            [](const at::RecordFunction&) -> std::unique_ptr<at::ObserverContext> {
              return nullptr;
            })
            .needsInputs(inputs_)
            .scopes({at::RecordScope::FUNCTION}));
  }
  void exit() {
    at::removeCallback(handle_);
  }

 private:
  bool inputs_;
  at::CallbackHandle handle_ = 0;
};

py::dict memory() {
  size_t writes = 0, views = 0, saves = 0, held = 0, identities = 0, limit = 0;
  const StackStats stacks = stack_stats();
  {
    py::gil_scoped_release release;
    Journal& journal = Journal::get();
    std::lock_guard<std::mutex> lock(journal.mutex);
    writes = journal.writes.size();
    views = journal.views.size();
    identities = journal.identities.size();
    limit = journal.memory();
    held = journal.writes.capacity_bytes() + journal.views.capacity_bytes() +
           journal.backward_nodes * sizeof(NodeId) + identities * kIdentityBytes;
    for (const auto& log : journal.save_logs) {
      std::lock_guard<std::mutex> log_lock(log->mutex);
      saves += log->saves.size();
      held += log->saves.capacity_bytes();
    }
  }
  py::dict out;
  out["write_bytes"] = kWriteBytes;
  out["view_bytes"] = kViewBytes;
  out["save_bytes"] = kSaveBytes;
  out["limit_bytes"] = limit;
  out["held_bytes"] = held;
  out["writes"] = writes;
  out["views"] = views;
  out["saves"] = saves;
  out["identities"] = identities;
  out["stacks"] = stacks.nodes;
  out["stack_bytes"] = stacks.bytes;
  out["stacks_dropped"] = stacks.dropped;
  return out;
}

}  // namespace

void bind(py::module_& m) {
  m.def("recorder_start", [](bool saves, size_t memory) {
    if (!active()) {
      Journal::get().set_memory(memory);
    } else if (memory > Journal::get().memory()) {
      Journal::get().set_memory(memory);
    }
    start(saves);
    return Journal::get().order();
  });
  m.def("recorder_stop", &stop);
  m.def("recorder_active", &active);
  m.def("recorder_sync_thread", &sync_thread);
  m.def("recorder_note", [](const std::string& name, py::handle tensor) {
    note(name, unpack(tensor));
  });
  m.def("recorder_snapshot", &snapshot);
  m.def("recorder_frames", &frames);
  m.def("recorder_stack", &capture_stack);
  m.def("recorder_memory", &memory);
  m.def("recorder_keys", [] { return py::make_tuple(kKey, kNodeKey); });
  m.def("recorder_faults", [] {
    const Faults found = faults();
    return py::make_tuple(found.count, found.last);
  });
  m.def("recorder_inject_fault", &inject_fault);
  m.def("recorder_op", &op_name);
  py::class_<Held>(m, "Held");
  bind_hooks(m);
  m.def("graph", &graph, py::arg("roots"), py::arg("most") = size_t{1} << 20);
  m.def("saved", &saved);
  py::class_<EmptyObserver>(m, "empty_observer")
      .def(py::init<std::string>())
      .def("__enter__", &EmptyObserver::enter)
      .def("__exit__", [](EmptyObserver& self, const py::args&) { self.exit(); });
}

}  // namespace gradext::recorder
