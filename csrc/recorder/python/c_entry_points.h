// Watches functions of torch that no op shows, by exchanging the C functions behind them: grad mode
// and inference mode switched, `requires_grad` set, `.data` taken, values to and from numpy and
// lists.
#pragma once

#include <pybind11/pybind11.h>

namespace gradext::recorder {

void bind_entries(pybind11::module_& m);

}  // namespace gradext::recorder
