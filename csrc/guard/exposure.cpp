#include "guard/exposure.h"

#include "base/aside.h"
#include "fingerprint/fingerprint.h"
#include "guard/lines/exposed.h"
#include "guard/lines/trace.h"
#include "guard/live_nodes.h"
#include "state/state.h"

#include <c10/util/SmallVector.h>

#include <vector>

namespace gradext::guard {
namespace {

// Null where there are no bytes that could be compared.
const c10::StorageImpl* storage_of_bytes(const at::Tensor& tensor) {
  if (!tensor.defined() || !fingerprint::can_fingerprint(tensor)) {
    return nullptr;
  }
  return state::storage(*tensor.unsafeGetTensorImpl());
}

// Fingerprints all that was saved in these storages before. Listing is done once for each node, so
// that a program which hands out memory often pays no more than one whose saves are all listed.
void take_entries_in(c10::ArrayRef<const c10::StorageImpl*> storages) {
  base::under_gil([&] {
    const auto nodes = taken_live_nodes();
    for (const auto& held : nodes) {
      held.second->list();
    }
    for (const c10::StorageImpl* storage : storages) {
      for (const std::shared_ptr<Entry>& entry : entries_in(storage)) {
        entry->take_now();
      }
    }
  });
}

}  // namespace

void note_exposed(const at::Tensor& tensor) {
  const c10::StorageImpl* storage = storage_of_bytes(tensor);
  if (storage == nullptr) {
    return;
  }
  if (expose(storage, By::kHands)) {
    take_entries_in(storage);
  }
  watch_lines_of(storage);
}

void note_before_write(c10::ArrayRef<at::Tensor> tensors) {
  c10::SmallVector<const c10::StorageImpl*, 4> exposed;
  for (const at::Tensor& tensor : tensors) {
    const c10::StorageImpl* storage = storage_of_bytes(tensor);
    if (storage != nullptr && expose(storage, By::kOps)) {
      exposed.push_back(storage);
    }
  }
  if (!exposed.empty()) {
    take_entries_in(exposed);
  }
}

void note_after_write(c10::ArrayRef<at::Tensor> tensors) {
  std::vector<const void*> storages;
  for (const at::Tensor& tensor : tensors) {
    if (const c10::StorageImpl* storage = storage_of_bytes(tensor)) {
      storages.push_back(storage);
    }
  }
  if (!storages.empty()) {
    look_at(storages);
  }
}

}  // namespace gradext::guard
