#include "graph/saved_items.h"

#include "base/aside.h"
#include "state/identity.h"

#include <pybind11/pybind11.h>
#include <torch/csrc/PyInterpreter.h>
#include <torch/csrc/autograd/functions/tensor.h>
#include <torch/csrc/autograd/python_cpp_function.h>
#include <torch/csrc/autograd/python_function.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <typeindex>
#include <unordered_map>

namespace py = pybind11;

namespace gradext::graph {
namespace {

using torch::autograd::CopySlices;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::THPCppFunction;

struct Attribute {
  const char* name;
  getter get;
  void* closure;
  // Where the SavedVariable lies within the node, once two nodes of the class had it there: then it
  // is read without the getter, which makes a Python object.
  ptrdiff_t offset = 0;
  const Node* told_by = nullptr;
  bool is_sure = false;
};

// How to read the nodes of one C++ class: the getters that torch generated for its Python type.
struct Reader {
  PyTypeObject* type = nullptr;
  bool is_shared = false;      // by classes that torch knows nothing of
  std::vector<Attribute> raw;  // _raw_saved_*
  Attribute training{nullptr, nullptr, nullptr};
};

// A Python object of a node's type that is none: it lies on the stack, owns nothing and lives for
// one call of a getter, which reads nothing but `cdata`. A real one would live as long as its node.
class Stand {
 public:
  Stand(PyTypeObject* type, Node* node) {
    std::memset(static_cast<void*>(&storage_), 0, sizeof(storage_));
    auto* object = reinterpret_cast<PyObject*>(&storage_);
    Py_SET_REFCNT(object, 1);
    Py_SET_TYPE(object, type);
    // The first word of an owning pointer, whichever torch uses, is the address.
    std::memcpy(
        reinterpret_cast<char*>(&storage_) + offsetof(THPCppFunction, cdata),
        static_cast<const void*>(&node),
        sizeof(node));
  }
  PyObject* object() {
    return reinterpret_cast<PyObject*>(&storage_);
  }

 private:
  std::aligned_storage_t<sizeof(THPCppFunction), alignof(THPCppFunction)> storage_;
};

Reader& reader_of(Node& node) {
  static auto* readers = new std::unordered_map<std::type_index, Reader>;
  if (const auto known = readers->find(std::type_index(typeid(node))); known != readers->end()) {
    return known->second;
  }
  Reader reader;
  // One node of each class gets a real object: nothing else knows the class's Python type. Making
  // it may let another thread have the GIL, which is to find no reader, or a whole one.
  py::object object =
      py::reinterpret_steal<py::object>(torch::autograd::functionToPyObject(node.getptr()));
  const auto keep = [&]() -> Reader& {
    return readers->try_emplace(std::type_index(typeid(node)), std::move(reader)).first->second;
  };
  if (!torch::autograd::THPCppFunction_Check(object.ptr())) {
    return keep();
  }
  reader.type = Py_TYPE(object.ptr());
  const char* dot = std::strrchr(reader.type->tp_name, '.');
  reader.is_shared =
      std::strcmp(dot != nullptr ? dot + 1 : reader.type->tp_name, "CppFunction") == 0;
  for (PyGetSetDef* at = reader.type->tp_getset; at != nullptr && at->name != nullptr; ++at) {
    if (std::strncmp(at->name, "_raw_saved_", 11) == 0) {
      reader.raw.push_back(Attribute{at->name + 11, at->get, at->closure});
    } else if (std::strcmp(at->name, "_saved_training") == 0) {
      reader.training = Attribute{at->name, at->get, at->closure};
    }
  }
  return keep();
}

// No collection, and so none of the program's finalizers, while a node's mutex is held.
class NoCollection {
 public:
  NoCollection() : was_on_(PyGC_Disable() != 0) {}
  NoCollection(const NoCollection&) = delete;
  NoCollection& operator=(const NoCollection&) = delete;
  ~NoCollection() {
    if (was_on_) {
      PyGC_Enable();
    }
  }

