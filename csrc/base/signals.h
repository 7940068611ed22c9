// Calls gradext's Python code so that none of the program's signal handlers runs inside it.
//
// The error of a handler that raises there would come up anywhere in gradext or in the standard
// library below it, with locks held, where an `except` may swallow it (TimeoutError is an OSError).
// And which error is a handler's could not be told from one of gradext's own afterwards. So the
// handlers in Python's table are exchanged for one of ours while such a call runs on the main
// thread. It notes the signal and cuts the call short; when the call is over the program's own
// handler is called, at the program's line, and what it raises is the program's. What arrives by
// other ways (PyThreadState_SetAsyncExc) leaves the call as an exception, and is judged in
// gradext/base/interrupts.py.
#pragma once

#include <pybind11/pybind11.h>

namespace gradext::base {

// Throws ForTheProgram with what leaves the call, or a handler.
pybind11::object call_back(pybind11::handle function, const pybind11::tuple& arguments);

void bind_signals(pybind11::module_& m);

}  // namespace gradext::base
