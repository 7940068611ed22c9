// Adds up the blocks of contiguous bytes, the CPU's inner loop: one variant per instruction set,
// all with the results of mix.h. Owns the choice among them; knows no tensors.
#pragma once

#include "fingerprint/mix.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace gradext::fingerprint {

// What is read after some bytes: the memory is asked for it while those are read.
struct Ahead {
  const uint8_t* data = nullptr;
  size_t bytes = 0;
};

// Adds the blocks in `bytes` bytes at `data` (any alignment), the first of which is the tensor's
// block `block`. Only the tensor's last block may be short.
using Blocks =
    void (*)(const uint8_t* data, size_t bytes, uint64_t block, const Ahead& next, Sums& sums);

// The fastest variant that this processor has, or the one forced.
Blocks blocks();

// The names of the variants that can run here, fastest first; "plain" is always the last.
std::vector<std::string> variants();
std::string variant();
// Takes effect in all threads; an empty name gives the choice back. Returns false (and changes
// nothing) for a variant that cannot run here. GRADEXT_FINGERPRINT_VARIANT does it at load time.
bool force_variant(const std::string& name);

}  // namespace gradext::fingerprint