 private:
  bool was_on_;
};

void collect(std::vector<at::Tensor>& into, PyObject* value, int depth) {
  if (base::is_tensor(value)) {
    into.push_back(THPVariable_Unpack(value));
  } else if (depth > 0 && (PyTuple_Check(value) || PyList_Check(value))) {
    for (Py_ssize_t k = 0; k < std::min<Py_ssize_t>(PySequence_Fast_GET_SIZE(value), 64); ++k) {
      collect(into, PySequence_Fast_GET_ITEM(value, k), depth - 1);
    }
  } else if (depth > 0 && PyDict_CheckExact(value)) {
    PyObject *key = nullptr, *item = nullptr;
    Py_ssize_t at = 0;
    while (PyDict_Next(value, &at, &key, &item)) {
      collect(into, item, depth - 1);
    }
  }
}

void add(SavedItems& into, const char* attribute, int index, const SavedVariable& saved) {
  SavedItem item;
  item.attribute = attribute;
  item.index = index;
  item.facts = saved_facts(saved);
  if (saved.has_hooks()) {
    try {
      if (const auto data = saved.retrieve_unpack_hook_data()) {
        item.hooked_with = data->second.ptr(getPyInterpreter());
        collect(item.packed, data->second.ptr(getPyInterpreter()), 3);
      }
    } catch (const c10::Error&) {
      // Hooks of C++, which show nothing of what they packed.
    }
  }
  into.push_back(std::move(item));
}

// A member lies in the same place in all objects of one class.
void learn(Attribute& attribute, const Node& node, const SavedVariable& saved) {
  constexpr ptrdiff_t kLargest = 1 << 12;  // bytes of a node: further off it is no member of it
  const ptrdiff_t offset =
      reinterpret_cast<const char*>(&saved) - reinterpret_cast<const char*>(&node);
  if (offset <= 0 || offset > kLargest) {
    return;
  }
  attribute.is_sure = attribute.offset == offset && attribute.told_by != &node;
  attribute.offset = offset;
  attribute.told_by = &node;
}

void add_of_cpp(SavedItems& into, Node& node) {
  Reader& reader = reader_of(node);
  if (reader.raw.empty()) {
    return;
  }
  Stand stand(reader.type, &node);
  for (Attribute& attribute : reader.raw) {
    if (attribute.is_sure) {
      const char* at = reinterpret_cast<const char*>(&node) + attribute.offset;
      add(into, attribute.name, -1, *reinterpret_cast<const SavedVariable*>(at));
      continue;
    }
    py::object value =
        py::reinterpret_steal<py::object>(attribute.get(stand.object(), attribute.closure));
    if (!value) {
      PyErr_Clear();  // a list that has been released
      SavedItem item;
      item.attribute = attribute.name;
      item.facts.kind = "freed";
      into.push_back(std::move(item));
      continue;
    }
    if (PyTuple_Check(value.ptr()) || PyList_Check(value.ptr())) {
      for (Py_ssize_t k = 0; k < PySequence_Fast_GET_SIZE(value.ptr()); ++k) {
        py::handle item = PySequence_Fast_GET_ITEM(value.ptr(), k);
        if (!item.is_none()) {
          add(into, attribute.name, static_cast<int>(k), py::cast<const SavedVariable&>(item));
        }
      }
    } else if (!value.is_none()) {
      const auto& saved = py::cast<const SavedVariable&>(value);
      learn(attribute, node, saved);
      add(into, attribute.name, -1, saved);
    }
  }
}

}  // namespace

// The class's type information stays inside libtorch_python, so no cast can ask for it.
bool is_python_function(const Node& node) {
  return std::strcmp(typeid(node).name(), "N5torch8autograd6PyNodeE") == 0;
}

std::string SavedItem::label() const {
  return index < 0 ? attribute : std::string(attribute) + "[" + std::to_string(index) + "]";
}

SavedItems saved_items(Node& node, bool* is_busy) {
  SavedItems items;
  const bool is_python = is_python_function(node);
  std::unique_lock<std::mutex> lock;
  NoCollection none;
  if (!is_python) {  // there the GIL is what guards them
    lock = std::unique_lock<std::mutex>(state::mutex_of(node), std::try_to_lock);
    if (is_busy != nullptr) {
      *is_busy = !lock.owns_lock();
    }
    if (!lock.owns_lock()) {
      return items;
    }
  }
  if (auto* slices = dynamic_cast<CopySlices*>(&node)) {
    return slices->fn ? saved_items(*slices->fn, is_busy) : items;
  }
  if (is_python) {
    py::object object =
        py::reinterpret_steal<py::object>(torch::autograd::functionToPyObject(node.getptr()));
    if (PyType_IsSubtype(Py_TYPE(object.ptr()), &THPFunctionType) != 0) {
      const auto& saved = reinterpret_cast<THPFunction*>(object.ptr())->saved_variables;
      for (size_t k = 0; k < saved.size(); ++k) {
        add(items, "saved_tensors", static_cast<int>(k), saved[k]);
      }
    }
    return items;
  }
  add_of_cpp(items, node);
  return items;
}

const NodeClass& class_of(Node& node) {
  // By the address of the class's name: to hash the text would take longer than all that follows.
  static thread_local std::unordered_map<const void*, NodeClass> known;
  const char* name = typeid(node).name();
  const auto [place, is_new] = known.try_emplace(static_cast<const void*>(name));
  NodeClass& facts = place->second;
  if (is_new) {
    const auto starts = [&](const char* with) {
      return std::strncmp(name, with, std::strlen(with)) == 0;
    };
    const bool is_python = is_python_function(node);
    // _unsafe_view, unsafe_split and unsafe_split_with_sizes: all of torch's that do so.
    facts.is_alias = std::strstr(name, "Unsafe") != nullptr;
    facts.is_generated = starts("N5torch8autograd9generated");
    facts.is_torchs =
        starts("N5torch8autograd") && !is_python && !starts("N5torch8autograd7CppNode");
    if (!is_python && !is_outer(node)) {
      base::under_gil([&] { facts.may_save = !reader_of(node).raw.empty(); });
    }
  }
  return facts;
}

namespace {

constexpr Py_ssize_t kMostKept = 64;

void keep_tensors(std::vector<ContextItem>& into, std::string name, PyObject* value, int depth) {
  if (into.size() >= kMostKept) {
    return;
  }
  if (base::is_tensor(value)) {
    into.push_back(ContextItem{std::move(name), THPVariable_Unpack(value)});
  } else if (depth > 0 && (PyTuple_CheckExact(value) || PyList_CheckExact(value))) {
    const Py_ssize_t count = std::min(PySequence_Fast_GET_SIZE(value), kMostKept);
    for (Py_ssize_t k = 0; k < count; ++k) {
      keep_tensors(
          into,
          name + "[" + std::to_string(k) + "]",
          PySequence_Fast_GET_ITEM(value, k),
          depth - 1);
    }
  } else if (depth > 0 && PyDict_CheckExact(value)) {
    PyObject *key = nullptr, *item = nullptr;
    Py_ssize_t at = 0;
    while (PyDict_Next(value, &at, &key, &item)) {
      if (const char* text = PyUnicode_CheckExact(key) ? PyUnicode_AsUTF8(key) : nullptr) {
        keep_tensors(into, name + "['" + text + "']", item, depth - 1);
      }
      PyErr_Clear();
    }
  }
}

// Whether the class is one of torch's own Functions.
bool is_of_torch(PyTypeObject* type) {
  PyObject* forward = PyDict_GetItemString(type->tp_dict, "_forward_cls");
  if (forward == nullptr || !PyType_Check(forward)) {
    return true;
  }
  PyObject* module =
      PyDict_GetItemString(reinterpret_cast<PyTypeObject*>(forward)->tp_dict, "__module__");
  const char* name =
      module != nullptr && PyUnicode_CheckExact(module) ? PyUnicode_AsUTF8(module) : nullptr;
  return name == nullptr || std::strcmp(name, "torch") == 0 || std::strncmp(name, "torch.", 6) == 0;
}

}  // namespace

std::vector<ContextItem> context_items(Node& node) {
  std::vector<ContextItem> items;
  if (!is_python_function(node)) {
    return items;
  }
  py::object object =
      py::reinterpret_steal<py::object>(torch::autograd::functionToPyObject(node.getptr()));
  PyTypeObject* type = Py_TYPE(object.ptr());
  if (PyType_IsSubtype(type, &THPFunctionType) == 0 || is_of_torch(type)) {
    PyErr_Clear();
    return items;
  }
  py::object held =
      py::reinterpret_steal<py::object>(PyObject_GenericGetDict(object.ptr(), nullptr));
  if (held && PyDict_CheckExact(held.ptr())) {
    PyObject *key = nullptr, *value = nullptr;
    Py_ssize_t at = 0;
    while (PyDict_Next(held.ptr(), &at, &key, &value)) {
      const char* name = PyUnicode_CheckExact(key) ? PyUnicode_AsUTF8(key) : nullptr;
      if (name != nullptr) {
        keep_tensors(items, name, value, 2);
      }
    }
  }
  PyErr_Clear();
  return items;
}

bool is_nameless(Node& node) {
  return !is_python_function(node) && reader_of(node).is_shared;
}

bool is_outer(Node& node) {
  return dynamic_cast<CopySlices*>(&node) != nullptr;
}

bool is_freed(Node& node, const SavedItems& items) {
  if (is_python_function(node)) {
    py::object object =
        py::reinterpret_steal<py::object>(torch::autograd::functionToPyObject(node.getptr()));
    return THPFunction_Check(object.ptr()) &&
           reinterpret_cast<THPFunction*>(object.ptr())->has_freed_buffers;
  }
  return std::any_of(items.begin(), items.end(), [](const SavedItem& item) {
    return std::strcmp(item.facts.kind, "freed") == 0;
  });
}

bool is_unused(Node& node, const SavedItem& item) {
  if (std::strncmp(item.attribute, "running_", 8) != 0) {
    return false;
  }
  const Reader& reader = reader_of(node);
  if (reader.training.get == nullptr) {
    return true;
  }
  Stand stand(reader.type, &node);
  py::object value = py::reinterpret_steal<py::object>(
      reader.training.get(stand.object(), reader.training.closure));
  PyErr_Clear();
  return !value || value.ptr() == Py_True;
}

bool has_unused(Node& node) {
  if (is_python_function(node) || is_outer(node)) {
    return false;
  }
  const Reader& reader = reader_of(node);
  return std::any_of(reader.raw.begin(), reader.raw.end(), [](const Attribute& attribute) {
    return std::strncmp(attribute.name, "running_", 8) == 0 ||
           std::strcmp(attribute.name, "log_alpha") == 0;
  });
}

}  // namespace gradext::graph
