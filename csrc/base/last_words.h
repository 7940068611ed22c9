// Prints what is known of a run and was not told yet when a signal ends the process.
//
// The text is made beforehand, in Python; the handler only writes it (open(2), poll(2) and write(2)
// are async-signal-safe, signal-safety(7)), puts back the disposition that it has found, and lets
// the signal come again: the process ends as it would have ended, by the same signal. Handlers
// stand only while there is a text, and only where nobody has put one: a signal that the program
// handles is the program's. One exception, for faults: before Python's faulthandler, which ends the
// process too.
#pragma once

#include <pybind11/pybind11.h>

namespace gradext::base {

void bind_last_words(pybind11::module_& m);

}  // namespace gradext::base
