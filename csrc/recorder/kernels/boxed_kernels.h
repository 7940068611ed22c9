// Makes kernels that work for every op, over its boxed arguments.
#pragma once

#include "recorder/op_facts.h"

#include <torch/library.h>

#include <memory>

namespace gradext::recorder {

torch::CppFunction boxed_write(std::unique_ptr<OpFacts> facts);
torch::CppFunction boxed_view(std::unique_ptr<OpFacts> facts);
torch::CppFunction boxed_result(std::unique_ptr<OpFacts> facts);
// For ops of which nothing is recorded, and that may write what they do not declare.
torch::CppFunction boxed_secret(std::unique_ptr<OpFacts> facts);
// For ops that are registered after register_kernels().
torch::CppFunction boxed_fallback();

}  // namespace gradext::recorder
