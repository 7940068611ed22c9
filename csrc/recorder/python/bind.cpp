#include "recorder/python/bind.h"

#include "base/aside.h"
#include "base/signals.h"
#include "graph/graph.h"
#include "journal/journal.h"
#include "journal/snapshot.h"
#include "recorder/lost_gradients/flows.h"
#include "recorder/lost_gradients/python_crossings.h"
#include "recorder/python/c_entry_points.h"
#include "recorder/python/wrappers.h"
#include "recorder/switch.h"
#include "stacks/stacks.h"
#include "state/state.h"

#include <ATen/record_function.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_cpp_function.h>
#include <torch/csrc/autograd/python_function.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

namespace py = pybind11;

namespace gradext::recorder {
namespace {

using torch::autograd::Node;

constexpr size_t kMaxBackwardNodes = 200'000;

at::Tensor unpack(py::handle object) {
  if (!is_tensor(object.ptr())) {
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
  // By type: THPFunction_Check asks the object's `__class__`, which may be code of the program's.
  if (PyType_IsSubtype(Py_TYPE(object.ptr()), &THPFunctionType) != 0) {
    return pointee(reinterpret_cast<THPFunction*>(object.ptr())->cdata);
  }
  if (torch::autograd::THPCppFunction_Check(object.ptr())) {
    return &*reinterpret_cast<torch::autograd::THPCppFunction*>(object.ptr())->cdata;
  }
  return nullptr;
}

}  // namespace

// Tensors and GradientEdges (tuples whose first item is a node), as torch.autograd takes them.
std::vector<Node*> root_nodes(py::handle roots) {
  std::vector<Node*> nodes;
  const auto add = [&](py::handle item) {
    Node* node = nullptr;
    if (is_tensor(item.ptr())) {
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
  if (is_tensor(roots.ptr())) {
    add(roots);
  } else if (PyTuple_Check(roots.ptr()) || PyList_Check(roots.ptr())) {
    for (Py_ssize_t k = 0; k < PySequence_Fast_GET_SIZE(roots.ptr()); ++k) {
      add(PySequence_Fast_GET_ITEM(roots.ptr(), k));
    }
  }
  return nodes;
}

namespace {

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

namespace {

// A root that is a leaf which requires grad: backward() fills its own .grad and nothing else.
bool has_leaf_root(py::handle roots) {
  if (!PyTuple_Check(roots.ptr())) {
    return false;
  }
  for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(roots.ptr()); ++k) {
    PyObject* item = PyTuple_GET_ITEM(roots.ptr(), k);
    if (is_tensor(item)) {
      const c10::TensorImpl& impl = *THPVariable_Unpack(item).unsafeGetTensorImpl();
      if (state::requires_grad(impl) && state::is_leaf(impl)) {
        return true;
      }
    }
  }
  return false;
}

}  // namespace

NodeId first_node(py::handle roots) {
  for (Node* node : root_nodes(roots)) {
    return NodeId{node->thread_id(), node->sequence_nr()};
  }
  return NodeId{0, 0};
}

uint32_t enter_backward(py::handle roots, bool keeps_graph, bool creates_graph, bool accumulates) {
  Backward event;
  event.stack = capture_stack();
  event.thread = at::RecordFunction::currentThreadId();
  event.keeps_graph = keeps_graph;
  event.creates_graph = creates_graph;
  set_backward_stack(event.stack);
  sync_thread();
  event.nodes = node_ids(root_nodes(roots), event.whole);
  uint32_t suspicious = spans_uncounted_write(event.nodes) ? kUncountedWrite : 0;
  if (accumulates && cuts_are_on()) {
    suspicious |= has_leaf_root(roots) ? kLeafRoot : 0;
    suspicious |= uses_merge(event.nodes) ? kConstantTerm : 0;
    suspicious |= pending_rebuilt.exchange(0) > 0 ? kRebuiltLeaf : 0;
    pending_python = 0;
    ++thread_state().epoch;
  }
  Journal& journal = Journal::get();
  event.order = journal.next_order();
  journal.push_backward(std::move(event));
  return suspicious;
}

namespace {

py::list frames(StackId stack) {
  std::vector<std::pair<py::object, int32_t>> held;
  for (const Frame& frame : stack_frames(stack)) {
    PyObject* code =
        frame.code != nullptr ? reinterpret_cast<PyObject*>(frame.code) : Py_None;  // a cut stack
    held.emplace_back(py::reinterpret_borrow<py::object>(code), frame.instruction);
  }
  py::list out;
  for (const auto& [code, instruction] : held) {
    out.append(py::make_tuple(code, instruction));
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

}  // namespace

py::dict facts_of_saved(const state::SavedFacts& facts) {
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
  const bool plain = state::has_sizes(impl) && !state::is_wrapper_subclass(impl);
  const bool strided = plain && state::has_strides(impl) && state::storage(impl) != nullptr;
  out["sizes"] = plain ? std::vector<int64_t>(impl.sizes().begin(), impl.sizes().end())
                       : std::vector<int64_t>();
  out["strides"] = strided ? std::vector<int64_t>(impl.strides().begin(), impl.strides().end())
                           : std::vector<int64_t>();
  out["offset"] = strided ? impl.storage_offset() : 0;
  out["is_strided"] = strided;
  return out;
}

namespace {

// What a SavedTensor holds, without unpacking it.
py::dict saved(py::handle object) {
  return facts_of_saved(
      state::saved_facts(py::cast<const torch::autograd::SavedVariable&>(object)));
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
  size_t births = 0, flows = 0;
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
           journal.backward_nodes * sizeof(NodeId) + journal.identities.bytes() +
           journal.geometry_bytes();
    for (const auto& log : journal.save_logs) {
      std::lock_guard<std::mutex> log_lock(log->mutex);
      saves += log->saves.size();
      held += log->saves.capacity_bytes();
    }
    Origins& origins = Origins::get();
    std::lock_guard<std::mutex> origins_lock(origins.mutex);
    births = origins.births.size();
    flows = origins.flows.size() + origins.past.size();
    held += origins.bytes();
  }
  py::dict out;
  out["write_bytes"] = kWriteBytes;
  out["view_bytes"] = kViewBytes;
  out["save_bytes"] = kSaveBytes;
  out["birth_bytes"] = kBirthBytes;
  out["flow_bytes"] = kFlowBytes;
  out["limit_bytes"] = limit;
  out["held_bytes"] = held;
  out["writes"] = writes;
  out["views"] = views;
  out["saves"] = saves;
  out["births"] = births;
  out["flows"] = flows;
  out["identities"] = identities;
  out["stacks"] = stacks.nodes;
  out["stack_bytes"] = stacks.bytes;
  out["stacks_dropped"] = stacks.dropped;
  return out;
}

}  // namespace

void bind(py::module_& m) {
  m.def("recorder_start", [](bool saves, bool births, bool cuts, size_t memory) {
    if (!active() || memory > Journal::get().memory()) {
      Journal::get().set_memory(memory);
      Origins::get().set_memory(memory);
      set_stack_memory(memory);
    }
    start({saves, births, cuts});
    return Journal::get().order();
  });
  m.def("recorder_stop", [](bool saves, bool births, bool cuts) { stop({saves, births, cuts}); });
  m.def("recorder_active", &active);
  m.def("recorder_sync_thread", &sync_thread);
  m.def("recorder_note", [](const std::string& name, py::handle tensor) {
    note(name, unpack(tensor));
  });
  m.def("recorder_judged", &judged);
  bind_snapshot(m);
  m.def("recorder_frames", &frames);
  m.def("recorder_stack", [] { return pinned(capture_stack()); });
  m.def("recorder_memory", &memory);
  m.def("recorder_keys", [] { return py::make_tuple(kKey, kNodeKey); });
  m.def("recorder_faults", [] {
    const Faults found = faults();
    return py::make_tuple(found.count, found.last);
  });
  m.def("recorder_inject_fault", &inject_fault);
  m.def("recorder_op", &op_name);
  bind_hooks(m);
  bind_entries(m);
  bind_signals(m);
  m.def("graph", &graph, py::arg("roots"), py::arg("most") = size_t{1} << 20);
  m.def("saved", &saved);
  py::class_<EmptyObserver>(m, "empty_observer")
      .def(py::init<std::string>())
      .def("__enter__", &EmptyObserver::enter)
      .def("__exit__", [](EmptyObserver& self, const py::args&) { self.exit(); });
}

}  // namespace gradext::recorder
