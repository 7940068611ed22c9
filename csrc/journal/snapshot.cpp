#include "journal/snapshot.h"

#include "base/system_memory.h"
#include "journal/journal.h"
#include "journal/names.h"
#include "journal/origins.h"
#include "stacks/stacks.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

namespace py = pybind11;

namespace gradext::journal {

using base::FromSystem;
using base::Hold;

base::Mutex<base::Rank::kSnapshots>& snapshots_mutex() {
  static auto* mutex = new base::Mutex<base::Rank::kSnapshots>;
  return *mutex;
}

namespace {

// A journal has many events of few stacks, whose ids are mostly near each other: marking them takes
// less time than sorting.
void keep_one_of_each(std::vector<StackId>& stacks) {
  const auto [least, most] = std::minmax_element(stacks.begin(), stacks.end());
  const size_t range = stacks.empty() ? 0 : size_t{*most} - *least + 1;
  if (range > 64 * stacks.size()) {
    std::sort(stacks.begin(), stacks.end());
    stacks.erase(std::unique(stacks.begin(), stacks.end()), stacks.end());
    return;
  }
  const StackId first = stacks.empty() ? 0 : *least;
  std::vector<bool> is_named(range);
  for (const StackId stack : stacks) {
    is_named[stack - first] = true;
  }
  stacks.clear();
  for (size_t k = 0; k < range; ++k) {
    if (is_named[k]) {
      stacks.push_back(first + static_cast<StackId>(k));
    }
  }
}

// Keeps the addresses in a snapshot from being used again, and so their meaning; and its stacks
// from being forgotten.
class Held {
 public:
  Held() {
    std::lock_guard lock(snapshots_mutex());
    all().insert(this);
  }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  ~Held() {
    std::lock_guard lock(snapshots_mutex());
    all().erase(this);
  }
  void add_stacks(std::vector<StackId>&& more) {
    keep_one_of_each(more);
    std::lock_guard lock(snapshots_mutex());
    stacks_.insert(stacks_.end(), more.begin(), more.end());
  }
  static void name_all(std::vector<StackId>& stacks) {
    std::lock_guard lock(snapshots_mutex());
    for (const Held* held : all()) {
      stacks.insert(stacks.end(), held->stacks_.begin(), held->stacks_.end());
    }
  }

  std::vector<Hold, FromSystem<Hold>> holds;

 private:
  static std::unordered_set<const Held*>& all() {
    static auto* held = new std::unordered_set<const Held*>;
    return *held;
  }
  std::vector<StackId> stacks_;
};

// Equal ones mostly follow each other.
void name(std::vector<StackId>& stacks, StackId stack) {
  if (stack != 0 && (stacks.empty() || stacks.back() != stack)) {
    stacks.push_back(stack);
  }
}

// What events name, those of the journal and those of snapshots that are still there.
void name_stacks(std::vector<StackId>& stacks) {
  Journal& journal = Journal::get();
  {
    std::lock_guard lock(journal.mutex);
    journal.each_ring([&](const char*, auto& ring, size_t) {
      ring.each([&](const auto& e) { name(stacks, e.stack); });
    });
    for (const auto& log : journal.save_logs) {
      std::lock_guard log_lock(log->mutex);
      log->saves.each([&](const Save& e) { name(stacks, e.stack); });
    }
    for (const Backward& e : journal.backwards) {
      name(stacks, e.stack);
    }
    for (const Refused& e : journal.refused) {
      name(stacks, e.stack);
    }
  }
  Origins& origins = Origins::get();
  {
    std::lock_guard lock(origins.mutex);
    origins.each_stack([&](StackId stack) { name(stacks, stack); });
  }
  name(stacks, stacks::backward_stack());
  Held::name_all(stacks);
}

using Values = std::vector<int64_t, FromSystem<int64_t>>;

// The rows of one table. `Column`: its columns, see events.h.
template <class Column>
struct Table {
  static constexpr size_t kWidth = Column::kCount;

