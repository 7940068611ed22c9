// Included before every C++ source of a build for other machines (GRADEXT_OLD_GLIBC=1): what is
// linked then asks for no symbol that is newer than glibc 2.28, which torch's own wheels ask for.
#pragma once

#include <features.h>

#ifdef __GLIBC__

// Since 2.34 they are in libc itself, under a new version; it still has the first one too.
#if defined(__x86_64__)
#define GRADEXT_FIRST_GLIBC "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define GRADEXT_FIRST_GLIBC "GLIBC_2.17"
#endif
#ifdef GRADEXT_FIRST_GLIBC
__asm__(".symver pthread_once,pthread_once@" GRADEXT_FIRST_GLIBC);
__asm__(".symver pthread_mutex_trylock,pthread_mutex_trylock@" GRADEXT_FIRST_GLIBC);
#endif

// Since 2.32 glibc says whether there is one thread only, and libstdc++'s headers ask it before an
// atomic operation. 0 is always right: torch has threads.
extern "C" {
__attribute__((weak, visibility("hidden"))) char __libc_single_threaded = 0;
}

#endif
