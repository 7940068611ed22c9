#include "recorder/before_writes.h"

#include "fingerprint/fingerprint.h"
#include "journal/journal.h"
#include "state/state.h"

#include <c10/core/Storage.h>
#include <c10/core/TensorImpl.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <c10/util/complex.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <unordered_map>

namespace gradext::recorder {

using fingerprint::Value;
using journal::Journal;

namespace {

using WeakStorage = c10::weak_intrusive_ptr<c10::StorageImpl>;

// Of all that is kept, the largest part that one copy may be; more is fingerprinted.
constexpr size_t kLargestShare = 4;
constexpr size_t kEntryBytes = 256;         // what one costs beside its bytes
constexpr int64_t kMostWindow = 256 << 20;  // bytes that are put back to how they were
constexpr int64_t kMostFloats = 16 << 20;   // bytes of them that are compared as numbers
constexpr size_t kMostRegions = 128;        // that are compared with each other
constexpr double kShare = 0.05;             // of the program's time, as the checks in Python
constexpr double kAllowance = 0.2;          // seconds beside that
constexpr double kRoundings = 4;            // a change of so many last places is none
constexpr double kExcursion = 8;            // times as far away must the value have been

// The fingerprint of the region's bytes, in the region's order. Dispatches nothing.
Value fingerprint_of(c10::Storage storage, const Region& region) {
  c10::SmallVector<int64_t, 5> sizes, strides;
  for (const auto& [count, step] : region.rows) {
    sizes.push_back(count);
    strides.push_back(step);
  }
  sizes.push_back(region.run);
  strides.push_back(1);
  auto impl = c10::make_intrusive<c10::TensorImpl>(
      std::move(storage),
      c10::DispatchKeySet(c10::DispatchKey::CPU),
      caffe2::TypeMeta::Make<uint8_t>());
  impl->set_sizes_and_strides(sizes, strides, region.offset);
  return fingerprint::of_cpu(at::Tensor(std::move(impl)));
}

// Bytes of ours as torch has its own. They live longer.
c10::Storage borrowed(const uint8_t* bytes, size_t count) {
  return c10::Storage(
      c10::make_intrusive<c10::StorageImpl>(
          c10::StorageImpl::use_byte_size_t(),
          count,
          c10::DataPtr(const_cast<uint8_t*>(bytes), c10::Device(c10::kCPU)),
          nullptr,
          false));
}

const uint8_t* data_of(const c10::StorageImpl& storage) {
  return static_cast<const uint8_t*>(storage.data());
}

}  // namespace

class Before {
 public:
  Before(WeakStorage in, Region where, c10::ScalarType kind)
      : storage(std::move(in)), region(std::move(where)), dtype(kind) {}

  WeakStorage storage;
  Region region;
  c10::ScalarType dtype;
  uint64_t thread = 0, sequence = 0;  // autograd's sequence number when it was taken
  std::vector<uint8_t> bytes;         // empty: only the fingerprint is known
  Value value;