  Values values;
  void row(const std::array<int64_t, kWidth>& facts) {
    values.insert(values.end(), facts.begin(), facts.end());
  }
  void reserve(size_t rows) {
    values.reserve(rows * kWidth);
  }
  // Adds the numbers of ops, which stand in the columns of these names, and of attributes.
  void collect_ops(std::unordered_set<int64_t>& into) const {
    for (size_t column = 0; column < kWidth; ++column) {
      const std::string_view name = Column::kNames[column];
      if (name == "op" || name == "inner_op" || name == "attribute") {
        int64_t last = -1;  // equal ones mostly follow each other
        for (size_t k = column; k < values.size(); k += kWidth) {
          if (values[k] != last) {
            into.insert(last = values[k]);
          }
        }
      }
    }
  }
  // The array takes the values over: a full journal's are tens of megabytes, and several threads
  // may be told of their errors at the same time.
  py::array_t<int64_t> array() {
    const auto rows = static_cast<py::ssize_t>(values.size() / kWidth);
    auto held = std::make_unique<Values>(std::move(values));
    int64_t* data = held->data();
    py::capsule owner(held.get(), [](void* at) { delete static_cast<Values*>(at); });
    held.release();
    return py::array_t<int64_t>({rows, static_cast<py::ssize_t>(kWidth)}, data, owner);
  }
};

#define GRADEXT_COLUMN_VALUE(name, value) static_cast<int64_t>(value),

int64_t number(uint64_t value) {
  return static_cast<int64_t>(value);
}

// Everything that a snapshot takes from the journal, as plain C++: no Python object may be made
// under the journal's mutex (a collection may run anything), nor the GIL be waited for.
struct Copied {
#define GRADEXT_TABLE(table, Event, COLUMNS, sixteenths) Table<Event##Column> table;
  GRADEXT_TABLES(GRADEXT_TABLE)
#undef GRADEXT_TABLE
  std::vector<Backward> backwards;
  std::vector<std::pair<int64_t, Refused>> refused;  // with the storage as shown
  std::vector<std::vector<int64_t>> geometries;
  std::unique_ptr<Held> held = std::make_unique<Held>();
  std::map<std::string, size_t> dropped;  // by the name of the table
  uint64_t order = 0;
};

int64_t address(const void* target) {
  return static_cast<int64_t>(reinterpret_cast<intptr_t>(target));
}

int64_t bits_of(double value) {
  int64_t bits = 0;
  static_assert(sizeof(bits) == sizeof(value));
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

void copy_flow(Table<FlowColumn>& into, const Flow& e, bool lives) {
  into.row({GRADEXT_FLOW_COLUMNS(GRADEXT_COLUMN_VALUE)});
}

constexpr uint64_t kNoNode = UINT64_MAX;  // -1 in a table

// Only births and flags of what lives; the flows of the dead as far as they reach back.
void copy_origins(Copied& out) {
  Origins& origins = Origins::get();
  std::lock_guard lock(origins.mutex);
  std::vector<StackId> stacks;
  origins.each_stack([&](StackId stack) { name(stacks, stack); });
  out.held->add_stacks(std::move(stacks));
  origins.births.each([&](const void* target, const Birth& e) {
    out.held->holds.emplace_back(target);
    const int64_t key = address(target);
    out.births.row({GRADEXT_BIRTH_COLUMNS(GRADEXT_COLUMN_VALUE)});
  });
  out.flows.reserve(origins.past.size() + origins.flows.size());
  origins.past.each([&](const Flow& e) { copy_flow(out.flows, e, false); });
  origins.flows.each_dead([&](const Flow& e) { copy_flow(out.flows, e, false); });
  origins.flows.each([&](const void* target, const Flow& e) {
    out.held->holds.emplace_back(target);
    copy_flow(out.flows, e, true);
  });
  origins.flags.each([&](const void* target, const FlagChange& e) {
    out.held->holds.emplace_back(target);
    const int64_t key = address(target);
    out.flags.row({GRADEXT_FLAG_COLUMNS(GRADEXT_COLUMN_VALUE)});
  });
  out.dropped["flows"] = origins.past.dropped() + origins.flows.dropped();
  out.dropped["births"] = origins.births.dropped();
}

Copied copy_journal(uint64_t since) {
  Journal& journal = Journal::get();
  Copied out;
  std::lock_guard lock(journal.mutex);
  // The living go by their addresses, which is what everybody else knows of them; the dead by
  // numbers that nothing else has.
  std::unordered_map<uint64_t, const void*> living;
  living.reserve(journal.identities.size());
  journal.identities.each(
      [&](const void* target, uint64_t identity) { living.emplace(identity, target); });
  std::unordered_map<uint64_t, int64_t> shown;
  const auto show = [&](uint64_t identity) -> int64_t {
    if (identity == 0) {
      return 0;
    }
    auto [place, is_new] = shown.emplace(identity, -number(identity));
    const auto found = is_new ? living.find(identity) : living.end();
    if (found != living.end()) {
      out.held->holds.emplace_back(found->second);
      place->second = address(found->second);
    }
    return place->second;
  };
  std::vector<StackId> stacks;
#define GRADEXT_COPY(table, Event, COLUMNS, sixteenths)                   \
  if (since == 0) {                                                       \
    out.table.reserve(journal.table.size());                              \
  }                                                                       \
  journal.table.each([&](const Event& e) {                                \
    if (e.order > since) {                                                \
      name(stacks, e.stack);                                              \
      out.table.row({GRADEXT_##COLUMNS##_COLUMNS(GRADEXT_COLUMN_VALUE)}); \
    }                                                                     \
  });                                                                     \
  out.dropped[#table] = journal.table.dropped();
  GRADEXT_RINGS(GRADEXT_COPY)
#undef GRADEXT_COPY
  size_t save_count = 0;
  for (const auto& log : journal.save_logs) {
    std::lock_guard log_lock(log->mutex);
    save_count += log->saves.size();
  }
  out.saves.reserve(save_count);
  out.dropped["saves"] = 0;
  for (const auto& held : journal.save_logs) {
    const SaveLog& log = *held;
    std::lock_guard log_lock(held->mutex);
    log.saves.each([&](const Save& e) {
      const bool known = e.origin > log.origins_dropped;
      const NodeId origin =
          known ? log.origins[e.origin - 1 - log.origins_dropped] : NodeId{kNoNode, kNoNode};
      name(stacks, e.stack);
      out.saves.row({GRADEXT_SAVE_COLUMNS(GRADEXT_COLUMN_VALUE)});
    });
    out.dropped["saves"] += log.saves.dropped();
  }
  for (const Backward& e : journal.backwards) {
    if (e.order > since) {
      name(stacks, e.stack);
      out.backwards.push_back(e);
    }
  }
  for (const Refused& e : journal.refused) {
    if (e.order > since) {
      name(stacks, e.stack);
      out.refused.emplace_back(show(e.storage), e);
    }
  }
  out.held->add_stacks(std::move(stacks));
  out.geometries = journal.geometries;
  out.dropped["backwards"] = journal.backwards_dropped;
  out.order = journal.order();
  return out;
}

py::dict shown_refused(int64_t storage, const Refused& e) {
  py::list chain;
  for (const auto& [name, id] : e.chain) {
    chain.append(py::make_tuple(name, id.thread, id.sequence));
  }
  py::dict facts;
  facts["order"] = e.order;
  facts["storage"] = storage;
  facts["begin"] = e.extent.begin;
  facts["end"] = e.extent.end;
  facts["tensor"] = e.tensor;
  facts["base"] = e.base;
  facts["thread"] = e.thread;
  facts["stack"] = e.stack;
  facts["op"] = op_name(e.op);
  facts["creation_meta"] = e.creation_meta;
  facts["is_view"] = e.is_view;
  facts["is_leaf"] = e.is_leaf;
  facts["requires_grad"] = e.requires_grad;
  facts["base_is_leaf"] = e.base_is_leaf;
  facts["is_inference"] = e.is_inference;
  facts["is_leftover"] = e.is_leftover;
  facts["grad_mode"] = e.grad_mode;
  // Not necessarily UTF-8: the text may quote bytes of a user's.
  facts["what"] = py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(e.what.data(), static_cast<Py_ssize_t>(e.what.size()), "replace"));
  facts["chain"] = chain;
  return facts;
}

py::dict snapshot(uint64_t since) {
  Copied copied;
  {
    py::gil_scoped_release release;
    copied = copy_journal(since);
    copy_origins(copied);
  }
  py::list backwards, refused;
  for (const Backward& call : copied.backwards) {
    Table<NodeIdColumn> nodes;
    for (const NodeId& e : call.nodes) {
      nodes.row({GRADEXT_NODE_COLUMNS(GRADEXT_COLUMN_VALUE)});
    }
    backwards.append(
        py::make_tuple(
            call.order,
            call.thread,
            call.stack,
            call.keeps_graph,
            call.creates_graph,
            call.whole,
            nodes.array()));
  }
  for (const auto& [storage, e] : copied.refused) {
    refused.append(shown_refused(storage, e));
  }
  std::unordered_set<int64_t> ops;
  py::dict names, out;
#define GRADEXT_ARRAY(table, Event, COLUMNS, sixteenths) \
  copied.table.collect_ops(ops);                         \
  out[#table] = copied.table.array();
  GRADEXT_TABLES(GRADEXT_ARRAY)
#undef GRADEXT_ARRAY
  for (int64_t op : ops) {
    names[py::int_(op)] = op_name(static_cast<uint32_t>(op));
  }
  out["held"] = py::cast(std::move(copied.held));
  out["order"] = copied.order;
  out["backwards"] = backwards;
  out["refused"] = refused;
  out["geometries"] = copied.geometries;
  out["ops"] = names;
  out["dropped"] = copied.dropped;
  return out;
}

// The columns of each table, in their order.
py::dict event_columns() {
  const auto names = [](const auto& columns) {
    py::list out;
    for (const char* column : columns) {
      out.append(column);
    }
    return py::tuple(out);
  };
  py::dict out;
#define GRADEXT_NAMES(table, Event, COLUMNS, sixteenths) out[#table] = names(Event##Column::kNames);
  GRADEXT_TABLES(GRADEXT_NAMES)
  GRADEXT_NAMES(nodes, NodeId, NODE, 0)
#undef GRADEXT_NAMES
  return out;
}

// The bits of the columns called flags (of writes, of flows), by the names that Python has for
// them.
py::dict event_flags() {
  py::dict writes, flows, out;
  writes["DECLARED_ONLY"] = int{kDeclaredOnly};
  writes["SHARED_STORAGE"] = int{kSharedStorage};
  writes["INFERENCE"] = int{kInferenceTensor};
  writes["GRAD_MODE"] = int{kGradMode};
  writes["NOTE"] = int{kNote};
  writes["HOLES"] = int{kHoles};
  flows["CUT"] = int{kCut};
  flows["FROM_PYTHON"] = int{kFromPython};
  flows["TO_PYTHON"] = int{kToPython};
  flows["GRAD_CALL"] = int{kGradCall};
  flows["MERGE"] = int{kMerge};
  flows["NO_GRAD"] = int{kNoGradMode};
  flows["IN_FUNCTION"] = int{kInFunction};
  flows["IN_INFERENCE"] = int{kInference};
  flows["SOURCE_IS_LEAF"] = int{kSourceIsLeaf};
  flows["NOT_FLOATING"] = int{kNotFloating};
  flows["FROM_INFERENCE"] = int{kFromInference};
  flows["IS_NUMBER"] = int{kIsNumber};
  flows["IS_VIEW"] = int{kIsView};
  flows["WRITTEN"] = int{kWritten};
  flows["TAINT_CUT"] = int{kTaintCut};
  flows["TAINT_GRAD"] = int{kTaintGrad};
  flows["TAINT_PYTHON"] = int{kTaintPython};
  flows["TAINT_INPUT"] = int{kTaintInput};
  flows["TAINT_CHECKPOINT"] = int{kTaintCheckpoint};
  flows["TAINT_DECISION"] = int{kTaintDecision};
  flows["TAINT_GUESS"] = int{kTaintGuess};
  flows["TAINT_HELD"] = int{kTaintHeld};
  flows["TAKES_HELD"] = int{kTakesHeld};
  flows["BY_SIZE"] = int{kBySize};
  out["writes"] = writes;
  out["flows"] = flows;
  return out;
}

}  // namespace

void bind_snapshot(py::module_& m) {
  stacks::set_stack_roots(&name_stacks);
  m.def("recorder_snapshot", &snapshot);
  m.attr("EVENT_COLUMNS") = event_columns();
  m.attr("EVENT_FLAGS") = event_flags();
  m.attr("MOMENT_KINDS") = py::dict(
      py::arg("WRITE") = int{kOfWrite},
      py::arg("NODE") = int{kOfNode},
      py::arg("USE") = int{kOfUse});
  py::class_<Held>(m, "Held");
}

}  // namespace gradext::journal
