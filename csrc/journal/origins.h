// Stores what is known of tensors without gradient, within a bound of memory: which op made an
// inference tensor, and how values were computed on after a gradient path was cut. The recorder
// appends, readers copy out. Holds no tensor alive.
#pragma once

#include "base/locks.h"
#include "journal/events.h"
#include "journal/leaf_sets.h"
#include "journal/live_table.h"
#include "journal/ring.h"

#include <c10/core/TensorImpl.h>

#include <cstddef>
#include <cstdint>
#include <mutex>

namespace gradext::journal {

// Hold counts through this base; a pointer to the object need not point to it.
const void* as_target(const c10::TensorImpl& impl);
// What a birth is known by: the tensor's storage, or the tensor where it has none.
const void* birth_target(const c10::TensorImpl& impl);

class Origins {
 public:
  static Origins& get();
  void set_memory(size_t bytes);
  void clear();
  // In bytes, of what is held now.
  size_t bytes() const;

  // Everything below is guarded by `mutex`.
  base::Mutex<base::Rank::kOrigins> mutex;
  LiveTable<Birth> births;      // by storage, or by tensor where there is none
  LiveTable<Flow> flows;        // by tensor
  LiveTable<FlagChange> flags;  // by tensor
  Ring<Flow, 256> past;         // flows of tensors that have died, and those without a tensor
  LeafSets leaves;              // that lie behind cuts
  uint64_t last_number = 0;

  const Birth* birth_of(const c10::TensorImpl& impl);
  template <class Visit>
  void each_stack(Visit&& visit) const {
    const auto both = [&](const auto& event) {
      visit(event.stack);
      visit(event.mode);
    };
    births.each_value(both);
    flows.each_value(both);
    past.each(both);
    flags.each_value([&](const FlagChange& event) { visit(event.stack); });
  }
};

// What one event costs. That of a tensor that lives takes an entry of a table, which is a little
// more than this; that of one that has died takes a place in the ring.
constexpr size_t kBirthBytes = sizeof(Birth) + sizeof(Hold) + 4 * sizeof(uint32_t);
constexpr size_t kFlowBytes = sizeof(Flow);

}  // namespace gradext::journal