  bool is_copy() const {
    return !bytes.empty();
  }
  size_t cost() const {
    return bytes.size() + kEntryBytes;
  }
};

namespace {

struct Kept {
  base::Mutex<base::Rank::kBefore> mutex;  // guards what follows
  std::map<uint64_t, BeforePtr> by_order;
  std::unordered_map<const void*, uint64_t> latest;  // by storage
  uint64_t shrunk = 0;  // up to here large copies have become fingerprints
  size_t bytes = 0;
  std::atomic<double> spent{0};  // seconds
  std::atomic<double> since{0};
};

// Never destroyed: threads may outlive main().
Kept& kept() {
  static Kept* instance = new Kept;
  return *instance;
}

double now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

size_t most_bytes() {
  return Journal::get().memory() / 16;
}

// The last one of the same bytes, if no node was made since: whatever was saved before this write
// was saved before that one.
BeforePtr known_already(
    const c10::StorageImpl* storage, const Region& region, uint64_t thread, uint64_t sequence) {
  Kept& g = kept();
  std::lock_guard lock(g.mutex);
  const auto last = g.latest.find(storage);
  if (last == g.latest.end()) {
    return nullptr;
  }
  const auto found = g.by_order.find(last->second);
  if (found == g.by_order.end()) {
    g.latest.erase(last);
    return nullptr;
  }
  const BeforePtr& before = found->second;
  const bool is_same = before->thread == thread && before->sequence == sequence &&
                       !before->storage.expired() && before->region == region;
  return is_same ? before : nullptr;
}

}  // namespace

BeforePtr look_before(const at::Tensor& target, uint64_t thread, uint64_t sequence) {
  const c10::TensorImpl& impl = *target.unsafeGetTensorImpl();
  if (!fingerprint::can_fingerprint(target) || impl.numel() == 0) {
    return nullptr;
  }
  Kept& g = kept();
  const double start = now();
  if (g.since == 0) {
    g.since = start;
  }
  if (g.spent > kAllowance + kShare * (start - g.since)) {
    return nullptr;
  }
  const auto itemsize = static_cast<int64_t>(impl.itemsize());
  Region region =
      region_of(impl.storage_offset() * itemsize, itemsize, impl.sizes(), impl.strides());
  const c10::Storage& storage = impl.unsafe_storage();
  const int64_t bytes = bytes_of(region);
  const bool is_large = bytes > static_cast<int64_t>(most_bytes() / kLargestShare);
  if (is_large) {
    BeforePtr before = known_already(storage.unsafeGetStorageImpl(), region, thread, sequence);
    if (before != nullptr) {
      return before;
    }
  }
  auto before = std::make_shared<Before>(
      storage.getWeakStorageImpl(), std::move(region), c10::typeMetaToScalarType(impl.dtype()));
  before->thread = thread;
  before->sequence = sequence;
  if (is_large) {
    before->value = fingerprint_of(storage, before->region);
  } else {
    before->bytes.resize(static_cast<size_t>(bytes));
    const uint8_t* data = data_of(*storage.unsafeGetStorageImpl());
    each_run(before->region, [&](int64_t where, int64_t number) {
      const int64_t run = before->region.run;
      std::memcpy(before->bytes.data() + number * run, data + where, static_cast<size_t>(run));
    });
  }
  g.spent = g.spent + (now() - start);
  return before;
}

namespace {

// The same, of which no more than the fingerprint is kept.
BeforePtr shrunk(const Before& before) {
  auto smaller = std::make_shared<Before>(before.storage, before.region, before.dtype);
  smaller->thread = before.thread;
  smaller->sequence = before.sequence;
  Region packed = before.region;
  packed.offset = 0;
  int64_t step = packed.run;
  for (size_t k = packed.rows.size(); k > 0; --k) {
    packed.rows[k - 1].second = step;
    step *= packed.rows[k - 1].first;
  }
  smaller->value = fingerprint_of(borrowed(before.bytes.data(), before.bytes.size()), packed);
  return smaller;
}

}  // namespace

void keep_before(BeforePtr before, uint64_t order) {
  Kept& g = kept();
  std::vector<BeforePtr> dropped;  // let go of without the mutex
  std::lock_guard lock(g.mutex);
  if (g.latest.size() > 4096) {
    g.latest.clear();
  }
  g.latest[before->storage._unsafe_get_target()] = order;
  g.bytes += before->cost();
  g.by_order[order] = std::move(before);
  // Of older ones the fingerprint is enough; then the oldest have to go.
  auto copy = g.by_order.upper_bound(g.shrunk);
  while (g.bytes > most_bytes() && g.by_order.size() > 1) {
    if (copy != g.by_order.end() && copy->first != order) {
      g.shrunk = copy->first;
      if (copy->second->bytes.size() > kEntryBytes) {
        dropped.push_back(shrunk(*copy->second));
        g.bytes -= copy->second->bytes.size();
        copy->second.swap(dropped.back());
      }
      ++copy;
      continue;
    }
    g.bytes -= g.by_order.begin()->second->cost();
    dropped.push_back(std::move(g.by_order.begin()->second));
    g.by_order.erase(g.by_order.begin());
  }
}

namespace {

// One suspect and what is known of it.
struct Step {
  Suspect write;
  BeforePtr before;
};

// Elements of a window that have changed have come back to what they were but for rounding: they
// had been far away in between.
template <class T>
bool came_back(
    const std::vector<Step>& steps,
    const Region& saved,
    int64_t low,
    const std::vector<uint8_t>& then,
    const std::vector<uint8_t>& current) {
  const auto number = [](const uint8_t* at) {
    T value;
    std::memcpy(&value, at, sizeof(T));
    return static_cast<double>(value);
  };
  const size_t count = then.size() / sizeof(T);
  const auto high = low + static_cast<int64_t>(then.size());
  std::vector<double> scale(count), away(count);
  for (size_t k = 0; k < count; ++k) {
    scale[k] =
        std::max(std::abs(number(&then[k * sizeof(T)])), std::abs(number(&current[k * sizeof(T)])));
  }
  for (const Step& step : steps) {
    const Region& region = step.before->region;
    each_run(region, [&](int64_t where, int64_t index) {
      const int64_t from = std::max(where, low), to = std::min(where + region.run, high);
      for (int64_t at = from; at + static_cast<int64_t>(sizeof(T)) <= to; at += sizeof(T)) {
        const double value = number(step.before->bytes.data() + index * region.run + (at - where));
        const auto k = static_cast<size_t>(at - low) / sizeof(T);
        scale[k] = std::max(scale[k], std::abs(value));
        away[k] = std::max(away[k], std::abs(value - number(&then[k * sizeof(T)])));
      }
    });
  }
  bool all = true;
  each_run(saved, [&](int64_t where, int64_t) {
    const int64_t from = std::max(where, low), to = std::min(where + saved.run, high);
    for (int64_t at = from; all && at + static_cast<int64_t>(sizeof(T)) <= to; at += sizeof(T)) {
      const auto k = static_cast<size_t>(at - low) / sizeof(T);
      if (std::memcmp(&then[k * sizeof(T)], &current[k * sizeof(T)], sizeof(T)) == 0) {
        continue;
      }
      const double off = std::abs(number(&current[k * sizeof(T)]) - number(&then[k * sizeof(T)]));
      const double last_place = static_cast<double>(std::numeric_limits<T>::epsilon()) * scale[k];
      all = off <= kRoundings * last_place && kExcursion * off <= away[k];
    }
  });
  return all;
}

bool came_back(
    const std::vector<Step>& steps,
    const Region& saved,
    int64_t low,
    const std::vector<uint8_t>& then,
    const std::vector<uint8_t>& current) {
  const c10::ScalarType dtype = steps.front().before->dtype;
  const auto other = [&](const Step& step) { return step.before->dtype != dtype; };
  if (std::any_of(steps.begin(), steps.end(), other) ||
      static_cast<int64_t>(then.size()) > kMostFloats) {
    return false;
  }
  switch (dtype) {
    case c10::ScalarType::Double:
    case c10::ScalarType::ComplexDouble:
      return came_back<double>(steps, saved, low, then, current);
    case c10::ScalarType::Float:
    case c10::ScalarType::ComplexFloat:
      return came_back<float>(steps, saved, low, then, current);
    case c10::ScalarType::Half:
      return came_back<c10::Half>(steps, saved, low, then, current);
    case c10::ScalarType::BFloat16:
      return came_back<c10::BFloat16>(steps, saved, low, then, current);
    default:
      return false;
  }
}

// A part of what was saved: as it is, and as it was before the writes.
struct Window {
  int64_t low = 0;  // the first byte
  std::vector<uint8_t> current, then;
};

// All writes were of known bytes: undone one after the other, the last one first, they give what
// was saved. False where that is too much.
bool undo(
    const c10::StorageImpl& storage,
    const Region& saved,
    const std::vector<Step>& steps,
    Window& window) {
  int64_t low = std::numeric_limits<int64_t>::max(), high = 0;
  for (const Step& step : steps) {
    low = std::min(low, step.before->region.offset);
    high = std::max(high, step.before->region.end());
  }
  low = std::max(low, saved.offset);
  high = std::min(high, saved.end());
  if (high - low > kMostWindow || high > static_cast<int64_t>(storage.nbytes())) {
    return false;
  }
  window.low = low;
  if (high <= low) {
    return true;
  }
  window.current.assign(data_of(storage) + low, data_of(storage) + high);
  window.then = window.current;
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    const Before& before = *step->before;
    const int64_t run = before.region.run;
    each_run(before.region, [&](int64_t where, int64_t number) {
      const int64_t from = std::max(where, low), to = std::min(where + run, high);
      if (from < to) {
        std::memcpy(
            window.then.data() + (from - low),
            before.bytes.data() + number * run + (from - where),
            static_cast<size_t>(to - from));
      }
    });
  }
  return true;
}

bool is_same(const Region& saved, const std::vector<Step>& steps, const Window& window) {
  const auto high = window.low + static_cast<int64_t>(window.then.size());
  bool all = true;
  each_run(saved, [&](int64_t where, int64_t) {
    const int64_t from = std::max(where, window.low), to = std::min(where + saved.run, high);
    all = all && (from >= to || std::memcmp(
                                    window.then.data() + (from - window.low),
                                    window.current.data() + (from - window.low),
                                    static_cast<size_t>(to - from)) == 0);
  });
  return all || came_back(steps, saved, window.low, window.then, window.current);
}

bool is_as_before(const c10::Storage& storage, const Before& before) {
  const Region& region = before.region;
  if (region.end() > static_cast<int64_t>(storage.nbytes())) {
    return false;
  }
  if (!before.is_copy()) {
    return fingerprint_of(storage, region) == before.value;
  }
  bool is_same = true;
  const uint8_t* data = data_of(*storage.unsafeGetStorageImpl());
  each_run(region, [&](int64_t where, int64_t number) {
    is_same = is_same && std::memcmp(
                             data + where,
                             before.bytes.data() + number * region.run,
                             static_cast<size_t>(region.run)) == 0;
  });
  return is_same;
}

// Some are known by their fingerprint only, or not at all. The first write to a region says what
// was there when no other one had reached into it before.
Verdict compare_regions(
    const c10::Storage& storage, const Region& saved, const std::vector<Step>& steps) {
  std::vector<const Step*> firsts;
  bool is_known = true;
  const auto overlap = [](const Suspect& a, const Suspect& b) {
    return a.begin < b.end && b.begin < a.end;
  };
  for (size_t k = 0; k < steps.size(); ++k) {
    const Step& step = steps[k];
    if (step.before == nullptr) {
      is_known = is_known && std::any_of(firsts.begin(), firsts.end(), [&](const Step* first) {
                   const Region& region = first->before->region;
                   return region.is_dense() && region.offset <= step.write.begin &&
                          step.write.end <= region.end();
                 });
      continue;
    }
    const bool is_first = std::none_of(firsts.begin(), firsts.end(), [&](const Step* first) {
      return first->before->region == step.before->region;
    });
    if (!is_first) {
      continue;
    }
    if (firsts.size() >= kMostRegions) {
      return Verdict::kUnknown;
    }
    firsts.push_back(&step);
    if (is_as_before(storage, *step.before)) {
      continue;
    }
    const Region& region = step.before->region;
    const bool is_within = region == saved || (saved.is_dense() && region.offset >= saved.offset &&
                                               region.end() <= saved.end());
    const auto end = steps.begin() + static_cast<ptrdiff_t>(k);
    const bool is_untouched = std::none_of(steps.begin(), end, [&](const Step& earlier) {
      return overlap(earlier.write, step.write);
    });
    if (is_within && is_untouched) {
      return Verdict::kChanged;
    }
    is_known = false;
  }
  return is_known ? Verdict::kSame : Verdict::kUnknown;
}

}  // namespace

