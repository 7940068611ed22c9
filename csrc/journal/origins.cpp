#include "journal/origins.h"

#include "state/state.h"

namespace gradext::journal {

// Hold counts through this base; a pointer to the object need not point to it.
const void* as_target(const c10::TensorImpl& impl) {
  return static_cast<const c10::intrusive_ptr_target*>(&impl);
}

const void* birth_target(const c10::TensorImpl& impl) {
  const c10::StorageImpl* storage =
      state::is_wrapper_subclass(impl) ? nullptr : state::storage(impl);
  return storage != nullptr ? static_cast<const c10::intrusive_ptr_target*>(storage)
                            : static_cast<const c10::intrusive_ptr_target*>(&impl);
}

Origins& Origins::get() {
  static Origins* origins = new Origins;  // never destroyed: threads may outlive main()
  return *origins;
}

// An eighth of the journal's memory for what lives, and an eighth for what does not; beside that a
// little for the leaves behind cuts.
void Origins::set_memory(size_t bytes) {
  std::lock_guard lock(mutex);
  const size_t entry = sizeof(Flow) + 3 * sizeof(void*);
  flows.set_capacity(bytes / 16 / entry);
  births.set_capacity(bytes / 32 / (sizeof(Birth) + 3 * sizeof(void*)));
  flags.set_capacity(bytes / 32 / (sizeof(FlagChange) + 3 * sizeof(void*)));
  past.set_capacity(bytes / 8 / sizeof(Flow));
  leaves.set_memory(bytes / 32);
}

void Origins::clear() {
  std::lock_guard lock(mutex);
  births.clear();
  flows.clear();
  flags.clear();
  past.clear();
  leaves.clear();
}

size_t Origins::bytes() const {
  return births.bytes() + flows.bytes() + flags.bytes() + past.capacity_bytes() + leaves.bytes();
}

const Birth* Origins::birth_of(const c10::TensorImpl& impl) {
  return births.find(birth_target(impl));
}

}  // namespace gradext::journal
