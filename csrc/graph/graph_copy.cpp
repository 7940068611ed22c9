#include "graph/graph_copy.h"

#include "graph/bind.h"
#include "graph/graph.h"
#include "graph/saved_items.h"
#include "state/state.h"

#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_cpp_function.h>
#include <torch/csrc/utils/pybind.h>

#include <c10/util/Type.h>

#include <algorithm>
#include <cstring>
#include <typeindex>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace gradext::graph {
namespace {

using torch::autograd::Node;

// One saved tensor, or (is_hooked) the place of one that saved-tensor hooks have packed.
struct SavedCopy {
  const char* attribute = "";
  int index = -1;
  bool is_hooked = false, is_output = false, is_leaf = false;
  bool is_strided = false, is_unused = false;
  uint32_t saved_version = 0, output_nr = 0;
  c10::ScalarType dtype = c10::ScalarType::Undefined;
  int64_t version = -1, counter = 0, storage = 0, id = 0, itemsize = 0, offset = 0;
  size_t sizes = 0, strides = 0;  // where they begin in `numbers`
  size_t dims = 0, strided_dims = 0;

  bool is_stale() const {
    return !is_hooked && version >= 0 && static_cast<uint64_t>(version) != saved_version;
  }
};

struct NodeCopy {
  size_t name = 0;  // in `names`
  uint64_t thread = 0, sequence = 0;
  decltype(GraphNode::next) next;
  int64_t inner_of = -1, id = 0;
  size_t saved_begin = 0, saved_end = 0;
  bool is_freed = false, is_nameless = false;
};

class GraphCopy {
 public:
  GraphCopy(py::handle roots, size_t most) {
    std::vector<GraphNode> nodes = walk_graph(root_nodes(roots), most, whole_);
    nodes_.reserve(nodes.size());
    for (GraphNode& at : nodes) {
      add(at);
    }
  }

  size_t size() const {
    return nodes_.size();
  }
  bool whole() const {
    return whole_;
  }
  size_t saved_count() const {
    return static_cast<size_t>(std::count_if(
        saved_.begin(), saved_.end(), [](const SavedCopy& one) { return !one.is_hooked; }));
  }

  // (name, thread, sequence number or None, the next nodes, the CopySlices around it or -1, saved
  // tensors, names of hooked ones, whether it is freed, whether its class shows nothing of what it
  // saved, id).
  py::tuple node(size_t k) const {
    const NodeCopy& at = nodes_.at(k);
    py::list saved, hooked;
    for (size_t s = at.saved_begin; s < at.saved_end; ++s) {
      if (saved_[s].is_hooked) {
        hooked.append(label(saved_[s]));
      } else {
        saved.append(row(saved_[s]));
      }
    }
    return py::make_tuple(
        names_[at.name],
        at.thread,
        at.sequence == UINT64_MAX ? py::object(py::none()) : py::object(py::int_(at.sequence)),
        py::tuple(list_of(at.next)),
        at.inner_of,
        py::tuple(saved),
        py::tuple(hooked),
        at.is_freed,
        at.is_nameless,
        at.id);
  }

  // The columns, for questions about all nodes. No number: -1.
  py::list threads() const {
    return column([](const NodeCopy& at) { return py::int_(at.thread); });
  }
  py::list sequences() const {
    return column([](const NodeCopy& at) {
      return at.sequence == UINT64_MAX ? py::object(py::none()) : py::object(py::int_(at.sequence));
    });
  }
  py::list freed() const {
    return column([](const NodeCopy& at) { return py::bool_(at.is_freed); });
  }
  py::list following() const {
    return column([](const NodeCopy& at) { return list_of(at.next); });
  }

  // All nodes, in the order in which backward comes to them: what was made last comes first.
  std::vector<size_t> newest_first() const {
    std::vector<size_t> found(nodes_.size());
    for (size_t k = 0; k < found.size(); ++k) {
      found[k] = k;
    }
    return sorted(std::move(found));
  }

  // Those with a saved tensor whose version has moved, in that order.
  std::vector<size_t> stale() const {
    return having([](const SavedCopy& one) { return one.is_stale(); });
  }

