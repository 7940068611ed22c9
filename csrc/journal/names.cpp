#include "journal/names.h"

#include <unordered_map>
#include <vector>

namespace gradext::journal {
namespace {

constexpr size_t kMostNames = 1 << 17;

struct Names {
  base::Mutex<base::Rank::kNames> mutex;  // guards what follows
  std::vector<std::string> names{""};
  std::unordered_map<std::string, uint32_t> index;
};

// Never destroyed: threads may outlive main().
Names& all() {
  static Names* instance = new Names;
  return *instance;
}

}  // namespace

uint32_t intern_name(const std::string& name) {
  Names& g = all();
  std::lock_guard lock(g.mutex);
  const auto known = g.index.find(name);
  if (known != g.index.end()) {
    return known->second;
  }
  if (g.names.size() >= kMostNames) {
    return 0;  // a program that defines ops without end
  }
  const auto number = static_cast<uint32_t>(g.names.size());
  g.index.emplace(name, number);
  g.names.push_back(name);
  return number;
}

std::string op_name(uint32_t op) {
  Names& g = all();
  std::lock_guard lock(g.mutex);
  return op < g.names.size() ? g.names[op] : std::string();
}

base::Mutex<base::Rank::kNames>& names_mutex() {
  return all().mutex;
}

}  // namespace gradext::journal
