// Asks the processor to fetch memory into its cache that is read a little later.
#pragma once

namespace gradext::base {

// Any address will do, a null one and one beyond its object included. GCC takes a function that
// does nothing but prefetch for one without effects, and drops its calls: the empty asm is one.
inline void prefetch(const void* at) {
#if defined(__GNUC__)
  __builtin_prefetch(at);
  asm volatile("");
#endif
}

// The first `lines` lines of 64 bytes.
inline void prefetch(const void* at, int lines) {
  for (int line = 0; line < lines; ++line) {
    prefetch(static_cast<const char*>(at) + 64 * line);
  }
}

}  // namespace gradext::base