  // Those with a saved tensor on one of the storages, or with one of the counters; in that order.
  std::vector<size_t> saving(
      const std::vector<int64_t>& storages, const std::vector<int64_t>& counters) const {
    const std::unordered_set<int64_t> of_storage(storages.begin(), storages.end());
    const std::unordered_set<int64_t> of_counter(counters.begin(), counters.end());
    return having([&](const SavedCopy& one) {
      return !one.is_hooked &&
             (of_storage.count(one.storage) != 0 || of_counter.count(one.counter) != 0);
    });
  }

  // Those of which something cannot be read, as they are numbered.
  std::vector<size_t> unread() const {
    std::vector<size_t> found;
    for (size_t k = 0; k < nodes_.size(); ++k) {
      const NodeCopy& at = nodes_[k];
      bool is_one = at.is_nameless;
      for (size_t s = at.saved_begin; s < at.saved_end; ++s) {
        is_one |= saved_[s].is_hooked;
      }
      if (is_one) {
        found.push_back(k);
      }
    }
    return found;
  }

  // (number, name, object) of the nodes of autograd.Functions in Python, which all have their
  // object; the first call gives them away.
  py::list take_functions() {
    return std::exchange(functions_, py::list());
  }

 private:
  void add(GraphNode& from) {
    Node& node = *from.node;
    NodeCopy to;
    to.name = name_of(node);
    to.thread = node.thread_id();
    to.sequence = node.sequence_nr();
    to.next = std::move(from.next);
    to.inner_of = from.inner_of;
    to.id = state::opaque_id(&node);
    to.saved_begin = saved_.size();
    if (!is_outer(node)) {
      to.is_nameless = is_nameless(node);
      const auto items = saved_items(node);
      for (const SavedItem& item : items) {
        add(node, item);
      }
      to.is_freed = is_freed(node, items);
    }
    to.saved_end = saved_.size();
    if (is_python_function(node)) {
      PyObject* object = torch::autograd::functionToPyObject(node.getptr());
      functions_.append(
          py::make_tuple(
              nodes_.size(), names_[to.name], py::reinterpret_steal<py::object>(object)));
    }
    nodes_.push_back(std::move(to));
  }

  void add(Node& node, const SavedItem& item) {
    SavedCopy to;
    to.attribute = item.attribute;
    to.index = item.index;
    const SavedFacts& facts = item.facts;
    if (std::strcmp(facts.kind, "hooked") == 0) {
      to.is_hooked = true;
      saved_.push_back(to);
      return;
    }
    if (!facts.tensor.defined()) {
      return;
    }
    const c10::TensorImpl& impl = *facts.tensor.unsafeGetTensorImpl();
    to.saved_version = facts.saved_version;
    to.output_nr = facts.output_nr;
    to.is_output = facts.is_output;
    to.is_leaf = facts.is_leaf;
    to.is_unused = is_unused(node, item);
    to.version = state::version(impl);
    to.counter = state::opaque_id(state::counter_address(impl));
    to.storage = state::opaque_id(state::storage(impl));
    to.id = state::opaque_id(&impl);
    to.dtype = c10::typeMetaToScalarType(impl.dtype());
    to.itemsize = static_cast<int64_t>(impl.itemsize());
    const bool plain = has_plain_sizes(impl);
    to.is_strided = is_strided(impl);
    to.sizes = numbers_.size();
    if (plain) {
      to.dims = impl.sizes().size();
      numbers_.insert(numbers_.end(), impl.sizes().begin(), impl.sizes().end());
    }
    to.strides = numbers_.size();
    if (to.is_strided) {
      to.strided_dims = impl.strides().size();
      numbers_.insert(numbers_.end(), impl.strides().begin(), impl.strides().end());
      to.offset = impl.storage_offset();
    }
    saved_.push_back(to);
  }

