#include "findings/findings.h"

#include "findings/findings_detail.h"
#include "graph/graph.h"
#include "graph/saved_items.h"
#include "journal/journal.h"
#include "recorder/before_writes.h"
#include "stacks/stacks.h"
#include "state/state.h"

#include <ATen/record_function.h>

#include <algorithm>
#include <bitset>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <tuple>
#include <unordered_map>
#include <unordered_set>

namespace gradext::findings {

using stacks::StackId;

namespace detail {

uint64_t place_within(uint64_t outer, PyCodeObject* code, int instruction) {
  using Place = std::tuple<uint64_t, PyCodeObject*, int, int, int, int>;
  static auto* places = new std::map<Place, uint64_t>;
  int line = 0, column = 0, end_line = 0, end_column = 0;
  if (code != nullptr) {
#if PY_VERSION_HEX >= 0x030b0000
    PyCode_Addr2Location(code, instruction, &line, &column, &end_line, &end_column);
#else
    line = PyCode_Addr2Line(code, instruction);
    column = instruction;
#endif
  }
  const Place key{outer, code, line, column, end_line, end_column};
  const auto [at, is_new] = places->try_emplace(key, places->size() + 1);
  if (is_new) {
    Py_XINCREF(reinterpret_cast<PyObject*>(code));  // another one at its address is another place
  }
  return at->second;
}

}  // namespace detail

// A stack by the places in the source. One call has several stacks: Python 3.11 runs it in two
// instructions, and in one once it has specialised it, for a while. Under the GIL.
uint64_t place_of(StackId stack) {
  static auto* known = new std::unordered_map<StackId, uint64_t>;
  if (stack == 0) {
    return 0;
  }
  const auto [at, is_new] = known->try_emplace(stack, 0);
  if (!is_new) {
    return at->second;
  }
  const std::vector<stacks::Frame> frames = stacks::stack_frames(stack);
  uint64_t place = 0;
  for (auto frame = frames.rbegin(); frame != frames.rend(); ++frame) {
    place = detail::place_within(place, frame->code, frame->instruction);
  }
  known->at(stack) = place;
  return place;
}

using namespace detail;

namespace {

using journal::Journal;
using journal::NodeId;
using journal::Write;
using recorder::Verdict;
using torch::autograd::Node;

constexpr size_t kMostNodes = 1 << 19;  // as gradext.rules.graph_copy reads
constexpr size_t kMostPairs = 256;      // and as gradext.rules.wording.saved_tensors looks at
// One saved tensor that matters.
struct Item {
  Node* node;
  NodeId id;  // what its node counts as: an inner node of a CopySlices has that one's number
  graph::SavedItem saved;
  uint64_t counter = 0, storage = 0;    // of Journal::identities; 0: in no event
  std::vector<const Write*> writes;     // the newest first
  const Write* before = nullptr;        // the last write of this counter that the save has seen
  Verdict verdict = Verdict::kUnknown;  // whether the writes changed it
};

}  // namespace

namespace detail {

void append(std::string& text, uint64_t number) {
  text.append(reinterpret_cast<const char*>(&number), sizeof(number));
}

void append(std::string& text, const char* word) {
  text.append(word, std::strlen(word) + 1);
}

// Everything below reads the journal under its mutex.

std::pair<StackId, StackId> stacks_of(Journal& journal, const NodeId& id, int depth) {
  const journal::Save* best = nullptr;
  NodeId origin{0, 0};
  for (const auto& log : journal.save_logs) {
    if (log->thread != id.thread) {
      continue;
    }
    std::lock_guard lock(log->mutex);
    size_t low = 0, high = log->saves.size();
    while (low < high) {
      const size_t middle = (low + high) / 2;
      if (log->saves.at(middle).sequence <= id.sequence) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    if (low == 0) {
      continue;
    }
    const journal::Save& save = log->saves.at(low - 1);
    if (best == nullptr || save.sequence > best->sequence) {
      best = &save;
      origin = save.origin > log->origins_dropped
                   ? log->origins[save.origin - 1 - log->origins_dropped]
                   : NodeId{0, 0};
    }
  }
  if (best == nullptr) {
    return {0, 0};
  }
  const StackId stack = best->stack;
  const bool has_origin = depth == 0 && (origin.thread != 0 || origin.sequence != 0);
  return {stack, has_origin ? stacks_of(journal, origin, 1).first : 0};
}

void append_node(std::string& text, Journal& journal, const NodeId& id) {
  const auto [stack, origin] =
      id.sequence == kNoSequence ? std::pair<StackId, StackId>{0, 0} : stacks_of(journal, id);
  append(text, place_of(stack));
  append(text, place_of(origin));
}

StackId call_of(const Journal& journal) {
  const uint64_t thread = at::RecordFunction::currentThreadId();
  const auto call = std::find_if(
      journal.backwards.rbegin(), journal.backwards.rend(), [&](const journal::Backward& at) {
        return at.thread == thread;
      });
  return call != journal.backwards.rend() ? call->stack : 0;
}

Below::Below(const Roots& roots) {
  nodes = graph::walk_graph(roots, kMostNodes, whole);
  bool first = true;
  for (const auto& at : nodes) {
    if (at.node->sequence_nr() == kNoSequence) {
      continue;
    }
    thread = first || thread == at.node->thread_id() ? at.node->thread_id() : 0;
    first = false;
    oldest = std::min(oldest, at.node->sequence_nr());
  }
}

NodeId Below::id_of(const graph::GraphNode& at) const {
  const Node& node = at.inner_of >= 0 ? *nodes[at.inner_of].node : *at.node;
  return NodeId{node.thread_id(), node.sequence_nr()};
}

}  // namespace detail

namespace {

// Where the failing call is.
void append_call(Finding& finding, const Journal& journal) {
  append(finding.places, place_of(call_of(journal)));
}

// Whether `write`, and with it every older one, was done before the first of the nodes was made.
bool is_before(const Below& below, const Write& write) {
  return below.thread != 0 && write.thread == below.thread && write.sequence < below.oldest;
}

// The saved tensors below the roots that `wanted` says true of, in the order of the engine.
template <class Wanted>
std::vector<Item> items_below(const Below& below, Finding& finding, Wanted&& wanted) {
  std::vector<Item> items;
  for (const auto& at : below.nodes) {
    if (graph::is_outer(*at.node)) {
      continue;  // the node within it is below the roots as well
    }
    bool is_busy = false;
    for (graph::SavedItem& saved : graph::saved_items(*at.node, &is_busy)) {
      if (saved.facts.tensor.defined() && std::strcmp(saved.facts.kind, "tensor") == 0 &&
          wanted(saved.facts)) {
        items.push_back(Item{at.node, below.id_of(at), std::move(saved)});
      }
    }
    finding.is_whole &= !is_busy;
  }
  const auto order = [](const Item& item) {
    return item.id.sequence == kNoSequence ? int64_t{-1} : static_cast<int64_t>(item.id.sequence);
  };
  std::stable_sort(items.begin(), items.end(), [&](const Item& a, const Item& b) {
    return order(a) > order(b);
  });
  if (items.size() > kMostPairs) {
    items.resize(kMostPairs);
  }
  return items;
}

bool is_moved(const graph::SavedFacts& facts) {
  const int64_t version = state::version(*facts.tensor.unsafeGetTensorImpl());
  return version >= 0 && static_cast<uint32_t>(version) != facts.saved_version;
}

using ByIdentity = std::unordered_map<uint64_t, std::vector<Item*>>;

// Whether an identity may be among some: they are few, and all writes are asked about.
class MayBe {
 public:
  explicit MayBe(const ByIdentity& some) {
    for (const auto& [identity, _] : some) {
      bits_.set(identity % kBits);
    }
  }
  bool has(uint64_t identity) const {
    return bits_.test(identity % kBits);
  }

