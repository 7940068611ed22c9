#include "guard/reports.h"

#include "base/aside.h"
#include "base/signals.h"
#include "graph/bind.h"
#include "graph/saved_items.h"
#include "guard/lines/exposed.h"
#include "state/state.h"

#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_cpp_function.h>

#include <utility>

namespace py = pybind11;

namespace gradext::guard {
namespace {

// gradext.byte_guard.guard._on_finding(kind, facts); never destroyed.
PyObject* on_finding = nullptr;

// Throws a base::Stop where the program is to be stopped.
template <class Fill>
void tell(const char* kind, Fill&& fill) {
  base::under_gil([&] {
    if (on_finding == nullptr) {
      return;
    }
    py::dict facts;
    fill(facts);
    // The callback counts its own errors: what it raises is meant for the program.
    base::call_back(on_finding, py::make_tuple(kind, facts));
  });
}

py::tuple pair(const journal::NodeId& id) {
  return py::make_tuple(id.thread, id.sequence);
}

}  // namespace

void report_to(const py::object& callback) {
  Py_XDECREF(on_finding);
  on_finding = callback.inc_ref().ptr();
}

Told told_of(Node& node, const std::string& label, const graph::SavedFacts& facts) {
  Told told;
  base::under_gil([&] {
    py::dict out;
    // Only for the code of a Function of Python's, which has an object: one that is made for a node
    // of C++ would live as long as that.
    out["node"] = py::none();
    if (graph::is_python_function(node)) {
      out["node"] =
          py::reinterpret_steal<py::object>(torch::autograd::functionToPyObject(node.getptr()));
    }
    out["name"] = node.name();
    out["id"] = pair({node.thread_id(), node.sequence_nr()});
    out["attribute"] = label;
    out["saved"] = graph::facts_of_saved(facts);
    out["now"] = stacks::capture_stack();
    told.facts = std::shared_ptr<py::dict>(new py::dict(std::move(out)), [](py::dict* held) {
      base::under_gil([&] { delete held; });  // kept where the interpreter is gone
    });
  });
  return told;
}

void add_change(py::dict& out, const Entry& entry) {
  const Change change = change_of(entry);
  out["is_hooked"] = entry.is_hooked.load();
  out["order"] = entry.order;
  out["line"] = change.line;
  out["after"] = change.after;
  out["before"] = change.before;
}

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

}  // namespace gradext::guard
