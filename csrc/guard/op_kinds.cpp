#include "guard/op_kinds.h"

#include <unordered_map>

namespace gradext::guard {
namespace {

OpKind read(const at::RecordFunction& fn) {
  OpKind kind;
  kind.name = fn.name();
  const auto schema = fn.operator_schema();
  if (!schema) {
    return kind;
  }
  const auto starts = [&](const char* with) { return kind.name.rfind(with, 0) == 0; };
  kind.is_aten = starts("aten::") || starts("gradext::") || starts("prim::") || starts("prims::");
  kind.is_secretive = kind.is_aten && (kind.name.find("batch_norm") != std::string::npos ||
                                       kind.name.find("instance_norm") != std::string::npos);
  const auto& arguments = schema->arguments();
  for (size_t k = 0; k < arguments.size(); ++k) {
    if (arguments[k].alias_info() != nullptr && arguments[k].alias_info()->isWrite()) {
      kind.written.push_back(static_cast<uint16_t>(k));
      kind.writes_list |= arguments[k].type()->kind() == c10::TypeKind::ListType;
    }
  }
  for (const auto& result : schema->returns()) {
    kind.makes_views |= result.alias_info() != nullptr && !result.alias_info()->isWrite();
  }
  return kind;
}

}  // namespace

const OpKind& kind_of(const at::RecordFunction& fn) {
  // The name lies in the op's own schema, so its address tells overloads apart; of an op that was
  // taken back, another one may have got the address.
  static thread_local std::unordered_map<const void*, OpKind> kinds;
  auto [place, is_new] = kinds.try_emplace(static_cast<const void*>(fn.name()));
  if (is_new || place->second.name != fn.name()) {
    place->second = read(fn);
  }
  return place->second;
}

}  // namespace gradext::guard
