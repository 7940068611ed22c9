#include "graph/bind.h"

#include "base/aside.h"
#include "graph/graph_copy.h"
#include "state/state.h"

#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_cpp_function.h>
#include <torch/csrc/autograd/python_function.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <vector>

namespace py = pybind11;

namespace gradext::graph {
namespace {

using torch::autograd::Node;

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
    if (base::is_tensor(item.ptr())) {
      node = graph::node_of(THPVariable_Unpack(item.ptr()));
    } else if (PyTuple_Check(item.ptr()) && PyTuple_GET_SIZE(item.ptr()) > 0) {
      node = node_behind(PyTuple_GET_ITEM(item.ptr(), 0));
    } else {
      node = node_behind(item);
    }
    if (node != nullptr) {
      nodes.push_back(node);
    }
  };
  if (base::is_tensor(roots.ptr())) {
    add(roots);
  } else if (PyTuple_Check(roots.ptr()) || PyList_Check(roots.ptr())) {
    for (Py_ssize_t k = 0; k < PySequence_Fast_GET_SIZE(roots.ptr()); ++k) {
      add(PySequence_Fast_GET_ITEM(roots.ptr(), k));
    }
  }
  return nodes;
}

py::list list_of(c10::ArrayRef<int64_t> numbers) {
  py::list out(numbers.size());
  for (size_t k = 0; k < numbers.size(); ++k) {
    out[k] = py::int_(numbers[k]);
  }
  return out;
}

bool has_plain_sizes(const c10::TensorImpl& impl) {
  return state::has_sizes(impl) && !state::is_wrapper_subclass(impl);
}

bool is_strided(const c10::TensorImpl& impl) {
  return has_plain_sizes(impl) && state::has_strides(impl) && state::storage(impl) != nullptr;
}

py::dict facts_of_saved(const SavedFacts& facts) {
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
  out["is_output"] = facts.is_output;
  out["is_leaf"] = facts.is_leaf;
  out["output_nr"] = facts.output_nr;
  out["dtype"] = py::cast(c10::typeMetaToScalarType(impl.dtype()));
  out["itemsize"] = impl.itemsize();
  const bool plain = has_plain_sizes(impl);
  const bool strided = is_strided(impl);
  out["sizes"] = plain ? std::vector<int64_t>(impl.sizes().begin(), impl.sizes().end())
                       : std::vector<int64_t>();
  out["strides"] = strided ? std::vector<int64_t>(impl.strides().begin(), impl.strides().end())
                           : std::vector<int64_t>();
  out["offset"] = strided ? impl.storage_offset() : 0;
  out["is_strided"] = strided;
  return out;
}

namespace {

// (node, name, thread, sequence number or None, indices of the next nodes, index of the CopySlices
// around it or -1) for every node below `roots`; of the nearest ones without a path of more than
// `longest` nodes, if that is not 0.
py::tuple graph_of(py::object roots, size_t most, size_t longest) {
  bool whole = true;
  std::vector<GraphNode> nodes = walk_graph(root_nodes(roots), most, whole);
  if (longest != 0) {
    whole &= cut_paths(nodes, longest);
  }
  py::list out;
  for (const GraphNode& at : nodes) {
    PyObject* object = torch::autograd::functionToPyObject(at.node->getptr());
    const uint64_t sequence = at.node->sequence_nr();
    out.append(
        py::make_tuple(
            py::reinterpret_steal<py::object>(object),
            at.node->name(),
            at.node->thread_id(),
            sequence == UINT64_MAX ? py::object(py::none()) : py::object(py::int_(sequence)),
            list_of(at.next),
            at.inner_of));
  }
  return py::make_tuple(out, whole);
}

// What a SavedTensor holds, without unpacking it.
py::dict saved(py::handle object) {
  return facts_of_saved(saved_facts(py::cast<const torch::autograd::SavedVariable&>(object)));
}

}  // namespace

void bind(py::module_& m) {
  m.def(
      "graph",
      &graph_of,
      py::arg("roots"),
      py::arg("most") = size_t{1} << 20,
      py::arg("longest") = size_t{0});
  bind_graph_copy(m);
  m.def("saved", &saved);
}

}  // namespace gradext::graph