namespace {

// What is known of the writes that reach into the region, in time.
std::vector<Step> steps_of(const Region& saved, std::vector<Suspect> suspects) {
  std::sort(suspects.begin(), suspects.end(), [](const Suspect& a, const Suspect& b) {
    return a.order < b.order;
  });
  std::vector<Step> steps;
  Kept& g = kept();
  std::lock_guard lock(g.mutex);
  for (const Suspect& write : suspects) {
    if (write.begin < saved.end() && saved.offset < write.end) {
      const auto found = g.by_order.find(write.order);
      steps.push_back(Step{write, found != g.by_order.end() ? found->second : nullptr});
    }
  }
  return steps;
}

// The storage that the writes went to; none where it is another one, or gone.
c10::Storage storage_of(const std::vector<Step>& steps, const c10::StorageImpl* wanted) {
  c10::Storage alive;
  for (const Step& step : steps) {
    if (step.before == nullptr) {
      continue;
    }
    auto locked = step.before->storage.lock();
    if (!locked || locked.get() != wanted) {
      return {};
    }
    alive = c10::Storage(std::move(locked));
  }
  return alive && alive.data() != nullptr ? alive : c10::Storage();
}

bool are_copies(const std::vector<Step>& steps) {
  return std::all_of(steps.begin(), steps.end(), [](const Step& step) {
    return step.before != nullptr && step.before->is_copy();
  });
}

}  // namespace

