#include "findings/values.h"

#include "findings/findings_detail.h"
#include "journal/journal.h"
#include "journal/origins.h"
#include "recorder/lost_gradients/python_crossings.h"
#include "recorder/python/backward.h"
#include "state/state.h"

#include <algorithm>
#include <array>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>
#include <unordered_set>

namespace gradext::findings {

using namespace detail;

namespace {

using journal::Birth;
using journal::Flow;
using journal::Journal;
using journal::NodeId;
using journal::Origins;
using stacks::StackId;

constexpr size_t kMostSteps = 20'000;  // as gradext.rules.wording.chains follows
constexpr size_t kMostExits = 4'000;
constexpr size_t kMostLeaves = 8;  // as gradext.rules.codes.gx304_silent_cut looks at

// One birth or flow, copied: a table may move what it holds.
struct Step {
  bool is_birth = false;
  Flow flow;         // of a birth: what of it there is
  size_t after = 0;  // the step that it was met from; itself at the start
  size_t depth = 0;
  bool is_past_cut = false;
  bool is_sure = true;
};

Flow flow_of(const Birth& birth) {
  Flow flow;
  flow.order = birth.order;
  flow.number = birth.number;
  flow.stack = birth.stack;
  flow.mode = birth.mode;
  flow.op = birth.op;
  flow.thread = birth.thread;
  flow.flags = birth.has_gradient_behind != 0 ? journal::kCut : 0;
  return flow;
}

// Births and flows by number, which an event names its inputs by. Under the mutex of the origins.
// The flows of the dead lie in a ring in the order of their deaths: those that came since the last
// question are read in. Those of the living are read in when a question needs them.
class ByNumber {
 public:
  static ByNumber& get() {
    static auto* index = new ByNumber;
    return *index;
  }

  void begin(const Origins& origins) {
    origins_ = &origins;
    has_living_ = false;
    const auto& past = origins.past;
    const size_t first = past.dropped(), end = first + past.size();
    // Cleared since, or so much came that nothing is left of what was read.
    const bool is_other = read_ > end || (read_ > first && number_at(read_ - 1) != last_number_);
    if (is_other || read_ < first || places_.size() > 2 * past.size() + 1024) {
      places_.clear();
      exits_.clear();
      merges_.clear();
      read_ = first;
    }
    for (; read_ < end; ++read_) {
      const Flow& flow = past.at(read_ - first);
      places_[static_cast<uint32_t>(flow.number)] = read_;
      last_number_ = flow.number;
      if ((flow.flags & journal::kToPython) != 0) {
        exits_.push_back(read_);
      }
      if ((flow.flags & journal::kMerge) != 0) {
        merges_.push_back(read_);
      }
    }
    for (auto* positions : {&exits_, &merges_}) {
      while (!positions->empty() && positions->front() < first) {
        positions->pop_front();
      }
    }
  }

  bool find(uint32_t number, Flow& flow, bool& is_birth) {
    is_birth = false;
    const auto known = places_.find(number);
    if (known != places_.end() && known->second >= origins_->past.dropped()) {
      const Flow& there = origins_->past.at(known->second - origins_->past.dropped());
      if (static_cast<uint32_t>(there.number) == number) {
        flow = there;
        return true;
      }
    }
    read_living();
    if (const auto at = living_flows_.find(number); at != living_flows_.end()) {
      flow = *at->second;
      return true;
    }
    if (const auto at = living_births_.find(number); at != living_births_.end()) {
      flow = flow_of(*at->second);
      is_birth = true;
      return true;
    }
    return false;
  }

  // The newest first, while `visit` returns true.
  template <class Visit>
  void each_exit(Visit&& visit) const {
    each_back(exits_, visit);
  }
  template <class Visit>
  void each_merge(Visit&& visit) const {
    each_back(merges_, visit);
  }

 private:
  uint64_t number_at(size_t position) const {
    return origins_->past.at(position - origins_->past.dropped()).number;
  }
  template <class Visit>
  void each_back(const std::deque<size_t>& positions, Visit&& visit) const {
    for (auto at = positions.rbegin(); at != positions.rend(); ++at) {
      if (!visit(origins_->past.at(*at - origins_->past.dropped()))) {
        return;
      }
    }
  }
  void read_living() {
    if (has_living_) {
      return;
    }
    has_living_ = true;
    living_flows_.clear();
    living_births_.clear();
    const auto add = [&](const Flow& flow) {
      living_flows_[static_cast<uint32_t>(flow.number)] = &flow;
    };
    origins_->flows.each([&](const void*, const Flow& flow) { add(flow); });
    origins_->flows.each_dead(add);
    origins_->births.each([&](const void*, const Birth& birth) {
      living_births_[static_cast<uint32_t>(birth.number)] = &birth;
    });
  }