 private:
  static constexpr size_t kBits = 1 << 12;
  std::bitset<kBits> bits_;
};

// The writes from the newest to the oldest one that can matter, of those with one of `wanted` as
// their `identity`. Whichever thread made them: what is older than a write that came before the
// first of the nodes came before it, too.
template <class Visit>
void each_write_back(
    Journal& journal,
    const Below& below,
    uint64_t since,
    uint64_t Write::* identity,
    const ByIdentity& wanted,
    Visit&& visit) {
  const MayBe may_be(wanted);
  for (size_t k = wanted.empty() ? 0 : journal.writes.size(); k > 0; --k) {
    const Write& write = journal.writes.at(k - 1);
    if (write.order <= since || is_before(below, write)) {
      return;
    }
    if (!may_be.has(write.*identity)) {
      continue;
    }
    if (const auto found = wanted.find(write.*identity); found != wanted.end()) {
      visit(write, found->second);
    }
  }
}

// Bytes of the write, counted from the first of the saved tensor.
void append_extent(std::string& details, const Write& write, const Item& item) {
  const c10::TensorImpl& impl = *item.saved.facts.tensor.unsafeGetTensorImpl();
  const int64_t begin = state::storage_offset(impl) * static_cast<int64_t>(impl.itemsize());
  append(details, static_cast<uint64_t>(write.extent.begin - begin));
  append(details, static_cast<uint64_t>(write.extent.end - begin));
  append(details, write.geometry);
}

void append_write(std::string& places, const Write& write) {
  append(places, place_of(write.stack));
  append(places, write.op);
  append(
      places,
      (static_cast<uint64_t>(write.inner_op) << 32) |
          (static_cast<uint64_t>(write.argument) << 16) | write.flags);
}

bool is_same_line(const Write& a, const Write& b) {
  return place_of(a.stack) == place_of(b.stack) && a.op == b.op && a.inner_op == b.inner_op &&
         a.argument == b.argument && a.flags == b.flags;
}

void append_item(Finding& finding, Journal& journal, const Item& item) {
  const graph::SavedFacts& facts = item.saved.facts;
  append_node(finding.places, journal, item.id);
  append(finding.places, item.saved.attribute);
  append(
      finding.places,
      (static_cast<uint64_t>(static_cast<uint32_t>(item.saved.index)) << 2) |
          (facts.is_output ? 2 : 0) | (facts.is_leaf ? 1 : 0));
  const Write* last = nullptr;
  for (auto at = item.writes.rbegin(); at != item.writes.rend(); ++at) {
    if (last == nullptr || !is_same_line(*last, **at)) {
      append_write(finding.places, **at);
    }
    last = *at;
    append_extent(finding.details, **at, item);
  }
}

void append_gap(Finding& finding, const Item& item) {
  int64_t at = item.saved.facts.saved_version;
  bool gap = false;
  for (auto write = item.writes.rbegin(); write != item.writes.rend(); ++write) {
    if (((*write)->flags & journal::kNote) == 0) {
      gap |= (*write)->version_before > at;
      at = std::max<int64_t>(at, (*write)->version_after);
    }
  }
  gap |= at < state::version(*item.saved.facts.tensor.unsafeGetTensorImpl());
  append(finding.places, gap ? (item.before != nullptr ? place_of(item.before->stack) : 1) : 0);
}

void name_first(Finding& finding, const std::vector<Item>& items) {
  const c10::TensorImpl& impl = *items.front().saved.facts.tensor.unsafeGetTensorImpl();
  finding.found = true;
  finding.tensor = state::opaque_id(&impl);
  finding.counter = state::opaque_id(state::counter_address(impl));
}

}  // namespace

Finding stale(const Roots& roots, uint64_t since) {
  Finding finding;
  const Below below(roots);
  finding.is_whole = below.whole;
  std::vector<Item> items = items_below(below, finding, is_moved);
  if (items.empty()) {
    return finding;
  }
  Journal& journal = Journal::get();
  std::lock_guard lock(journal.mutex);
  ByIdentity by_counter;
  for (Item& item : items) {
    const c10::TensorImpl& impl = *item.saved.facts.tensor.unsafeGetTensorImpl();
    item.counter = journal.identities.known(state::counter_address(impl));
    if (item.counter != 0) {
      by_counter[item.counter].push_back(&item);
    }
  }
  const auto add = [](const Write& write, const std::vector<Item*>& of_counter) {
    const bool is_note = (write.flags & journal::kNote) != 0;
    for (Item* item : of_counter) {
      const int64_t saved = item->saved.facts.saved_version;
      if (is_note ? write.version_before >= saved : write.version_after > saved) {
        item->writes.push_back(&write);
      } else if (item->before == nullptr) {
        item->before = &write;
      }
    }
  };
  each_write_back(journal, below, since, &Write::counter, by_counter, add);
  append_call(finding, journal);
  for (const Item& item : items) {
    append_item(finding, journal, item);
    append_gap(finding, item);
  }
  name_first(finding, items);
  return finding;
}

namespace {

// Whether the values are others than those that were saved, as far as gradext has seen.
Verdict verdict_of(const Item& item) {
  const c10::TensorImpl& impl = *item.saved.facts.tensor.unsafeGetTensorImpl();
  if (!state::has_strides(impl)) {
    return Verdict::kUnknown;
  }
  std::vector<recorder::Suspect> suspects;
  for (const Write* write : item.writes) {
    suspects.push_back({write->order, write->extent.begin, write->extent.end});
  }
  const auto itemsize = static_cast<int64_t>(impl.itemsize());
  const Verdict verdict = recorder::compare_with_before(
      state::storage(impl),
      recorder::region_of(impl.storage_offset() * itemsize, itemsize, impl.sizes(), impl.strides()),
      std::move(suspects));
  // Numbers of different threads do not say whether the tensor was saved before it was written.
  const bool is_ordered =
      std::all_of(item.writes.begin(), item.writes.end(), [&](const Write* write) {
        return write->thread == item.id.thread;
      });
  return verdict == Verdict::kChanged && !is_ordered ? Verdict::kUnknown : verdict;
}

}  // namespace

Finding silent(const Roots& roots, uint64_t since) {
  Finding finding;
  const Below below(roots);
  finding.is_whole = below.whole;
  std::vector<Item> items = items_below(below, finding, [](const graph::SavedFacts& facts) {
    const c10::TensorImpl& impl = *facts.tensor.unsafeGetTensorImpl();
    return state::storage(impl) != nullptr && !impl.has_symbolic_sizes_strides() &&
           !state::is_wrapper_subclass(impl) && !is_moved(facts);
  });
  Journal& journal = Journal::get();
  std::deque<Write> held;  // the journal's own may be gone when its mutex is not held
  {
    std::lock_guard lock(journal.mutex);
    ByIdentity by_storage;
    for (Item& item : items) {
      const c10::TensorImpl& impl = *item.saved.facts.tensor.unsafeGetTensorImpl();
      item.counter = journal.identities.known(state::counter_address(impl));
      item.storage = journal.identities.known(state::storage(impl));
      if (item.storage != 0 && item.id.sequence != kNoSequence) {
        by_storage[item.storage].push_back(&item);
      }
    }
    const auto add = [&](const Write& write, const std::vector<Item*>& of_storage) {
      constexpr uint32_t kNone = journal::kNote | journal::kInferenceTensor;
      if ((write.flags & kNone) != 0 || write.extent.begin == write.extent.end) {
        return;
      }
      const Write* copy = nullptr;
      const bool is_declared_only = (write.flags & journal::kDeclaredOnly) != 0;
      for (Item* item : of_storage) {
        const bool is_counted = write.counter == item->counter && !is_declared_only;
        const bool is_older =
            write.thread == item->id.thread && write.sequence <= item->id.sequence;
        if (!is_counted && !is_older) {
          copy = copy != nullptr ? copy : &held.emplace_back(write);
          item->writes.push_back(copy);
        }
      }
    };
    each_write_back(journal, below, since, &Write::storage, by_storage, add);
  }
  const auto is_sound = [](Item& item) {
    if (item.writes.empty() || graph::is_unused(*item.node, item.saved)) {
      return true;
    }
    item.verdict = verdict_of(item);
    return item.verdict == Verdict::kSame;
  };
  items.erase(std::remove_if(items.begin(), items.end(), is_sound), items.end());
  if (items.empty()) {
    return finding;
  }
  std::lock_guard lock(journal.mutex);
  append_call(finding, journal);
  for (const Item& item : items) {
    append_item(finding, journal, item);
    append(finding.places, static_cast<uint64_t>(item.verdict));
  }
  name_first(finding, items);
  return finding;
}

Finding freed(const Roots& roots) {
  Finding finding;
  const Below below(roots);
  finding.is_whole = below.whole;
  std::vector<bool> released;
  std::optional<NodeId> first;
  for (const auto& at : below.nodes) {
    bool is_busy = false;
    const bool is_outer = graph::is_outer(*at.node);
    const auto items = is_outer ? graph::SavedItems{} : graph::saved_items(*at.node, &is_busy);
    finding.is_whole &= !is_busy;
    released.push_back(!is_outer && graph::is_freed(*at.node, items));
    const NodeId id = below.id_of(at);
    if (released.back() && id.sequence != kNoSequence &&
        (!first.has_value() || id.sequence > first->sequence)) {
      first = id;
    }
  }
  if (!first.has_value()) {
    return finding;
  }
  finding.found = true;
  Journal& journal = Journal::get();
  std::lock_guard lock(journal.mutex);
  append_call(finding, journal);
  for (size_t k = 0; k < below.nodes.size(); ++k) {
    append_node(finding.places, journal, below.id_of(below.nodes[k]));
    append(finding.places, static_cast<uint64_t>(released[k]));
  }
  // The earlier calls that went through it, by their lines.
  StackId last = 0;
  for (auto at = journal.backwards.rbegin(); at != journal.backwards.rend(); ++at) {
    const bool passed = at == journal.backwards.rbegin() ||
                        std::none_of(at->nodes.begin(), at->nodes.end(), [&](const NodeId& id) {
                          return id.thread == first->thread && id.sequence == first->sequence;
                        });
    if (!passed && at->stack != last) {
      append(finding.places, place_of(at->stack));
      last = at->stack;
    }
    if (passed && last != 0) {
      break;
    }
  }
  return finding;
}

std::vector<Unused> unused(
    const Roots& roots, const std::vector<const at::Tensor*>& inputs, Finding& finding) {
  constexpr size_t kMostLines = 256;  // as gradext.rules.codes.gx303_unused_input looks at
  const Below below(roots);
  finding.found = true;
  finding.is_whole = below.whole;
  std::unordered_set<const void*> made;
  std::vector<NodeId> ids;
  for (const auto& at : below.nodes) {
    made.insert(at.node);
    if (const at::Tensor* leaf = state::leaf_of(*at.node)) {
      made.insert(leaf->unsafeGetTensorImpl());
    }
    ids.push_back(below.id_of(at));
  }
  const auto order = [](const NodeId& id) {
    return id.sequence == kNoSequence ? int64_t{-1} : static_cast<int64_t>(id.sequence);
  };
  std::stable_sort(ids.begin(), ids.end(), [&](const NodeId& a, const NodeId& b) {
    return order(a) > order(b);
  });
  if (ids.size() > kMostLines) {
    ids.resize(kMostLines);
  }
  std::vector<Unused> found;
  Journal& journal = Journal::get();
  std::lock_guard lock(journal.mutex);
  append_call(finding, journal);
  for (const at::Tensor* input : inputs) {
    const Node* node = graph::node_of(*input);
    const c10::TensorImpl* impl = input->unsafeGetTensorImpl();
    const bool is_in = made.count(node != nullptr ? static_cast<const void*>(node) : impl) != 0;
    append(finding.places, is_in ? 1 : 0);
    append_node(
        finding.places,
        journal,
        node != nullptr ? NodeId{node->thread_id(), node->sequence_nr()} : NodeId{0, kNoSequence});
    found.push_back(Unused{state::opaque_id(impl), is_in});
  }
  std::set<std::pair<StackId, StackId>> seen;
  for (const NodeId& id : ids) {
    if (seen.insert(stacks_of(journal, id)).second) {
      append_node(finding.places, journal, id);
    }
  }
  return found;
}

Finding written(const NodeId& node, const void* storage, const void* counter, uint64_t order) {
  Finding finding;
  finding.found = true;
  Journal& journal = Journal::get();
  std::lock_guard lock(journal.mutex);
  append_node(finding.places, journal, node);
  const uint64_t of_storage = journal.identities.known(storage);
  const uint64_t of_counter = journal.identities.known(counter);
  constexpr uint32_t kExchange = journal::kNote | journal::kDeclaredOnly;
  const Write* last = nullptr;
  for (size_t k = journal.writes.size(); k > 0; --k) {
    const Write& write = journal.writes.at(k - 1);
    if (write.order <= order) {
      break;
    }
    const bool is_note = (write.flags & journal::kNote) != 0;
    const bool is_write = of_storage != 0 && write.storage == of_storage && !is_note &&
                          write.extent.begin != write.extent.end;
    const bool is_exchange =
        of_counter != 0 && write.counter == of_counter && (write.flags & kExchange) == kExchange;
    if (is_write || is_exchange) {
      if (last == nullptr || !is_same_line(*last, write)) {
        append_write(finding.places, write);
      }
      last = &write;
      append(finding.details, static_cast<uint64_t>(write.extent.begin));
      append(finding.details, static_cast<uint64_t>(write.extent.end));
      append(finding.details, write.geometry);
    }
  }
  return finding;
}

}  // namespace gradext::findings
