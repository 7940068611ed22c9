// Reads from an op's schema, once, what the guard wants to know of it.
#pragma once

#include <ATen/record_function.h>

#include <cstdint>
#include <string>
#include <vector>

namespace gradext::guard {

// What of an op's schema matters here.
struct OpKind {
  std::string name;
  bool is_aten = true;
  bool is_secretive = false;  // writes what it does not declare (docs/ops-that-lie.md)
  bool writes_list = false;
  bool makes_views = false;
  std::vector<uint16_t> written;
};
const OpKind& kind_of(const at::RecordFunction& op);

}  // namespace gradext::guard