  const Origins* origins_ = nullptr;
  std::unordered_map<uint32_t, size_t> places_;  // in the ring, counted with what was dropped
  std::deque<size_t> exits_, merges_;
  size_t read_ = 0;
  uint64_t last_number_ = 0;
  bool has_living_ = false;
  std::unordered_map<uint32_t, const Flow*> living_flows_;
  std::unordered_map<uint32_t, const Birth*> living_births_;
};

bool is_cut(const Step& step) {
  return (step.flow.flags & journal::kCut) != 0;
}

// When the last backward before `order` began on a thread; the journal's mutex is held.
uint64_t backward_before(const Journal& journal, uint64_t order, uint32_t thread) {
  for (auto at = journal.backwards.rbegin(); at != journal.backwards.rend(); ++at) {
    if (at->order < order && static_cast<uint32_t>(at->thread) == thread) {
      return at->order;
    }
  }
  return 0;
}

// What tensors were made of, nearest first, up to the first cut on each way and one step beyond.
class Chain {
 public:
  // Both mutexes are held.
  Chain(const Journal& journal, ByNumber& index) : journal_(journal), index_(index) {}

  void add_tensor(Origins& origins, const at::Tensor& tensor) {
    const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
    if (state::is_inference(impl)) {
      if (const Birth* birth = origins.birth_of(impl)) {
        add(flow_of(*birth), true, steps_.size(), 0, false, true);
      }
    } else if (const Flow* flow = origins.flows.find(journal::as_target(impl))) {
      add(*flow, false, steps_.size(), 0, false, true);
    }
  }
  void add_number(uint32_t number) {
    Flow flow;
    bool is_birth = false;
    if (index_.find(number, flow, is_birth)) {
      add(flow, is_birth, steps_.size(), 0, false, true);
    }
  }
  void follow() {
    for (size_t k = 0; k < steps_.size() && steps_.size() < kMostSteps; ++k) {
      const Step step = steps_[k];
      if (step.is_birth || step.is_past_cut) {
        continue;
      }
      const bool past = is_cut(step);
      for (uint32_t parent : step.flow.parents) {
        Flow flow;
        bool is_birth = false;
        if (parent != 0 && index_.find(parent, flow, is_birth)) {
          add(flow, is_birth, k, step.depth + 1, past, step.is_sure);
        }
      }
      if ((step.flow.flags & journal::kFromPython) != 0 && step.flow.parents[0] == 0 && !past) {
        add_exits(k);
      }
    }
  }
  bool has_cut() const {
    return std::any_of(steps_.begin(), steps_.end(), is_cut);
  }
  bool is_empty() const {
    return steps_.empty();
  }
  // Whether something here was made of gradients that were taken by `source`.
  bool is_taken_by(int64_t source) const {
    return std::any_of(steps_.begin(), steps_.end(), [&](const Step& step) {
      return (step.flow.flags & journal::kGradCall) != 0 && step.flow.source == source;
    });
  }

  // Its lines, each once, in the order in which they matter; needs no mutex.
  void append_to(Finding& finding) const {
    std::map<std::array<uint64_t, 5>, uint64_t> lines;
    std::vector<uint64_t> line_of;
    for (const Step& step : steps_) {
      const std::array<uint64_t, 5> line{
          step.is_birth,
          step.flow.op,
          step.flow.flags,
          place_of(step.flow.stack),
          place_of(step.flow.mode)};
      line_of.push_back(lines.try_emplace(line, lines.size() + 1).first->second);
    }
    // At one distance the latest is told.
    std::vector<size_t> order(steps_.size());
    for (size_t k = 0; k < order.size(); ++k) {
      order[k] = k;
    }
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      return std::make_pair(steps_[a].depth, steps_[b].flow.order) <
             std::make_pair(steps_[b].depth, steps_[a].flow.order);
    });
    std::map<uint64_t, uint64_t> numbers;  // of lines, in the order in which they are told
    std::set<std::array<uint64_t, 4>> seen;
    std::set<int64_t> sources;
    for (size_t k : order) {
      const Step& step = steps_[k];
      const bool is_new = numbers.try_emplace(line_of[k], numbers.size() + 1).second;
      const uint64_t number = numbers[line_of[k]];
      const uint64_t after =
          numbers.try_emplace(line_of[step.after], numbers.size() + 1).first->second;
      if (!seen.insert({number, after, step.is_past_cut, step.is_sure}).second) {
        continue;
      }
      append(finding.places, number);
      append(finding.places, after);
      append(finding.places, (step.is_past_cut ? 2u : 0u) | (step.is_sure ? 1u : 0u));
      if (is_new || number == numbers.size()) {
        append(finding.places, step.is_birth ? 1 : 0);
        append(finding.places, step.flow.op);
        append(finding.places, step.flow.flags & ~journal::kTaintHeld);  // noted now and then
        append(finding.places, place_of(step.flow.stack));
        append(finding.places, place_of(step.flow.mode));
      }
      if (is_cut(step) && (step.flow.flags & journal::kSourceIsLeaf) != 0) {
        sources.insert(step.flow.source);  // the parameters that get no gradient
      }
    }
    append(finding.places, numbers.size());
    for (int64_t source : sources) {
      append(finding.details, static_cast<uint64_t>(source));
    }
    append(finding.details, kNoSequence);
  }

