#include "findings/bind.h"

#include "findings/findings.h"
#include "findings/refusals.h"
#include "findings/values.h"
#include "graph/bind.h"
#include "graph/saved_items.h"
#include "journal/origins.h"
#include "recorder/before_writes.h"
#include "state/identity.h"
#include "state/state.h"

#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>

#include <optional>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace gradext::findings {
namespace {

// As gradext.objects.naming.Identity takes it.
py::tuple identity(py::handle object) {
  if (!THPVariable_Check(object.ptr())) {
    throw py::type_error("expected a torch.Tensor");
  }
  const state::Words words =
      state::words_of(*THPVariable_Unpack(object.ptr()).unsafeGetTensorImpl());
  return py::make_tuple(
      words.id,
      words.counter,
      words.node,
      words.storage,
      words.grad,
      words.requires_grad,
      words.is_leaf,
      words.is_inference,
      words.is_view);
}

torch::autograd::Node& node_of(py::handle object) {
  const auto nodes = graph::root_nodes(py::make_tuple(object));
  if (nodes.size() != 1) {
    throw py::type_error("expected a node of an autograd graph");
  }
  return *nodes.front();
}

// ([(the node's name for it, what `_C.saved` says)], whether a backward has released it, whether
// another thread runs the node right now, so that nothing could be read).
py::tuple saved_of(py::handle object) {
  torch::autograd::Node& node = node_of(object);
  bool is_busy = false;
  py::list out;
  if (graph::is_outer(node)) {
    return py::make_tuple(out, false, false);
  }
  const auto items = graph::saved_items(node, &is_busy);
  for (const graph::SavedItem& item : items) {
    py::dict facts = graph::facts_of_saved(item.facts);
    facts["is_unused"] = graph::is_unused(node, item);
    out.append(py::make_tuple(item.label(), facts));
  }
  return py::make_tuple(out, graph::is_freed(node, items), is_busy);
}

// Those of `objects` whose type is one of `kinds` or comes from one. type(), not isinstance(): an
// object may answer __class__ with code of its own.
py::list instances(const py::list& objects, const py::tuple& kinds) {
  std::unordered_map<PyTypeObject*, bool> known;
  PyTypeObject* last = nullptr;
  bool is_last = false;
  py::list out;
  for (py::handle object : objects) {
    PyTypeObject* type = Py_TYPE(object.ptr());
    if (type != last) {
      auto [place, is_new] = known.try_emplace(type, false);
      for (py::handle kind : kinds) {
        if (is_new) {
          place->second |= PyType_IsSubtype(type, reinterpret_cast<PyTypeObject*>(kind.ptr())) != 0;
        }
      }
      last = type;
      is_last = place->second;
    }
    if (is_last) {
      out.append(object);
    }
  }
  return out;
}

py::object shown(const Finding& finding) {
  if (!finding.found || !finding.is_whole) {
    return py::make_tuple(finding.found, py::none(), py::none(), 0, 0);
  }
  return py::make_tuple(
      true, py::bytes(finding.places), py::bytes(finding.details), finding.tensor, finding.counter);
}

py::object finding(const std::string& kind, py::handle roots, uint64_t since) {
  const Roots nodes = graph::root_nodes(roots);
  if (kind == "stale") {
    return shown(stale(nodes, since));
  }
  if (kind == "silent") {
    return shown(silent(nodes, since));
  }
  if (kind == "freed") {
    return shown(freed(nodes));
  }
  throw py::value_error("finding: kind is \"stale\", \"silent\" or \"freed\", got " + kind);
}

// The tensors of a tuple, a list, or one tensor; they live as long as `objects` does.
std::vector<const at::Tensor*> tensors_of(py::handle objects) {
  std::vector<const at::Tensor*> found;
  const auto add = [&](PyObject* item) {
    if (THPVariable_Check(item)) {
      found.push_back(&THPVariable_Unpack(item));
    }
  };
  if (PyTuple_Check(objects.ptr()) || PyList_Check(objects.ptr())) {
    for (Py_ssize_t k = 0; k < PySequence_Fast_GET_SIZE(objects.ptr()); ++k) {
      add(PySequence_Fast_GET_ITEM(objects.ptr(), k));
    }
  } else {
    add(objects.ptr());
  }
  return found;
}

py::object finding_cut(py::handle tensors) {
  return shown(cut(tensors_of(tensors)));
}

py::object finding_hidden(py::handle roots, uint32_t why) {
  return shown(hidden(graph::root_nodes(roots), tensors_of(roots), why));
}

// The finding, and for each of the inputs its id and whether it is in the graph.
py::tuple finding_unused(py::handle roots, py::handle inputs) {
  Finding finding;
  py::list out;
  for (const Unused& input : unused(graph::root_nodes(roots), tensors_of(inputs), finding)) {
    out.append(py::make_tuple(input.tensor, input.is_in_graph));
  }
  return py::make_tuple(shown(finding), out);
}

py::object finding_refused(
    const std::string& text, py::handle traceback, bool is_backward, uint64_t since) {
  const Finding finding = refused(text, traceback.ptr(), is_backward, since);
  return py::make_tuple(
      finding.found, py::bytes(finding.places), py::bytes(finding.details), finding.tensor, 0);
}

py::object finding_used(py::handle view, py::handle traceback) {
  if (!THPVariable_Check(view.ptr())) {
    throw py::type_error("expected a torch.Tensor");
  }
  return shown(used(THPVariable_Unpack(view.ptr()), traceback.ptr()));
}

// The place that made a tensor without gradient, 0 where it is not known.
uint64_t made_at(py::handle tensor) {
  if (!THPVariable_Check(tensor.ptr())) {
    return 0;
  }
  stacks::StackId stack = 0;
  {
    journal::Origins& origins = journal::Origins::get();
    std::lock_guard lock(origins.mutex);
    const journal::Flow* flow = origins.flows.find(
        journal::as_target(*THPVariable_Unpack(tensor.ptr()).unsafeGetTensorImpl()));
    stack = flow != nullptr ? flow->stack : 0;
  }
  return place_of(stack);
}

// The leaves behind a cut, or those that it holds constant itself: (id, whether a backward has
// reached it, whether it lives).
py::list leaves_of_cut(uint64_t number, bool held) {
  py::list out;
  for (const auto& leaf : leaves_behind(static_cast<uint32_t>(number), held)) {
    out.append(py::make_tuple(leaf.tensor, leaf.is_reached, leaf.lives));
  }
  return out;
}

py::object finding_written(
    std::pair<uint64_t, uint64_t> node, int64_t storage, int64_t counter, uint64_t order) {
  const auto at = [](int64_t id) { return reinterpret_cast<const void*>(id); };
  return shown(written(journal::NodeId{node.first, node.second}, at(storage), at(counter), order));
}

// Whether what was saved has other values than before the first of some writes (number, first byte,
// one past the last byte); None where that is not known.
std::optional<bool> is_changed(
    int64_t storage,
    int64_t offset,
    int64_t itemsize,
    const std::vector<int64_t>& sizes,
    const std::vector<int64_t>& strides,
    const std::vector<std::tuple<uint64_t, int64_t, int64_t>>& writes) {
  std::vector<recorder::Suspect> suspects;
  for (const auto& [order, begin, end] : writes) {
    suspects.push_back({order, begin, end});
  }
  const recorder::Verdict verdict = recorder::compare_with_before(
      reinterpret_cast<const c10::StorageImpl*>(storage),
      recorder::region_of(offset * itemsize, itemsize, sizes, strides),
      std::move(suspects));
  if (verdict == recorder::Verdict::kUnknown) {
    return std::nullopt;
  }
  return verdict == recorder::Verdict::kChanged;
}

}  // namespace

void bind(py::module_& m) {
  m.def("identity", &identity);
  m.def("saved_of", &saved_of);
  m.def("instances", &instances);
  m.def("finding", &finding);
  m.def("place_of", &place_of);
  m.def("finding_written", &finding_written);
  m.def("is_changed", &is_changed);
  m.def("finding_cut", &finding_cut);
  m.def("finding_hidden", &finding_hidden);
  m.def("finding_unused", &finding_unused);
  m.def("finding_refused", &finding_refused);
  m.def("finding_used", &finding_used);
  m.def("made_at", &made_at);
  m.def("leaves_behind", [](uint64_t number) { return leaves_of_cut(number, false); });
  m.def("leaves_held", [](uint64_t number) { return leaves_of_cut(number, true); });
  m.def("leaves_unreached", &unreached);
  m.def("leaves_starved", &starved);
}

void bind_testing(py::module_& m) {
  m.def("node_id", [](py::handle node) { return state::opaque_id(&node_of(node)); });
}

}  // namespace gradext::findings
