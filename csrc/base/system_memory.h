// Allocates from the operating system, past malloc: for long arrays, and for blocks that stay.
//
// malloc keeps what it has handed out once: it raises its own threshold for mmap up to 32 MiB with
// what a program frees, and from then on gives back only the end of its heap, for each thread's
// heap apart. A snapshot made there would leave each thread that fails tens of megabytes larger,
// and a block of the journal at the end of the heap keeps all of the program's freed tensors below
// it from going back.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <memory>
#include <new>

namespace gradext::base {

inline void* map_memory(size_t bytes) {
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) {
    throw std::bad_alloc();
  }
  return at;
}

// An allocator for containers: short ones are malloc's.
template <typename T>
struct FromSystem {
  using value_type = T;
  static constexpr size_t kLong = 128 * 1024;  // bytes

  FromSystem() = default;
  template <typename U>
  FromSystem(const FromSystem<U>&) {}

  T* allocate(size_t count) {
    const size_t bytes = count * sizeof(T);
    return static_cast<T*>(bytes < kLong ? ::operator new(bytes) : map_memory(bytes));
  }
  void deallocate(T* at, size_t count) {
    const size_t bytes = count * sizeof(T);
    if (bytes < kLong) {
      ::operator delete(at);
    } else {
      munmap(at, bytes);
    }
  }
  bool operator==(const FromSystem&) const {
    return true;
  }
  bool operator!=(const FromSystem&) const {
    return false;
  }
};

template <typename T>
struct Unmap {
  void operator()(T* at) const {
    at->~T();
    munmap(at, sizeof(T));
  }
};

// One object of several pages, never in malloc's heap.
template <typename T>
using Mapped = std::unique_ptr<T, Unmap<T>>;

template <typename T>
Mapped<T> make_mapped() {
  void* at = map_memory(sizeof(T));
  try {
    return Mapped<T>(new (at) T);  // not T(): that would touch each of its pages
  } catch (...) {
    munmap(at, sizeof(T));
    throw;
  }
}

}  // namespace gradext::base
