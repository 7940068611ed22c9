#include "guard/bind.h"

#include "fingerprint/fingerprint.h"
#include "guard/device_saves.h"
#include "guard/lines/exposed.h"
#include "guard/lines/trace.h"
#include "guard/recompute.h"
#include "guard/reports.h"
#include "guard/switch.h"
#include "journal/journal.h"
#include "state/state.h"

#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <memory>

namespace py = pybind11;

namespace gradext::guard {
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
    entry_->order = journal::Journal::get().order();
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
    graph::SavedFacts facts;
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
    if (!base::is_tensor(object.ptr())) {
      throw py::type_error("expected a torch.Tensor");
    }
    return THPVariable_Unpack(object.ptr());
  }
  std::shared_ptr<Entry> entry_;
  int64_t version_ = 0;
};

}  // namespace

void bind(py::module_& m) {
  m.def("guard_start", [](const py::object& on_finding, const py::object& is_user_file) {
    report_to(on_finding);
    judge_files_by(is_user_file);
    switch_on();
  });
  m.def("guard_stop", &switch_off);
  py::class_<Watch>(m, "guard_watch")
      .def(py::init<py::handle, bool>())
      .def("changed", &Watch::changed)
      .def("unpacked", &Watch::unpacked);
  bind_recompute(m);
}

void bind_testing(py::module_& m) {
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
}

}  // namespace gradext::guard
