// Gives the names of ops and functions numbers, which stand in the events.
#pragma once

#include "base/locks.h"

#include <cstdint>
#include <mutex>
#include <string>

namespace gradext::journal {

// The name's number, the same at every call; 0 where there are too many.
uint32_t intern_name(const std::string& name);
// "" for a number that was never given.
std::string op_name(uint32_t op);
base::Mutex<base::Rank::kNames>& names_mutex();  // for fork

}  // namespace gradext::journal
