// Holds a tensor, a storage or a version counter weakly: it may die, and its address is not given
// to another object while the Hold lives.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <utility>

namespace gradext::base {

// A weak reference: keeps an address from being used again, and nothing else.
class Hold {
 public:
  explicit Hold(const void* target)
      : target_(static_cast<c10::intrusive_ptr_target*>(const_cast<void*>(target))) {
    c10::raw::weak_intrusive_ptr::incref(target_);
  }
  Hold(Hold&& other) noexcept : target_(other.target_) {
    other.target_ = nullptr;
  }
  Hold& operator=(Hold&& other) noexcept {
    std::swap(target_, other.target_);
    return *this;
  }
  Hold(const Hold&) = delete;
  Hold& operator=(const Hold&) = delete;
  ~Hold() {
    if (target_) {
      c10::raw::weak_intrusive_ptr::decref(target_);
    }
  }
  const void* target() const {
    return target_;
  }
  // Keeps it alive where it lives; null where it has died. Who holds it last destroys it: let go of
  // it with the GIL and under no lock.
  c10::intrusive_ptr<c10::intrusive_ptr_target> alive() const {
    return c10::intrusive_ptr<c10::intrusive_ptr_target>::reclaim(
        c10::raw::weak_intrusive_ptr::lock(target_));
  }
  bool is_dead() const {
    return c10::raw::weak_intrusive_ptr::use_count(target_) == 0;
  }

 private:
  c10::intrusive_ptr_target* target_;
};

}  // namespace gradext::base
