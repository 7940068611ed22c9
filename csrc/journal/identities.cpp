#include "journal/identities.h"

namespace gradext::journal {

uint64_t Identities::of(const void* target, uint64_t order) {
  if (target == nullptr) {
    return 0;
  }
  bool is_new = false;
  Known* known = known_.put(target, is_new, [](const Known&) {});
  if (is_new) {
    known->number = ++last_;  // never given again, not even after clear()
  }
  known->order = order;
  return known->number;
}

uint64_t Identities::known(const void* target) {
  const Known* known = target != nullptr ? known_.find(target) : nullptr;
  return known != nullptr ? known->number : 0;
}

}  // namespace gradext::journal
