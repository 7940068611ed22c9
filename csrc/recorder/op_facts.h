// Reads from an op's schema, once, what the recorder wants to know of it.
#pragma once

#include <ATen/core/function_schema.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace gradext::recorder {

// What a schema says of an op, as far as the recorder cares.
struct OpFacts {
  uint32_t name = 0;
  size_t arguments = 0;
  std::vector<uint16_t> written;
  // Arguments that the op may write without saying so: any tensor of an op that is not torch's own,
  // and the running statistics of a normalisation.
  std::vector<uint16_t> secret;
  bool metadata_only = false;
  bool is_aten = false;
  bool makes_views = false;
  bool makes_many_views = false;
  bool writes_lists = false;   // as the ops of optimizers do
  bool detaches = false;       // detach_
  bool is_detach = false;      // detach
  bool is_factory = false;     // takes no tensor
  bool carries_data = true;    // false: only shape and type of its inputs matter (zeros_like)
  bool gives_indices = false;  // beside its first result
  bool is_scaling = false;     // mul, div: a number without gradient is a weight
  bool is_flat = false;        // round, sign: a derivative, which is zero
  bool is_draw = false;        // normal, multinomial
  bool is_additive = false;    // a term of a loss goes in, the loss comes out
  // Whether a write of this op moves a version counter, as far as one has been seen.
  enum class Counting : uint8_t { kNotSeen, kCounts, kDoesNot };
  mutable std::atomic<Counting> counting{Counting::kNotSeen};
};

std::unique_ptr<OpFacts> facts_of(const c10::FunctionSchema& schema);

// What is to be noted of the results of an op that is about to run on this thread.
enum class Watch : uint8_t {
  kNone,
  kBirths,  // inference mode is on
  kGrad,    // grad mode is on
  kNoGrad,  // it is off, and this is no backward
};

}  // namespace gradext::recorder