 private:
  void add(
      const Flow& flow, bool is_birth, size_t after, size_t depth, bool is_past_cut, bool is_sure) {
    if (seen_.insert(flow.number).second) {
      steps_.push_back(Step{is_birth, flow, after, depth, is_past_cut, is_sure});
    }
  }
  // Any value that has left for Python since the last backward may have come back here.
  void add_exits(size_t k) {
    const Step step = steps_[k];
    const uint64_t last = backward_before(journal_, step.flow.order, step.flow.thread);
    size_t count = 0;
    index_.each_exit([&](const Flow& left) {
      if (left.order <= last || ++count > kMostExits) {
        return false;
      }
      if (left.order < step.flow.order && left.thread == step.flow.thread) {
        add(left, false, k, step.depth + 1, false, false);
      }
      return true;
    });
  }

  const Journal& journal_;
  ByNumber& index_;
  std::vector<Step> steps_;
  std::unordered_set<uint64_t> seen_;
};

struct Flag {
  StackId stack = 0;
  bool value = false;
};

Flag flag_of(Origins& origins, const c10::TensorImpl& impl) {
  const journal::FlagChange* change = origins.flags.find(journal::as_target(impl));
  return change != nullptr ? Flag{change->stack, change->value != 0} : Flag{};
}

void append_flag(Finding& finding, const Flag& flag) {
  append(finding.places, place_of(flag.stack));
  append(finding.places, flag.value ? 1 : 0);
}

void name(Finding& finding, const at::Tensor& tensor) {
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  finding.tensor = state::opaque_id(&impl);
  finding.counter = state::opaque_id(state::counter_address(impl));
}

struct Merge {
  Flow flow;
  Chain chain;
};

// What the recorder knows of values, locked for as long as this lives.
struct Values {
  Journal& journal = Journal::get();
  std::lock_guard<decltype(Journal::mutex)> lock{journal.mutex};
  StackId call = call_of(journal);
  Origins& origins = Origins::get();
  std::lock_guard<decltype(Origins::mutex)> origins_lock{origins.mutex};
  ByNumber& index = ByNumber::get();

  Values() {
    index.begin(origins);
  }
};

}  // namespace

Finding cut(const std::vector<const at::Tensor*>& tensors) {
  Finding finding;
  finding.found = true;
  StackId call = 0;
  std::map<StackId, uint64_t> frozen;  // lines that switched requires_grad off, and how often
  std::optional<Chain> chain;
  {
    Values known;
    Journal& journal = known.journal;
    Origins& origins = known.origins;
    ByNumber& index = known.index;
    call = known.call;
    chain.emplace(journal, index);
    for (const at::Tensor* tensor : tensors) {
      chain->add_tensor(origins, *tensor);
    }
    chain->follow();
    if (!chain->has_cut()) {
      origins.flags.each([&](const void*, const journal::FlagChange& change) {
        if (change.value == 0) {
          ++frozen[change.stack];
        }
      });
    }
  }
  append(finding.places, place_of(call));
  append(finding.places, tensors.size());
  chain->append_to(finding);
  std::map<uint64_t, uint64_t> lines;
  for (const auto& [stack, count] : frozen) {
    lines[place_of(stack)] += count;
  }
  for (const auto& [line, count] : lines) {
    append(finding.places, line);
    append(finding.details, count);
  }
  if (!tensors.empty()) {
    name(finding, *tensors.front());
  }
  return finding;
}

