#include "guard/bind.h"

#include "base/aside.h"
#include "base/signals.h"
#include "graph/saved_items.h"
#include "recorder/python/bind.h"
#include "state/state.h"

#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_cpp_function.h>

namespace py = pybind11;

namespace gradext::guard {
namespace {

// gradext.byte_guard.guard._on_finding(kind, facts); never destroyed.
PyObject* on_finding = nullptr;

// Throws a recorder::Stop where the program is to be stopped.
template <class Fill>
void tell(const char* kind, Fill&& fill) {
  recorder::under_gil([&] {
    if (on_finding == nullptr) {
      return;
    }
    py::dict facts;
    fill(facts);
    // The callback counts its own errors: what it raises is meant for the program.
    recorder::call_back(on_finding, py::make_tuple(kind, facts));
  });
}

py::tuple pair(const recorder::NodeId& id) {
  return py::make_tuple(id.thread, id.sequence);
}

}  // namespace

Told told_of(Node& node, const std::string& label, const state::SavedFacts& facts) {
  Told told;
  recorder::under_gil([&] {
    py::dict out;
    // Only for the code of a Function of Python's, which has an object: one that is made for a node
    // of C++ would live as long as that.
    out["node"] = py::none();
    if (is_python_function(node)) {
      out["node"] =
          py::reinterpret_steal<py::object>(torch::autograd::functionToPyObject(node.getptr()));
    }
    out["name"] = node.name();
    out["id"] = pair({node.thread_id(), node.sequence_nr()});
    out["attribute"] = label;
    out["saved"] = recorder::facts_of_saved(facts);
    out["now"] = recorder::capture_stack();
    told.facts = std::shared_ptr<py::dict>(new py::dict(std::move(out)), [](py::dict* held) {
      recorder::under_gil([&] { delete held; });  // kept where the interpreter is gone
    });
  });
  return told;
}

namespace {

void add_change(py::dict& out, const Entry& entry) {
  out["is_hooked"] = entry.is_hooked;
  out["order"] = entry.order;
  out["line"] = entry.change.line;
  out["after"] = entry.change.after;
  out["before"] = entry.change.before;
}

}  // namespace

void tell_changed(const Told& told, const Entry& entry) {
  if (!told.facts) {
    return;
  }
  tell("saved", [&](py::dict& out) {
    out = *told.facts;
    add_change(out, entry);
  });
}

void tell_gradient(const SharedGradient& found) {
  tell("gradient", [&](py::dict& out) {
    out["storage"] = found.storage;
    out["since"] = found.since;
    out["until"] = found.until;
    out["producer"] = found.producer;
    out["producer_id"] = pair(found.producer_id);
    out["writer"] = found.writer;
    out["writer_id"] = pair(found.writer_id);
    out["consumer"] = found.consumer;
    out["counted"] = found.counted;
  });
}

void tell_overlap(const Overlap& found, const std::string& op) {
  tell("overlap", [&](py::dict& out) {
    const c10::TensorImpl& impl = *found.written.unsafeGetTensorImpl();
    out["op"] = op;
    out["sizes"] = found.sizes;
    out["strides"] = found.strides;
    out["written_sizes"] = state::has_sizes(impl) ? impl.sizes().vec() : std::vector<int64_t>();
    out["made"] = found.made;
    out["line"] = found.line;
  });
}

namespace {

// A tensor that the program wants to know unchanged (guard(model)), or that a pack hook was given.
class Watch {
 public:
  Watch(py::handle object, bool after_every_op) {
    const at::Tensor& tensor = unpack(object);
    if (!fingerprint::can_fingerprint(tensor)) {
      throw py::value_error("a tensor without bytes on the CPU");
    }
    entry_ = std::make_shared<Entry>(tensor, fingerprint::of_cpu(tensor));
    entry_->last = entry_->value;
    entry_->order = recorder::Journal::get().order();
    entry_->storage = state::storage(*tensor.unsafeGetTensorImpl());
    version_ = state::version(*tensor.unsafeGetTensorImpl());
    watch_lines(entry_, tensor);
    if (after_every_op) {
      watch_storage(entry_->storage);
    }
  }
  // `object` is what an unpack hook made of it, for the node that runs now: what there is to tell
  // if it is the same memory with other bytes, else None.
  py::object unpacked(py::handle object) {
    const at::Tensor& tensor = unpack(object);
    if (!fingerprint::can_fingerprint(tensor) ||
        state::storage(*tensor.unsafeGetTensorImpl()) != entry_->storage) {
      return py::none();
    }
    look_now();
    const auto node = torch::autograd::get_current_node();
    if (!node || fingerprint::of_cpu(tensor) == entry_->value) {
      return py::none();
    }
    state::SavedFacts facts;
    facts.kind = "hooked";
    facts.tensor = tensor;
    facts.saved_version = static_cast<uint32_t>(std::max<int64_t>(version_, 0));
    const Told told = told_of(*node, "saved", facts);
    if (!told.facts) {
      return py::none();
    }
    py::dict out = *told.facts;
    entry_->is_hooked = true;
    add_change(out, *entry_);
    return out;
  }
  // None while it is what it was; else what is known of the change.
  py::object changed() {
    look_now();
    const at::Tensor tensor = locked(entry_->tensor);
    if (!tensor.defined() || !fingerprint::can_fingerprint(tensor)) {
      return py::none();
    }
    if (fingerprint::of_cpu(tensor) == entry_->value) {
      return py::none();
    }
    py::dict out;
    out["storage"] = state::opaque_id(entry_->storage);
    out["counter"] = state::opaque_id(state::counter_address(*tensor.unsafeGetTensorImpl()));
    out["order"] = entry_->order;
    out["line"] = entry_->change.line;
    out["after"] = entry_->change.after;
    out["before"] = entry_->change.before;
    return out;
  }

 private:
  static const at::Tensor& unpack(py::handle object) {
    if (!recorder::is_tensor(object.ptr())) {
      throw py::type_error("expected a torch.Tensor");
    }
    return THPVariable_Unpack(object.ptr());
  }
  std::shared_ptr<Entry> entry_;
  int64_t version_ = 0;
};

}  // namespace

void bind(py::module_& m) {
  m.def("guard_start", [](const py::object& callback) {
    Py_XDECREF(on_finding);
    on_finding = callback.inc_ref().ptr();
    switch_on();
  });
  m.def("guard_stop", &switch_off);
  m.def("guard_defer", [](bool all) { defers_all = all; });
  m.def("guard_facts", [] {
    const LineFacts facts = line_facts();
    py::dict out;
    out["entries"] = facts.entries;
    out["exposed"] = facts.exposed;
    out["looks"] = facts.looks;
    out["armed"] = facts.armed;
    return out;
  });
  py::class_<Watch>(m, "guard_watch")
      .def(py::init<py::handle, bool>())
      .def("changed", &Watch::changed)
      .def("unpacked", &Watch::unpacked);
}

}  // namespace gradext::guard
