#include "base/signals.h"

#include "base/aside.h"

#include <csignal>
#include <vector>

namespace py = pybind11;

namespace gradext::base {
namespace {

struct Exchanged {
  int number;
  py::object handler;
  bool has_arrived = false;
};

// Under the GIL, and changed by the main thread alone. Never destroyed.
struct Deferral {
  std::vector<Exchanged> signals;
  int calls = 0;             // each within the one before
  unsigned long thread = 0;  // that makes them
  int whole = 0;             // blocks that are not to be cut short
  py::object ours, cut_short, get, set;
  std::vector<py::object> forked;  // called in a child of fork()
};

Deferral& deferral() {
  static Deferral* instance = new Deferral;
  return *instance;
}

// Called by Python in the place of the program's handler.
void arrived(int number, const py::object& frame) {
  Deferral& state = deferral();
  for (Exchanged& signal : state.signals) {
    if (signal.number == number) {
      if (state.calls == 0) {
        signal.handler(number, frame);  // a child of fork() that has not put it back yet
        return;
      }
      signal.has_arrived = true;
    }
  }
  if (state.calls > 0 && state.whole == 0) {
    PyErr_SetNone(state.cut_short.ptr());
    throw py::error_already_set();
  }
}

// signal.signal(), but for what it does to the disposition: flags that siginterrupt() has set, a
// handler of C that was put before Python's. It runs the handlers of signals that have arrived.
// False: with a Python error set.
bool exchange(int number, const py::object& handler) {
  struct sigaction disposition{};
  const bool is_known = sigaction(number, nullptr, &disposition) == 0;
  PyObject* before = PyObject_CallFunction(deferral().set.ptr(), "iO", number, handler.ptr());
  if (before == nullptr) {
    return false;
  }
  Py_DECREF(before);
  if (is_known) {
    sigaction(number, &disposition, nullptr);
  }
  return true;
}

// Puts every handler back. Returns the first error that one of the program's raised meanwhile; the
// others are raised at the program's next lines.
py::object put_back(std::vector<Exchanged>& signals) {
  py::object raised;
  for (Exchanged& signal : signals) {
    for (int k = 0; k < 64 && !exchange(signal.number, signal.handler); ++k) {
      py::object error = detail::take_error();
      if (!raised) {
        raised = std::move(error);
      } else {
        raise_later(std::move(error));  // two cannot be raised at once
      }
    }
  }
  return raised;
}

// False on threads that run no handlers, and within another call.
bool begin(py::object& raised) {
  Deferral& state = deferral();
  if (state.calls > 0) {
    return false;
  }
  if (!state.set) {
    const py::object module = import_module("_signal");
    state.get = module.attr("getsignal");
    state.set = module.attr("signal");
    state.ours = py::cpp_function(&arrived);
  }
  // Python calls handlers, and lets them be exchanged, on this thread of this interpreter alone.
  if (!is_main_thread() || PyInterpreterState_Get() != PyInterpreterState_Main()) {
    return false;
  }
  state.calls = 1;
  state.thread = PyThread_get_thread_ident();
  ++state.whole;
  for (int number = 1; number < NSIG; ++number) {
    PyObject* handler = PyObject_CallFunction(state.get.ptr(), "i", number);
    if (handler == nullptr) {
      PyErr_Clear();  // a number that is none
      continue;
    }
    py::object held = py::reinterpret_steal<py::object>(handler);
    if (PyLong_Check(handler) || held.is_none() || held.is(state.ours)) {
      continue;  // the default, ignored, or not Python's
    }
    if (!exchange(number, state.ours)) {
      // A handler's, of a signal that was there before: whatever its class, it is the program's.
      raised = detail::take_error();
      if (py::object another = put_back(state.signals)) {
        raise_later(std::move(another));
      }
      state.signals.clear();
      --state.whole;
      state.calls = 0;
      return false;
    }
    state.signals.push_back({number, std::move(held)});
  }
  --state.whole;
  return true;
}

// Calls the handlers of what has arrived. Returns the error of the first that raises.
py::object end() {
  Deferral& state = deferral();
  std::vector<Exchanged> signals;
  signals.swap(state.signals);
  // Those that arrive until the last is put back are noted like those before.
  state.signals = signals;
  py::object raised = put_back(state.signals);
  signals.swap(state.signals);
  state.signals.clear();
  state.calls = 0;
  for (Exchanged& signal : signals) {
    if (!signal.has_arrived) {
      continue;
    }
    if (raised) {
      PyErr_SetInterruptEx(signal.number);  // as Python does: the others' turn comes later
      continue;
    }
    auto* frame = reinterpret_cast<PyObject*>(PyEval_GetFrame());
    PyObject* result = PyObject_CallFunction(
        signal.handler.ptr(), "iO", signal.number, frame != nullptr ? frame : Py_None);
    if (result == nullptr) {
      raised = detail::take_error();
    }
    Py_XDECREF(result);
  }
  return raised;
}

py::object call(PyObject* function, PyObject* arguments, PyObject* keywords, py::object& raised) {
  Deferral& state = deferral();
  py::object early;
  const bool is_outermost = begin(early);
  if (early) {
    raised = std::move(early);
    return {};
  }
  PyObject* result = PyObject_Call(function, arguments, keywords);
  py::object error = result == nullptr ? detail::take_error() : py::object();
  if (is_outermost) {
    ++state.whole;
    raised = end();
    --state.whole;
    if (error && py::type::handle_of(error).is(state.cut_short)) {
      error = py::object();
    }
  }
  if (!raised) {
    raised = std::move(error);
  }
  return py::reinterpret_steal<py::object>(result);
}

// CPython prints what leaves a function that fork() calls, and goes on. So this one is none of
// Python's, in which handlers would run, and what a handler raises meanwhile is raised after it.
void in_child() {
  py::object first;  // not raised before all is done: it would be raised in the next function
  const auto raise = [&](py::object raised) {
    if (!first) {
      first = std::move(raised);
    }
  };
  const bool is_stopped = aside([&] {
    Deferral& state = deferral();
    if (state.calls > 0) {  // another thread has forked, and is the main thread now
      state.calls = 0;
      py::object raised = put_back(state.signals);
      state.signals.clear();
      state.whole = 0;
      raise(std::move(raised));
    }
    ++state.whole;
    for (const py::object& function : state.forked) {
      py::object done;
      for (int k = 0; k < 8 && !done; ++k) {  // not called where a handler has raised before it
        py::object raised;
        done = call(function.ptr(), py::tuple().ptr(), nullptr, raised);
        raise(std::move(raised));
      }
    }
    --state.whole;
  });
  if (is_stopped) {
    raise(detail::take_error());
  }
  if (first) {
    raise_later(std::move(first));
  }
}

}  // namespace

py::object call_back(py::handle function, const py::tuple& arguments) {
  py::object raised;
  py::object result = call(function.ptr(), arguments.ptr(), nullptr, raised);
  if (raised) {
    throw ForTheProgram(std::move(raised));
  }
  return result;
}

void bind_signals(py::module_& m) {
  PyObject* cut_short = PyErr_NewExceptionWithDoc(
      "gradext._C.CutShort",
      "A signal has arrived: gradext's work is to end here. Never leaves gradext.",
      PyExc_BaseException,
      nullptr);
  if (cut_short == nullptr) {
    throw py::error_already_set();
  }
  deferral().cut_short = py::reinterpret_steal<py::object>(cut_short);
  m.attr("CutShort") = deferral().cut_short;
  m.def("call_back", [](const py::object& function, const py::args& args, const py::kwargs& named) {
    py::object raised;
    py::object result = call(function.ptr(), args.ptr(), named.ptr(), raised);
    if (raised) {
      detail::set_error(std::move(raised), nullptr);
      throw py::error_already_set();
    }
    return result ? result : py::object(py::none());
  });
  // A block that is finished before a signal cuts the call short.
  m.def("call_back_whole", [](bool begins) {
    Deferral& state = deferral();
    if (state.calls == 0 || state.thread != PyThread_get_thread_ident()) {
      return;
    }
    state.whole += begins ? 1 : -1;
    if (state.whole == 0) {
      for (const Exchanged& signal : state.signals) {
        if (signal.has_arrived) {
          PyErr_SetNone(state.cut_short.ptr());
          throw py::error_already_set();
        }
      }
    }
  });
  // Calls `function` in each child of os.fork() from now on.
  m.def("call_in_child", [](py::object function) {
    deferral().forked.push_back(std::move(function));
  });
  m.def("_in_child", &in_child);
  const py::object os = import_module("os");
  if (py::hasattr(os, "register_at_fork")) {
    os.attr("register_at_fork")(py::arg("after_in_child") = m.attr("_in_child"));
  }
}

}  // namespace gradext::base
