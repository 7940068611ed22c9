// Makes kernels without boxing for the ops that nearly every program runs.
#pragma once

#include "recorder/op_facts.h"

#include <ATen/core/boxing/KernelFunction.h>

#include <memory>
#include <string>
#include <unordered_map>

namespace gradext::recorder {

using AnyFunction = void (*)();

// What makes the kernel of an op: a function that all ops of its signature share, and the op's own
// `call` and `redispatch` of at::_ops.
struct FastKernel {
  c10::KernelFunction (*make)(std::unique_ptr<OpFacts>, AnyFunction call, AnyFunction redispatch);
  AnyFunction call;
  AnyFunction redispatch;
  c10::impl::CppSignature signature;
};

// By the full names of the ops.
using FastKernels = std::unordered_map<std::string, FastKernel>;
FastKernels fast_kernels();

}  // namespace gradext::recorder
