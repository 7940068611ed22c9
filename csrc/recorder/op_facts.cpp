#include "recorder/op_facts.h"

#include "journal/names.h"

#include <algorithm>
#include <string>
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

// Steps and draws: they have a derivative, and it is zero everywhere.
bool is_flat(const std::string& name) {
  static const std::unordered_set<std::string> names = {
      "aten::round",
      "aten::floor",
      "aten::ceil",
      "aten::trunc",
      "aten::sign",
      "aten::sgn",
      "aten::round_",
      "aten::floor_",
      "aten::ceil_",
      "aten::trunc_",
      "aten::sign_",
      "aten::sgn_",
      // What compares in place keeps its type, and its node hands on zeros.
      "aten::gt_",
      "aten::ge_",
      "aten::lt_",
      "aten::le_",
      "aten::eq_",
      "aten::ne_",
      "aten::bernoulli_",
      // Draws: of what the distribution is made of.
      "aten::bernoulli",
      "aten::normal",
      "aten::poisson"};
  return names.count(name) != 0;
}

// Draws of a distribution that is made of the inputs.
bool is_draw(const std::string& name) {
  static const std::unordered_set<std::string> names = {
      "aten::bernoulli",
      "aten::normal",
      "aten::poisson",
      "aten::multinomial",
      "aten::binomial",
      "aten::_standard_gamma",
      "aten::_sample_dirichlet"};
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

// What the op may write although its schema does not say so.
std::vector<uint16_t> secret_arguments(const c10::FunctionSchema& schema) {
  const std::string& name = schema.name();
  const auto is_of = [&](const char* space) { return name.rfind(space, 0) == 0; };
  if (is_of("prim::") || is_of("prims::") || is_of("gradext::")) {
    return {};
  }
  const bool is_aten = is_of("aten::");
  if (is_aten && name.find("batch_norm") == std::string::npos &&
      name.find("instance_norm") == std::string::npos) {
    return {};
  }
  std::vector<uint16_t> found;
  for (size_t k = 0; k < schema.arguments().size(); ++k) {
    const c10::Argument& argument = schema.arguments()[k];
    if (is_aten ? argument.name().rfind("running_", 0) == 0
                : argument.type()->str().find("Tensor") != std::string::npos) {
      found.push_back(static_cast<uint16_t>(k));
    }
  }
  return found;
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
  facts->name = journal::intern_name(name);
  facts->is_aten = name.compare(0, 6, "aten::") == 0;
  facts->secret = secret_arguments(schema);
  facts->metadata_only = metadata_ops().count(name) != 0;
  facts->detaches = name == "aten::detach_";
  facts->is_detach = name == "aten::detach";
  facts->is_factory = std::none_of(
      schema.arguments().begin(), schema.arguments().end(), [](const c10::Argument& argument) {
        return argument.type()->str().find("Tensor") != std::string::npos;
      });
  facts->carries_data = !reads_no_values(name);
  facts->gives_indices = schema.returns().size() > 1 && gives_indices(name);
  facts->is_scaling = name == "aten::mul" || name == "aten::div" || name == "aten::mul_" ||
                      name == "aten::div_" || name == "aten::pow";
  facts->is_flat = is_flat(name);
  facts->is_draw = is_draw(name);
  facts->is_additive = additive_ops().count(name) != 0;
  return facts;
}

}  // namespace gradext::recorder
