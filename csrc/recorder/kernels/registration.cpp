#include "recorder/kernels/registration.h"

#include "recorder/kernels/boxed_kernels.h"
#include "recorder/kernels/fast_kernels.h"
#include "recorder/switch.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace gradext::recorder {
namespace {

bool gives_tensors(const c10::FunctionSchema& schema) {
  for (const auto& result : schema.returns()) {
    if (result.type()->str().find("Tensor") != std::string::npos) {
      return true;
    }
  }
  return false;
}

// Whether the op may make graph nodes or new tensors by itself: all that are differentiated, and
// factories. Composites are made of ops that are seen themselves.
bool is_wanted(const c10::OperatorHandle& op) {
  if (!gives_tensors(op.schema())) {
    return false;
  }
  for (c10::DispatchKey key :
       {c10::DispatchKey::Autograd,
        c10::DispatchKey::AutogradCPU,
        c10::DispatchKey::AutogradCUDA,
        c10::DispatchKey::AutogradNestedTensor}) {
    if (op.hasKernelForDispatchKey(key)) {
      return true;
    }
  }
  return false;
}

}  // namespace

// The kernels stay registered: on a thread without the key nothing reaches them, and the dispatcher
// does the same work with or without them.
void register_kernels() {
  using Libraries = std::unordered_map<std::string, std::unique_ptr<torch::Library>>;
  static auto* libraries = new Libraries;  // never destroyed, so never deregistered
  const auto library = [](const std::string& space, c10::DispatchKey key) -> torch::Library& {
    auto& place = (*libraries)[space + (key == kKey ? "" : " nodes")];
    if (!place) {
      place = std::make_unique<torch::Library>(
          torch::Library::IMPL, space, key, "csrc/recorder/kernels/registration.cpp", 0);
    }
    return *place;
  };
  c10::Dispatcher& dispatcher = c10::Dispatcher::singleton();
  // Not through torch::Library, whose impl() derives a schema from the kernel's signature: that is
  // a tenth of the compiler's work on this library, for a check that the signature makes as well.
  static auto* fast_registrations = new std::vector<c10::RegistrationHandleRAII>;
  const auto add_fast = [&dispatcher](
                            const c10::OperatorName& name,
                            c10::DispatchKey key,
                            const FastKernel& kernel,
                            std::unique_ptr<OpFacts> facts) {
    fast_registrations->push_back(dispatcher.registerImpl(
        name,
        key,
        kernel.make(std::move(facts), kernel.call, kernel.redispatch),
        kernel.signature,
        nullptr,
        "gradext: csrc/recorder/kernels/fast_kernels.cpp"));
  };
  const FastKernels fast_ones = fast_kernels();
  library("_", kKey).fallback(boxed_fallback());
  library("_", kNodeKey).fallback(torch::CppFunction::makeFallthrough());
  for (const c10::OperatorName& name : dispatcher.getAllOpNames()) {
    const auto op = dispatcher.findSchema(name);
    const auto space = name.getNamespace();
    if (!op || !space) {
      continue;
    }
    const std::string full = c10::toString(name);
    const std::string short_name = full.substr(space->size() + 2);
    std::unique_ptr<OpFacts> facts = facts_of(op->schema());
    torch::Library& target = library(std::string(*space), kKey);
    const auto fast = fast_ones.find(full);
    const bool is_fast = fast != fast_ones.end();
    const bool is_view = facts->makes_views &&
                         !op->hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd);
    if (is_fast && (!facts->written.empty() || is_view)) {
      add_fast(name, kKey, fast->second, std::move(facts));
    } else if (!facts->written.empty()) {
      target.impl(short_name.c_str(), boxed_write(std::move(facts)));
    } else if (is_view) {
      target.impl(short_name.c_str(), boxed_view(std::move(facts)));
    } else {
      // Composites: the ops that they call are seen themselves. What an op that is not torch's may
      // write in C++ is not.
      if (!facts->is_aten && !facts->secret.empty()) {
        target.impl(short_name.c_str(), boxed_secret(facts_of(op->schema())));
      } else {
        target.impl(short_name.c_str(), torch::CppFunction::makeFallthrough());
      }
      if (is_fast) {
        add_fast(name, kNodeKey, fast->second, std::move(facts));
      } else if (!facts->makes_views && is_wanted(*op)) {
        library(std::string(*space), kNodeKey)
            .impl(short_name.c_str(), boxed_result(std::move(facts)));
      }
    }
  }
}

}  // namespace gradext::recorder
