#include "guard/overlap.h"

#include "graph/each_tensor.h"
#include "state/state.h"

#include <algorithm>
#include <atomic>
#include <unordered_map>

namespace gradext::guard {
namespace {

// What is known of a tensor that overlaps itself, or is a part of one that does.
struct Known {
  WeakTensor tensor;
  std::vector<int64_t> sizes, strides;  // of the overlapping tensor
  StackId made = 0;
};

struct Overlaps {
  base::Mutex<base::Rank::kOverlaps> mutex;
  std::unordered_map<const void*, Known> tensors;
  size_t since_sweep = 0;
  std::atomic<bool> any{false};  // read without the mutex
};

Overlaps& known_overlaps() {
  static Overlaps* instance = new Overlaps;
  return *instance;
}

bool is_strided(const c10::TensorImpl& impl) {
  return state::has_strides(impl) && !state::is_wrapper_subclass(impl) &&
         impl.layout() == c10::kStrided;
}

// Whether two of its elements are one. Dimensions sorted by stride that each step over all that is
// below them never are; of others (as_strided can make any) it is not known, and "no" is said.
bool overlaps_itself(const c10::TensorImpl& impl) {
  if (!is_strided(impl) || impl.numel() < 2) {
    return false;
  }
  c10::SmallVector<std::pair<int64_t, int64_t>, 6> dims;  // stride, size
  for (int64_t d = 0; d < impl.dim(); ++d) {
    if (impl.size(d) > 1) {
      dims.emplace_back(impl.stride(d), impl.size(d));
    }
  }
  std::sort(dims.begin(), dims.end());
  int64_t span = 1;
  int64_t most = 1;
  bool is_nested = true;
  for (const auto& [stride, size] : dims) {
    if (stride == 0) {
      return true;
    }
    is_nested &= stride >= span;
    span = std::max(span, (size - 1) * stride + span);
    most += (size - 1) * stride;
  }
  // More elements than places between the first and the last.
  return !is_nested && impl.numel() > most;
}

}  // namespace

namespace {

int64_t elements(const at::Tensor& tensor) {
  return state::numel(*tensor.unsafeGetTensorImpl());
}

// What is known of the view's source, if the view is a part of it or overlaps itself too.
void inherit(
    Overlaps& state, const at::Tensor& source, const at::Tensor& view, bool itself, Known& known) {
  std::lock_guard lock(state.mutex);
  auto of_source = state.tensors.find(source.unsafeGetTensorImpl());
  const bool is_known =
      of_source != state.tensors.end() && of_source->second.tensor.use_count() > 0;
  if (is_known && (itself || elements(view) != elements(source))) {
    known.sizes = of_source->second.sizes;
    known.strides = of_source->second.strides;
    known.made = of_source->second.made;
  }
}

// Under the mutex.
void sweep_dead(Overlaps& state) {
  state.since_sweep = 0;
  for (auto place = state.tensors.begin(); place != state.tensors.end();) {
    place = place->second.tensor.use_count() == 0 ? state.tensors.erase(place) : ++place;
  }
}

void note_view(Overlaps& state, const at::Tensor& source, const at::Tensor& view) {
  if (!view.defined() || view.is_same(source)) {
    return;
  }
  const c10::TensorImpl& impl = *view.unsafeGetTensorImpl();
  const bool itself = overlaps_itself(impl);
  if (!itself && !state.any) {
    return;
  }
  Known known{weak(view), {}, {}, 0};
  if (source.defined()) {
    inherit(state, source, view, itself, known);
  }
  if (known.made == 0) {
    if (!itself) {
      return;
    }
    known.sizes = impl.sizes().vec();
    known.strides = impl.strides().vec();
    known.made = stacks::pinned(stacks::capture_stack());
  }
  std::lock_guard lock(state.mutex);
  if (++state.since_sweep > 256 + state.tensors.size()) {
    sweep_dead(state);
  }
  state.tensors.insert_or_assign(view.unsafeGetTensorImpl(), std::move(known));
  state.any = true;
}

}  // namespace

bool knows_overlaps() {
  return known_overlaps().any;
}

void note_views(const at::Tensor& source, const std::vector<c10::IValue>& outputs) {
  for (const c10::IValue& output : outputs) {
    graph::each_tensor(
        output, [&](const at::Tensor& view) { note_view(known_overlaps(), source, view); });
  }
}

void note_one_view(const at::Tensor& source, const at::Tensor& view) {
  note_view(known_overlaps(), knows_overlaps() ? source : at::Tensor(), view);
}

bool overlaps(const at::Tensor& written, Overlap& found) {
  if (!knows_overlaps()) {
    return false;
  }
  Overlaps& state = known_overlaps();
  std::lock_guard lock(state.mutex);
  auto known = state.tensors.find(written.unsafeGetTensorImpl());
  if (known == state.tensors.end() || known->second.tensor.use_count() == 0) {
    return false;
  }
  found.written = written;
  found.sizes = known->second.sizes;
  found.strides = known->second.strides;
  found.made = known->second.made;
  return true;
}

void sweep_overlaps() {
  Overlaps& state = known_overlaps();
  if (!state.any) {
    return;
  }
  std::lock_guard lock(state.mutex);
  sweep_dead(state);
  state.any = !state.tensors.empty();
}

void forget_overlaps() {
  Overlaps& state = known_overlaps();
  std::lock_guard lock(state.mutex);
  state.tensors.clear();
  state.any = false;
}

base::Mutex<base::Rank::kOverlaps>& overlaps_mutex() {
  return known_overlaps().mutex;
}

}  // namespace gradext::guard
