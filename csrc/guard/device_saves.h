// Compares saved tensors that are not on the CPU. Their fingerprints stay on their device; one
// comparison, and one wait, ends each backward. Who wrote is known where an op did; a raw write on
// a device has no line, and the answer is the window between the save and the use.
#pragma once

#include "base/locks.h"
#include "guard/entry.h"
#include "guard/reports.h"

#include <ATen/core/Tensor.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace gradext::guard {

// Whether the tensor is to be fingerprinted on its device, without waiting.
bool is_deferred(const at::Tensor& tensor);
// int64[n, 2] on the tensors' device, in one launch; undefined where it cannot be done.
at::Tensor fingerprints_there(const std::vector<at::Tensor>& tensors);
// Compares the entry's fingerprint with row `row` of `now`, on their device, when backward has
// ended.
void compare_later(
    const std::shared_ptr<Entry>& entry, const at::Tensor& now, int64_t row, Told told);
// Throws a base::Stop where the program is to be stopped.
void compare_deferred();
void forget_deferred();
// For tests: treat tensors on the CPU like those of another device.
inline std::atomic<bool> defers_all{false};
base::Mutex<base::Rank::kDeviceSaves>& deferred_mutex();  // for fork

}  // namespace gradext::guard
