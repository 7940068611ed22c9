#include "recorder/python/bind.h"

#include "journal/snapshot.h"
#include "recorder/before_writes.h"
#include "recorder/lost_gradients/lost_values.h"
#include "recorder/lost_gradients/python_crossings.h"
#include "recorder/python/backward.h"
#include "recorder/python/c_entry_points.h"
#include "recorder/python/wrappers.h"
#include "recorder/record_times.h"
#include "recorder/record_uses.h"
#include "recorder/switch.h"

#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <mutex>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace gradext::recorder {
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

py::dict memory() {
  size_t saves = 0, held = 0, identities = 0, limit = 0, births = 0, flows = 0;
  std::vector<std::tuple<std::string, size_t, size_t>> rings;  // name, events, bytes of one
  const StackStats stacks = stack_stats();
  {
    py::gil_scoped_release release;
    Journal& journal = Journal::get();
    std::lock_guard lock(journal.mutex);
    journal.each_ring([&](const char* name, auto& ring, size_t) {
      rings.emplace_back(name, ring.size(), ring.event_bytes());
      held += ring.capacity_bytes();
    });
    identities = journal.identities.size();
    limit = journal.memory();
    held += journal.backward_nodes * sizeof(NodeId) + journal.identities.bytes() +
            journal.geometry_bytes();
    for (const auto& log : journal.save_logs) {
      std::lock_guard log_lock(log->mutex);
      saves += log->saves.size();
      held += log->saves.capacity_bytes();
    }
    Origins& origins = Origins::get();
    std::lock_guard origins_lock(origins.mutex);
    births = origins.births.size();
    flows = origins.flows.size() + origins.past.size();
    held += origins.bytes() + before_bytes();
  }
  py::dict out;
  for (const auto& [name, events, bytes] : rings) {
    out[py::str(name)] = events;
    out[py::str(name.substr(0, name.size() - 1) + "_bytes")] = bytes;  // "write_bytes"
  }
  out["save_bytes"] = kSaveBytes;
  out["birth_bytes"] = kBirthBytes;
  out["flow_bytes"] = kFlowBytes;
  out["limit_bytes"] = limit;
  out["held_bytes"] = held;
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
  // Why a backward is looked at before it runs: bits of what wrap_backward's on_suspicion is given.
  py::dict suspicions;
  suspicions["UNCOUNTED_WRITE"] = int{kUncountedWrite};
  suspicions["LEAF_ROOT"] = int{kLeafRoot};
  suspicions["CONSTANT_TERM"] = int{kConstantTerm};
  suspicions["REBUILT_LEAF"] = int{kRebuiltLeaf};
  suspicions["LOST_LEAVES"] = int{kLostLeaves};
  suspicions["STARVED_LEAVES"] = int{kStarvedLeaves};
  suspicions["HELD_LEAVES"] = int{kHeldLeaves};
  suspicions["TRAINING"] = int{kTraining};
  m.attr("SUSPICIONS") = suspicions;
  m.def("recorder_stop", [](bool saves, bool births, bool cuts) { stop({saves, births, cuts}); });
  // One recording more (1) or less (-1) that wants these, with so many bytes of room.
  m.def("recorder_want_uses", &want_uses);
  m.def("recorder_want_times", &want_times);
  m.def("recorder_active", &active);
  m.def("recorder_judged", &judged);
  m.def("recorder_lost_told", &lost_was_told);
  bind_snapshot(m);
  m.def("recorder_frames", &frames);
  m.def("recorder_stack", [] { return pinned(capture_stack()); });
  m.def("recorder_memory", &memory);
  m.def("recorder_keys", [] { return py::make_tuple(kKey, kNodeKey); });
  m.def("recorder_faults", [] {
    const Faults found = faults();
    return py::make_tuple(found.count, found.last);
  });
  bind_hooks(m);
  bind_entries(m);
}

void bind_testing(py::module_& m) {
  m.def("recorder_inject_fault", &inject_fault);
  bind_hooks_testing(m);
}

}  // namespace gradext::recorder