  // The names of most classes are made of the class's own, slowly.
  size_t name_of(const Node& node) {
    const auto known = by_type_.find(std::type_index(typeid(node)));
    if (known != by_type_.end()) {
      return known->second;
    }
    std::string name = node.name();
    const bool is_of_class = name == c10::demangle(typeid(node).name());
    const auto [place, is_new] = by_name_.emplace(std::move(name), names_.size());
    if (is_new) {
      names_.emplace_back(place->first);
    }
    if (is_of_class) {
      by_type_.emplace(std::type_index(typeid(node)), place->second);
    }
    return place->second;
  }

  static std::string label(const SavedCopy& one) {
    SavedItem item;
    item.attribute = one.attribute;
    item.index = one.index;
    return item.label();
  }

  py::tuple part(size_t begin, size_t count) const {
    py::tuple out(count);
    for (size_t d = 0; d < count; ++d) {
      out[d] = py::int_(numbers_[begin + d]);
    }
    return out;
  }

  // The order of the fields is gradext.rules.graph_copy.Saved's.
  py::tuple row(const SavedCopy& one) const {
    return py::make_tuple(
        label(one),
        one.saved_version,
        one.version < 0 ? py::object(py::none()) : py::object(py::int_(one.version)),
        one.counter,
        one.storage,
        one.id,
        one.is_output,
        one.is_leaf,
        one.output_nr,
        py::cast(one.dtype),
        one.itemsize,
        part(one.sizes, one.dims),
        part(one.strides, one.strided_dims),
        one.offset,
        one.is_strided,
        one.is_unused);
  }

  template <class Value>
  py::list column(Value&& value) const {
    py::list out(nodes_.size());
    for (size_t k = 0; k < nodes_.size(); ++k) {
      out[k] = value(nodes_[k]);
    }
    return out;
  }

  // What the engine sorts by; a node within a CopySlices runs when that one does.
  int64_t order(size_t k) const {
    const NodeCopy& at = nodes_[k];
    const NodeCopy& counts = at.inner_of >= 0 ? nodes_[static_cast<size_t>(at.inner_of)] : at;
    return counts.sequence == UINT64_MAX ? -1 : static_cast<int64_t>(counts.sequence);
  }

  std::vector<size_t> sorted(std::vector<size_t> found) const {
    std::stable_sort(
        found.begin(), found.end(), [&](size_t a, size_t b) { return order(a) > order(b); });
    return found;
  }

  template <class Wanted>
  std::vector<size_t> having(Wanted&& wanted) const {
    std::vector<size_t> found;
    for (size_t k = 0; k < nodes_.size(); ++k) {
      if (std::any_of(
              saved_.begin() + static_cast<ptrdiff_t>(nodes_[k].saved_begin),
              saved_.begin() + static_cast<ptrdiff_t>(nodes_[k].saved_end),
              wanted)) {
        found.push_back(k);
      }
    }
    return sorted(std::move(found));
  }

  bool whole_ = true;
  std::vector<NodeCopy> nodes_;
  std::vector<SavedCopy> saved_;
  std::vector<int64_t> numbers_;
  std::vector<py::str> names_;
  std::unordered_map<std::string, size_t> by_name_;
  std::unordered_map<std::type_index, size_t> by_type_;
  py::list functions_;
};

}  // namespace

void bind_graph_copy(py::module_& m) {
  py::class_<GraphCopy>(m, "GraphCopy")
      .def(py::init<py::handle, size_t>(), py::arg("roots"), py::arg("most"))
      .def_property_readonly("whole", &GraphCopy::whole)
      .def_property_readonly("saved_count", &GraphCopy::saved_count)
      .def("__len__", &GraphCopy::size)
      .def("node", &GraphCopy::node)
      .def("threads", &GraphCopy::threads)
      .def("sequences", &GraphCopy::sequences)
      .def("freed", &GraphCopy::freed)
      .def("following", &GraphCopy::following)
      .def("newest_first", &GraphCopy::newest_first)
      .def("stale", &GraphCopy::stale)
      .def("saving", &GraphCopy::saving, py::arg("storages"), py::arg("counters"))
      .def("unread", &GraphCopy::unread)
      .def("take_functions", &GraphCopy::take_functions);
}

}  // namespace gradext::graph