Verdict compare_with_before(
    const c10::StorageImpl* storage, const Region& saved, std::vector<Suspect> suspects) {
  const std::vector<Step> steps = steps_of(saved, std::move(suspects));
  if (steps.empty()) {
    return Verdict::kSame;
  }
  const c10::Storage alive = storage_of(steps, storage);
  if (!alive) {
    return Verdict::kUnknown;
  }
  if (!are_copies(steps)) {
    return compare_regions(alive, saved, steps);
  }
  Window window;
  if (!undo(*alive.unsafeGetStorageImpl(), saved, steps, window)) {
    return Verdict::kUnknown;
  }
  return is_same(saved, steps, window) ? Verdict::kSame : Verdict::kChanged;
}

bool came_back_since(const at::Tensor& saved, uint64_t order, const Value& value) {
  const c10::TensorImpl& impl = *saved.unsafeGetTensorImpl();
  const c10::StorageImpl* storage = state::storage(impl);
  if (storage == nullptr || !state::has_strides(impl)) {
    return false;
  }
  std::vector<Suspect> suspects;
  {
    Journal& journal = Journal::get();
    std::lock_guard lock(journal.mutex);
    const uint64_t number = journal.identities.known(storage);
    for (size_t k = journal.writes.size(); k > 0; --k) {
      const journal::Write& write = journal.writes.at(k - 1);
      if (write.order <= order) {
        break;
      }
      if (number != 0 && write.storage == number && (write.flags & journal::kNote) == 0) {
        suspects.push_back(Suspect{write.order, write.extent.begin, write.extent.end});
      }
    }
  }
  const auto itemsize = static_cast<int64_t>(impl.itemsize());
  const int64_t offset = impl.storage_offset() * itemsize;
  const Region region = region_of(offset, itemsize, impl.sizes(), impl.strides());
  const std::vector<Step> steps = steps_of(region, std::move(suspects));
  const c10::Storage alive = storage_of(steps, storage);
  Window window;
  // A storage may have been made smaller since.
  if (!alive || region.end() > static_cast<int64_t>(storage->nbytes()) || !are_copies(steps) ||
      region.end() - offset > kMostWindow ||
      !undo(*alive.unsafeGetStorageImpl(), region, steps, window) ||
      !is_same(region, steps, window)) {
    return false;
  }
  // Nothing else has changed it if these writes undone give the very bytes.
  std::vector<uint8_t> bytes(data_of(*storage) + offset, data_of(*storage) + region.end());
  std::copy(window.then.begin(), window.then.end(), bytes.begin() + (window.low - offset));
  auto then = c10::make_intrusive<c10::TensorImpl>(
      borrowed(bytes.data(), bytes.size()),
      c10::DispatchKeySet(c10::DispatchKey::CPU),
      impl.dtype());
  then->set_sizes_and_strides(impl.sizes(), impl.strides(), 0);
  return fingerprint::of_cpu(at::Tensor(std::move(then))) == value;
}

size_t before_bytes() {
  Kept& g = kept();
  std::lock_guard lock(g.mutex);
  return g.bytes;
}

void forget_before() {
  Kept& g = kept();
  std::map<uint64_t, BeforePtr> dropped;
  {
    std::lock_guard lock(g.mutex);
    dropped.swap(g.by_order);
    g.latest.clear();
    g.bytes = g.shrunk = 0;
  }
  g.spent = g.since = 0;
}

base::Mutex<base::Rank::kBefore>& before_mutex() {
  return kept().mutex;
}

}  // namespace gradext::recorder