Finding hidden(const Roots& roots, const std::vector<const at::Tensor*>& tensors, uint32_t why) {
  Finding finding;
  finding.found = true;
  const Below below(roots);
  finding.is_whole = below.whole;
  std::vector<const at::Tensor*> leaves;
  std::unordered_set<uint64_t> nodes;
  const auto mixed = [](const NodeId& id) {
    return id.sequence * 0x9e3779b97f4a7c15ull + id.thread;
  };
  for (const auto& at : below.nodes) {
    if (const at::Tensor* leaf = state::leaf_of(*at.node)) {
      leaves.push_back(leaf);
    } else if ((why & recorder::kConstantTerm) != 0) {
      nodes.insert(mixed({at.node->thread_id(), at.node->sequence_nr()}));
    }
  }
  StackId call = 0;
  std::vector<std::pair<Chain, Flag>> chains;
  std::vector<Merge> merges;
  const at::Tensor* named = nullptr;
  {
    Values known;
    Journal& journal = known.journal;
    Origins& origins = known.origins;
    ByNumber& index = known.index;
    call = known.call;
    const auto follow = [&](const at::Tensor& tensor) {
      chains.emplace_back(Chain(journal, index), flag_of(origins, *tensor.unsafeGetTensorImpl()));
      chains.back().first.add_tensor(origins, tensor);
      chains.back().first.follow();
      named = named == nullptr ? &tensor : named;
    };
    if ((why & recorder::kLeafRoot) != 0) {
      for (const at::Tensor* tensor : tensors) {
        const c10::TensorImpl& impl = *tensor->unsafeGetTensorImpl();
        if (state::is_leaf(impl) && state::requires_grad(impl)) {
          follow(*tensor);
        }
      }
    }
    constexpr uint32_t kPython = journal::kFromPython | journal::kTaintPython;
    size_t looked_at = 0;
    for (const at::Tensor* leaf : leaves) {
      const c10::TensorImpl& impl = *leaf->unsafeGetTensorImpl();
      const Flow* flow = origins.flows.find(journal::as_target(impl));
      const bool came = flow != nullptr && (flow->flags & kPython) != 0;
      if (!came) {
        append(finding.details, static_cast<uint64_t>(state::opaque_id(&impl)));
      } else if ((why & recorder::kRebuiltLeaf) != 0 && looked_at < kMostLeaves) {
        follow(*leaf);
      }
      ++looked_at;
    }
    if ((why & recorder::kConstantTerm) != 0) {
      std::set<StackId> seen;
      index.each_merge([&](const Flow& flow) {
        if (below.thread != 0 && flow.source_thread == below.thread &&
            flow.source_sequence < below.oldest) {
          return false;
        }
        if (nodes.count(mixed({flow.source_thread, flow.source_sequence})) != 0 &&
            seen.insert(flow.stack).second) {
          merges.push_back(Merge{flow, Chain(journal, index)});
          for (uint32_t parent : flow.parents) {
            if (parent != 0) {
              merges.back().chain.add_number(parent);
            }
          }
          merges.back().chain.follow();
        }
        return true;
      });
    }
  }
  append(finding.places, place_of(call));
  append(finding.places, why);
  append(finding.places, leaves.size());
  for (const auto& [chain, flag] : chains) {
    append_flag(finding, flag);
    chain.append_to(finding);
  }
  for (const Merge& merge : merges) {
    append(finding.places, place_of(merge.flow.stack));
    append(finding.places, merge.flow.op);
    append(finding.places, merge.flow.flags);
    append(finding.places, merge.chain.is_taken_by(merge.flow.source) ? 1 : 0);
    merge.chain.append_to(finding);
  }
  if (named != nullptr) {
    name(finding, *named);
  }
  return finding;
}

std::vector<journal::LeafSets::Facts> leaves_behind(uint32_t number, bool held) {
  Values known;
  Flow flow;
  bool is_birth = false;
  if (!known.index.find(number, flow, is_birth) || is_birth) {
    return {};
  }
  return known.origins.leaves.facts_of(held ? flow.held : flow.behind);
}

std::vector<int64_t> starved() {
  Origins& origins = Origins::get();
  std::lock_guard lock(origins.mutex);
  return origins.leaves.starved_leaves();
}

std::vector<int64_t> unreached(const std::vector<int64_t>& leaves) {
  Origins& origins = Origins::get();
  std::lock_guard lock(origins.mutex);
  std::vector<int64_t> found;
  std::copy_if(leaves.begin(), leaves.end(), std::back_inserter(found), [&](int64_t leaf) {
    return !origins.leaves.is_reached(leaf);
  });
  return found;
}

}  // namespace gradext::findings
