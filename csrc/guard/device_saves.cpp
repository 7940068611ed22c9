#include "guard/device_saves.h"

#include "base/aside.h"
#include "recorder/switch.h"
#include "state/state.h"

#include <ATen/ops/stack.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>

#ifdef GRADEXT_WITH_CUDA
#include <c10/cuda/CUDAGraphsC10Utils.h>
#endif

namespace gradext::guard {

namespace {

struct Comparison {
  std::shared_ptr<Entry> entry;
  at::Tensor now;
  int64_t row;
  Told told;
};

struct Deferred {
  base::Mutex<base::Rank::kDeviceSaves> mutex;
  std::vector<Comparison> comparisons;
};

Deferred& deferred() {
  static Deferred* instance = new Deferred;
  return *instance;
}

// Ops of the guard's own are none of the program's: not recorded, not differentiated, not cast.
class Unseen {
 public:
  Unseen()
      : excluded_(
            c10::DispatchKeySet({recorder::kKey, recorder::kNodeKey}) |
            c10::autocast_dispatch_keyset |
            c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot})),
        below_() {}

 private:
  c10::impl::ExcludeDispatchKeyGuard excluded_;
  at::AutoDispatchBelowADInplaceOrView below_;
};

}  // namespace

bool is_deferred(const at::Tensor& tensor) {
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  if (defers_all) {
    return fingerprint::can_fingerprint(tensor);
  }
  // A wrapper subclass may answer for its device and layout in Python, and is asked for neither.
  return state::has_strides(impl) && !state::is_wrapper_subclass(impl) && tensor.is_cuda() &&
         impl.layout() == c10::kStrided && !state::is_stand_in(impl) &&
         !state::stands_on_another(impl) && state::storage(impl) != nullptr &&
         state::storage(impl)->nbytes() > 0;
}

at::Tensor fingerprints_there(const std::vector<at::Tensor>& tensors) {
#ifdef GRADEXT_WITH_CUDA
  if (tensors[0].is_cuda() &&
      c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None) {
    return {};  // what is captured runs later, and not for us
  }
#endif
  for (const at::Tensor& tensor : tensors) {
    if (tensor.device() != tensors[0].device()) {
      return {};
    }
  }
  const Unseen unseen;
  return fingerprint::fingerprint_list(tensors);
}

void compare_later(
    const std::shared_ptr<Entry>& entry, const at::Tensor& now, int64_t row, Told told) {
  Comparison made{entry, now, row, std::move(told)};
  std::lock_guard lock(deferred().mutex);
  deferred().comparisons.push_back(std::move(made));
}

void compare_deferred() {
  std::vector<Comparison> comparisons;
  {
    std::lock_guard lock(deferred().mutex);
    comparisons.swap(deferred().comparisons);
  }
  if (comparisons.empty()) {
    return;
  }
  // One transfer for each device.
  std::stable_sort(
      comparisons.begin(), comparisons.end(), [](const Comparison& a, const Comparison& b) {
        return a.now.device().index() < b.now.device().index();
      });
  std::vector<char> flags;
  {
    const Unseen unseen;
    for (size_t begin = 0, end = 0; begin < comparisons.size(); begin = end) {
      std::vector<at::Tensor> before, after;
      const at::Device device = comparisons[begin].now.device();
      for (; end < comparisons.size() && comparisons[end].now.device() == device; ++end) {
        const Comparison& at = comparisons[end];
        before.push_back(at.entry->rows.select(0, at.row));
        after.push_back(at.now.select(0, at.row));
      }
      const at::Tensor changed = at::stack(before).ne(at::stack(after)).any(1).cpu();
      const bool* found = changed.const_data_ptr<bool>();
      flags.insert(flags.end(), found, found + changed.numel());
    }
  }
  std::exception_ptr stop;
  for (size_t k = 0; k < comparisons.size(); ++k) {
    if (flags[k] == 0) {
      continue;
    }
    try {
      tell_changed(comparisons[k].told, *comparisons[k].entry);
    } catch (const base::Stop&) {
      stop = stop ? stop : std::current_exception();
    }
  }
  if (stop) {
    std::rethrow_exception(stop);
  }
}

void forget_deferred() {
  std::vector<Comparison> comparisons;
  std::lock_guard lock(deferred().mutex);
  comparisons.swap(deferred().comparisons);
}

base::Mutex<base::Rank::kDeviceSaves>& deferred_mutex() {
  return deferred().mutex;
}

}  // namespace gradext::guard
