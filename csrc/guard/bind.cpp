#include "guard/bind.h"

#include "fingerprint/fingerprint.h"
#include "guard/device_saves.h"
#include "guard/lines/exposed.h"
#include "guard/lines/trace.h"
#include "guard/recompute.h"
#include "guard/reports.h"
#include "guard/saves.h"
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
    entry_ = std::make_shared<Entry>(tensor);
    entry_->take(bytes_in(tensor), journal::Journal::get().order());
    version_ = state::version(*tensor.unsafeGetTensorImpl());
    {
      journal::Journal& journal = journal::Journal::get();
      std::lock_guard lock(journal.mutex);
      number_ = journal.identify(entry_->storage, entry_->order);
    }
    watch_lines(entry_, tensor);
    if (after_every_op) {
      watch_storage(entry_->storage);
    }
  }
  // `object` is what an unpack hook made of it, for the node that runs now: what there is to tell
  // if it is the same memory with other bytes, or a copy from before the op had filled it; else
  // None.
  py::object unpacked(py::handle object) {
    const at::Tensor& tensor = unpack(object);
    const auto node = torch::autograd::get_current_node();
    if (!node || !fingerprint::can_fingerprint(tensor)) {
      return py::none();
    }
    const bool is_copy = state::storage(*tensor.unsafeGetTensorImpl()) != entry_->storage;
    if (!is_copy && !entry_->is_outline_of(tensor)) {
      return py::none();  // what the hooks made of it
    }
    look_now();
    if ((bytes_in(tensor) == entry_->value) != is_copy) {
      return py::none();
    }
    const uint64_t filled = filled_by(*node);
    if (is_copy ? filled == 0 : filled != 0 && !is_written_after(filled)) {
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
    if (is_copy) {
      out["filled"] = filled;
    }
    return out;
  }
  // None while it is what it was; else what is known of the change.
  py::object changed() {
    look_now();
    const at::Tensor tensor = locked(entry_->tensor);
    if (!tensor.defined() || !fingerprint::can_fingerprint(tensor)) {
      return py::none();
    }
    if (bytes_in(tensor) == entry_->value) {
      return py::none();
    }
    py::dict out;
    out["storage"] = state::opaque_id(entry_->storage);
    out["counter"] = state::opaque_id(state::counter_address(*tensor.unsafeGetTensorImpl()));
    const Change change = change_of(*entry_);
    out["order"] = entry_->order;
    out["line"] = change.line;
    out["after"] = change.after;
    out["before"] = change.before;
    return out;
  }

 private:
  // The number of the write by which the op that made the node filled the tensor after it had saved
  // it; 0 if there is none. A batch norm in training updates what it saves and does not read.
  uint64_t filled_by(const Node& node) const {
    if (node.name().find("Norm") != std::string::npos) {
      return 0;
    }
    journal::Journal& journal = journal::Journal::get();
    std::lock_guard lock(journal.mutex);
    for (size_t k = first_after(journal, entry_->order); k < journal.writes.size(); ++k) {
      const journal::Write& write = journal.writes.at(k);
      if (write.thread != node.thread_id()) {
        continue;
      }
      if (write.sequence > node.sequence_nr()) {
        break;
      }
      if (write.storage == number_ && (write.flags & journal::kNote) == 0) {
        return write.order;
      }
    }
    return 0;
  }
  // Whether an op has written to the memory after that.
  bool is_written_after(uint64_t order) const {
    journal::Journal& journal = journal::Journal::get();
    std::lock_guard lock(journal.mutex);
    for (size_t k = first_after(journal, order); k < journal.writes.size(); ++k) {
      const journal::Write& write = journal.writes.at(k);
      if (write.storage == number_ && (write.flags & journal::kNote) == 0) {
        return true;
      }
    }
    return false;
  }
  // The index of the first write with a greater number.
  static size_t first_after(const journal::Journal& journal, uint64_t order) {
    size_t low = 0, high = journal.writes.size();
    while (low < high) {
      const size_t middle = (low + high) / 2;
      if (journal.writes.at(middle).order <= order) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
  static const at::Tensor& unpack(py::handle object) {
    if (!base::is_tensor(object.ptr())) {
      throw py::type_error("expected a torch.Tensor");
    }
    return THPVariable_Unpack(object.ptr());
  }
  std::shared_ptr<Entry> entry_;
  int64_t version_ = 0;
  uint64_t number_ = 0;  // of the storage, in the journal
};

}  // namespace

void bind(py::module_& m) {
  py::class_<Wants>(m, "guard_wants")
      .def(
          py::init<bool, bool, bool>(),
          py::arg("all"),
          py::arg("watches"),
          py::arg("whole_program"));
  m.def(
      "guard_start",
      [](const Wants& wants, const py::object& on_finding, const py::object& is_user_file) {
        report_to(on_finding);
        judge_files_by(is_user_file);
        switch_on(wants);
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
    out["taken"] = taken_at_saves.load();
    return out;
  });
}

}  // namespace gradext::guard
