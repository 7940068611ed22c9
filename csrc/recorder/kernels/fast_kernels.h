// Makes kernels without boxing for the ops that nearly every program runs.
#pragma once

#include "recorder/op_facts.h"

#include <torch/library.h>

#include <memory>
#include <string>
#include <unordered_map>

namespace gradext::recorder {

// By the full names of the ops.
using FastKernel = torch::CppFunction (*)(std::unique_ptr<OpFacts>);
using FastKernels = std::unordered_map<std::string, FastKernel>;
FastKernels fast_kernels();

}  // namespace gradext::recorder
