#include "findings/refusals.h"

#include "findings/findings_detail.h"
#include "journal/journal.h"
#include "journal/origins.h"
#include "state/state.h"

#include <algorithm>
#include <mutex>
#include <set>
#include <unordered_map>

namespace gradext::findings {

using namespace detail;

namespace {

using Line = std::pair<PyObject*, int>;  // a file's name, and a line

bool is_same_file(PyObject* a, PyObject* b) {
  return a == b || (PyUnicode_Check(a) && PyUnicode_Check(b) && PyUnicode_Compare(a, b) == 0);
}

// The file and line of each frame; the names live as long as the code objects, which stacks keep.
const std::vector<Line>& lines_of(stacks::StackId stack) {
  static auto* known = new std::unordered_map<stacks::StackId, std::vector<Line>>;
  const auto [at, is_new] = known->try_emplace(stack);
  if (is_new) {
    for (const stacks::Frame& frame : stacks::stack_frames(stack)) {
      if (frame.code != nullptr) {
        at->second.emplace_back(
            frame.code->co_filename, PyCode_Addr2Line(frame.code, frame.instruction));
      }
    }
  }
  return at->second;
}

struct Trace {
  uint64_t place = 0;
  std::vector<Line> lines;

  explicit Trace(PyObject* traceback) {
    // Of the type itself: nobody can have changed what its fields are.
    while (traceback != nullptr && PyTraceBack_Check(traceback)) {
      const auto* at = reinterpret_cast<PyTracebackObject*>(traceback);
      PyCodeObject* code = PyFrame_GetCode(at->tb_frame);
      place = place_within(place, code, at->tb_lasti);
      lines.emplace_back(code->co_filename, PyCode_Addr2Line(code, at->tb_lasti));
      Py_DECREF(code);  // the frame has it
      traceback = reinterpret_cast<PyObject*>(at->tb_next);
    }
  }
  bool meets(stacks::StackId stack) const {
    for (const Line& there : lines_of(stack)) {
      for (const Line& here : lines) {
        if (here.second == there.second && is_same_file(here.first, there.first)) {
          return true;
        }
      }
    }
    return false;
  }
};

std::string stripped(const std::string& text) {
  constexpr const char* kBlank = " \t\n\r\f\v";
  const size_t first = text.find_first_not_of(kBlank);
  return first == std::string::npos ? std::string()
                                    : text.substr(first, text.find_last_not_of(kBlank) + 1 - first);
}

bool is_about(const journal::Refused& event, const std::string& text) {
  const std::string what = stripped(event.what);
  return !what.empty() &&
         (text.find(what) != std::string::npos || what.find(text) != std::string::npos);
}

// What a key takes from the birth of an inference tensor.
struct Born {
  uint32_t op = 0;
  stacks::StackId stack = 0, mode = 0;
};

Born born(const void* storage, int64_t tensor) {
  journal::Origins& origins = journal::Origins::get();
  std::lock_guard lock(origins.mutex);
  const journal::Birth* birth = storage != nullptr ? origins.births.find(storage) : nullptr;
  if (birth == nullptr) {
    // Where the table has this address, the tensor that it held is not gone (base::Hold).
    birth = origins.births.find(reinterpret_cast<const void*>(tensor));
  }
  return birth != nullptr ? Born{birth->op, birth->stack, birth->mode} : Born{};
}

// The views of the refused tensor's memory that no node remembers. When the first was made.
uint64_t append_views(Finding& finding, journal::Journal& journal, const journal::Refused& event) {
  uint64_t first = UINT64_MAX;
  std::set<std::pair<uint64_t, uint64_t>> seen;
  for (size_t k = journal.views.size(); k > 0; --k) {
    const journal::View& view = journal.views.at(k - 1);
    if (view.storage != event.storage || view.order > event.order) {
      continue;
    }
    first = std::min(first, view.order);
    const uint64_t facts =
        (static_cast<uint64_t>(view.op) << 32) | (view.flags << 2) |
        (view.tensor == event.tensor ? 2 : 0) |
        (view.extent.begin <= event.extent.begin && event.extent.end <= view.extent.end ? 1 : 0);
    if (seen.emplace(facts, place_of(view.stack)).second) {
      append(finding.places, facts);
      append(finding.places, place_of(view.stack));
    }
  }
  return first;
}

// The lines that wrote a storage after `order`, the newest first.
void append_writes(Finding& finding, journal::Journal& journal, uint64_t storage, uint64_t order) {
  std::set<std::pair<uint64_t, uint64_t>> seen;
  for (size_t k = journal.writes.size(); k > 0; --k) {
    const journal::Write& write = journal.writes.at(k - 1);
    if (write.order <= order) {
      break;
    }
    const bool is_counted = write.version_after > write.version_before;
    if (write.storage != storage || (write.flags & journal::kNote) != 0 || !is_counted) {
      continue;
    }
    if (seen.emplace(write.op, place_of(write.stack)).second) {
      append(finding.places, write.op);
      append(finding.places, place_of(write.stack));
      append(
          finding.details,
          (static_cast<uint64_t>(write.version_before) << 32) | write.version_after);
    }
  }
}

}  // namespace

Finding refused(const std::string& text, PyObject* traceback, bool is_backward, uint64_t since) {
  Finding finding;
  finding.found = true;
  const Trace trace(traceback);
  const std::string wanted = stripped(text);
  journal::Journal& journal = journal::Journal::get();
  std::lock_guard lock(journal.mutex);
  append(finding.places, trace.place);
  append(finding.places, is_backward ? place_of(call_of(journal)) : 0);
  const journal::Refused* event = nullptr;
  for (auto at = journal.refused.rbegin(); at != journal.refused.rend(); ++at) {
    if (at->order <= since || !is_about(*at, wanted)) {
      continue;
    }
    if (trace.meets(at->stack)) {
      event = &*at;
      break;
    }
    event = event == nullptr ? &*at : event;
  }
  if (event == nullptr) {
    finding.found = false;  // what the diagnosis finds out without one is not known here
    return finding;
  }
  // All that one call refused.
  for (const journal::Refused& each : journal.refused) {
    if (each.order != event->order) {
      continue;
    }
    append(finding.places, place_of(each.stack));
    append(finding.places, each.op);
    append(
        finding.places,
        (static_cast<uint64_t>(each.creation_meta + 1) << 8) | (each.is_view ? 1 : 0) |
            (each.is_leaf ? 2 : 0) | (each.requires_grad ? 4 : 0) | (each.base_is_leaf ? 8 : 0) |
            (each.is_inference ? 16 : 0) | (each.is_leftover ? 32 : 0) | (each.grad_mode ? 64 : 0));
    for (const auto& [name, node] : each.chain) {
      append(finding.places, name.c_str());
      append_node(finding.places, journal, node);
    }
    if (each.is_view) {
      append_views(finding, journal, each);
    }
    if (each.is_inference || each.is_leftover) {
      const Born birth = born(journal.identities.address_of(each.storage), each.tensor);
      append(finding.places, birth.op);
      append(finding.places, place_of(birth.stack));
      append(finding.places, place_of(birth.mode));
    }
  }
  // Of a view of a leaf the message names the leaf.
  finding.tensor = event->base_is_leaf && !event->is_inference ? event->base : event->tensor;
  return finding;
}

Finding used(const at::Tensor& view, PyObject* traceback) {
  constexpr int kMostNodes = 16;  // as gradext.rules.codes.gx102_106_refused_write follows
  Finding finding;
  finding.found = true;
  const Trace trace(traceback);
  const c10::TensorImpl& impl = *view.unsafeGetTensorImpl();
  finding.tensor = state::opaque_id(&impl);
  journal::Journal& journal = journal::Journal::get();
  std::lock_guard lock(journal.mutex);
  append(finding.places, trace.place);
  const auto* node = graph::node_of(view);
  for (int k = 0; node != nullptr && k < kMostNodes; ++k) {
    append(finding.places, node->name().c_str());
    append_node(finding.places, journal, {node->thread_id(), node->sequence_nr()});
    node = node->num_outputs() > 0 && node->next_edge(0).function ? &*node->next_edge(0).function
                                                                  : nullptr;
  }
  journal::Refused now;
  now.order = UINT64_MAX;
  now.tensor = finding.tensor;
  now.storage = journal.identities.known(state::storage(impl));
  const uint64_t made = append_views(finding, journal, now);
  // One that was made before the recording began is older than all that is known.
  append_writes(finding, journal, now.storage, made == UINT64_MAX ? 0 : made);
  return finding;
}

}  // namespace gradext::findings
