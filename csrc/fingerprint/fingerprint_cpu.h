// Computes fingerprints on the CPU, of tensors that tensor_source.h has described.
#pragma once

#include "fingerprint/fingerprint.h"
#include "fingerprint/tensor_source.h"

namespace gradext::fingerprint {

// Bytes must be in host memory. The result does not depend on the number of threads.
void of_sources(const Sources& sources, Value* out);

}  // namespace gradext::fingerprint
