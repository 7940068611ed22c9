// Which op gets which kernel, and the locks around a fork: what is done once per process.
#include "journal/snapshot.h"
#include "recorder/kernels/kernel_rules.h"
#include "recorder/lost_gradients/flows.h"

#include <pthread.h>

#include <algorithm>
#include <unordered_set>

namespace gradext::recorder {
namespace {

// In-place ops that change how a tensor looks at its memory, and not the memory.
const std::unordered_set<std::string>& metadata_ops() {
  static const std::unordered_set<std::string> names = {
      "aten::detach_",
      "aten::squeeze_",
      "aten::unsqueeze_",
      "aten::t_",
      "aten::transpose_",
      "aten::swapaxes_",
      "aten::swapdims_",
      "aten::as_strided_",
      "aten::requires_grad_",
      "aten::rename_",
      "aten::set_",
      "aten::record_stream",
      "aten::_coalesced_",
      "aten::retain_grad",
      "aten::resize_",
      "aten::resize_as_",
      "aten::set_data",
      "aten::sparse_resize_"};
  return names;
}

// Ops that take the shape and the type of a tensor, and none of its values.
bool reads_no_values(const std::string& name) {
  const auto ends_in = [&](const std::string& end) {
    return name.size() > end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
  };
  return ends_in("_like") || name.compare(0, 10, "aten::new_") == 0;
}

// Ops whose second result is what a program may want: `x.max(1)[1]`.
bool gives_indices(const std::string& name) {
  static const std::unordered_set<std::string> names = {
      "aten::max",
      "aten::min",
      "aten::topk",
      "aten::sort",
      "aten::median",
      "aten::nanmedian",
      "aten::mode",
      "aten::kthvalue",
      "aten::cummax",
      "aten::cummin"};
  return names.count(name) != 0;
}

// Where the terms of a loss come together.
const std::unordered_set<std::string>& additive_ops() {
  static const std::unordered_set<std::string> names = {
      "aten::add",
      "aten::sub",
      "aten::rsub",
      "aten::add_",
      "aten::sub_",
      "aten::stack",
      "aten::cat"};
  return names;
}

}  // namespace

std::unique_ptr<OpFacts> facts_of(const c10::FunctionSchema& schema) {
  auto facts = std::make_unique<OpFacts>();
  facts->arguments = schema.arguments().size();
  for (size_t k = 0; k < schema.arguments().size(); ++k) {
    const auto* alias = schema.arguments()[k].alias_info();
    if (alias != nullptr && alias->isWrite()) {
      facts->written.push_back(static_cast<uint16_t>(k));
      facts->writes_lists |= schema.arguments()[k].type()->kind() == c10::TypeKind::ListType;
    }
  }
  if (facts->written.empty()) {
    for (const auto& result : schema.returns()) {
      if (result.alias_info() != nullptr) {
        facts->makes_views = true;
        facts->makes_many_views |=
            result.type()->kind() == c10::TypeKind::ListType || schema.returns().size() > 1;
      }
    }
  }
  const std::string& name = schema.name();
  facts->name = intern_name(name);
  facts->is_aten = name.compare(0, 6, "aten::") == 0;
  facts->metadata_only = metadata_ops().count(name) != 0;
  facts->detaches = name == "aten::detach_";
  facts->is_factory = std::none_of(
      schema.arguments().begin(), schema.arguments().end(), [](const c10::Argument& argument) {
        return argument.type()->str().find("Tensor") != std::string::npos;
      });
  facts->carries_data = !reads_no_values(name);
  facts->gives_indices = schema.returns().size() > 1 && gives_indices(name);
  facts->is_scaling = name == "aten::mul" || name == "aten::div" || name == "aten::mul_" ||
                      name == "aten::div_" || name == "aten::pow";
  facts->is_additive = additive_ops().count(name) != 0;
  return facts;
}

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

std::vector<std::mutex*>& held_logs() {
  static auto* held = new std::vector<std::mutex*>;
  return *held;
}

void lock_all() {
  Journal& journal = Journal::get();
  journal.mutex.lock();
  Origins::get().mutex.lock();
  names_mutex().lock();
  held_logs().clear();
  for (const auto& log : journal.save_logs) {
    log->mutex.lock();
    held_logs().push_back(&log->mutex);
  }
  snapshots_mutex().lock();
  stacks_lock();
}

void unlock_all() {
  stacks_unlock();
  snapshots_mutex().unlock();
  for (std::mutex* mutex : held_logs()) {
    mutex->unlock();
  }
  names_mutex().unlock();
  Origins::get().mutex.unlock();
  Journal::get().mutex.unlock();
}

}  // namespace

// The kernels stay registered: on a thread without the
// key nothing reaches them, and the dispatcher does the same work with or without them.
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
    if (!facts->written.empty()) {
      target.impl(
          short_name.c_str(),
          fast != fast_ones.end() ? fast->second(std::move(facts)) : boxed_write(std::move(facts)));
    } else if (
        facts->makes_views &&
        !op->hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd)) {
      target.impl(
          short_name.c_str(),
          fast != fast_ones.end() ? fast->second(std::move(facts)) : boxed_view(std::move(facts)));
    } else {
      // Composites: the ops that they call are seen themselves.
      target.impl(short_name.c_str(), torch::CppFunction::makeFallthrough());
      if (fast != fast_ones.end()) {
        library(std::string(*space), kNodeKey)
            .impl(short_name.c_str(), fast->second(std::move(facts)));
      } else if (!facts->makes_views && is_wanted(*op)) {
        library(std::string(*space), kNodeKey)
            .impl(short_name.c_str(), boxed_result(std::move(facts)));
      }
    }
  }
}

// A fork while another thread holds one of the locks would leave it locked in the child for ever.
void register_fork_handlers() {
  pthread_atfork(&lock_all, &unlock_all, &unlock_all);
}

}  // namespace gradext::recorder
