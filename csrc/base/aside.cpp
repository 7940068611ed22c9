#include "base/aside.h"

namespace py = pybind11;

namespace gradext::base {
namespace detail {

py::object take_error() {
  PyObject *type = nullptr, *value = nullptr, *trace = nullptr;
  PyErr_Fetch(&type, &value, &trace);
  if (type == nullptr) {
    return {};
  }
  PyErr_NormalizeException(&type, &value, &trace);
  if (trace != nullptr && value != nullptr) {
    PyException_SetTraceback(value, trace);
  }
  Py_XDECREF(type);
  Py_XDECREF(trace);
  return py::reinterpret_steal<py::object>(value);
}

py::object judge(py::object error) {
  if (!error || !PyErr_GivenExceptionMatches(error.ptr(), PyExc_Exception)) {
    return error;
  }
  count_fault((std::string(Py_TYPE(error.ptr())->tp_name) + ": " + text_of(error.ptr())).c_str());
  return {};
}

void set_error(py::object error, PyObject* pending) {
  if (pending != nullptr && pending != error.ptr()) {
    PyObject* context = PyException_GetContext(error.ptr());
    if (context == nullptr) {
      Py_INCREF(pending);
      PyException_SetContext(error.ptr(), pending);
    }
    Py_XDECREF(context);
  }
  PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(error.ptr()));
  Py_INCREF(type);
  PyObject* trace = PyException_GetTraceback(error.ptr());
  PyErr_Restore(type, error.release().ptr(), trace);
}

}  // namespace detail

namespace {

// As the interpreter calls it, on the main thread between two instructions.
int raise_kept(void* kept) {
  auto* error = static_cast<PyObject*>(kept);
  PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(error));
  Py_INCREF(type);
  PyErr_Restore(type, error, nullptr);
  return -1;
}

}  // namespace

bool is_main_thread() {
  const py::object threading = import_module("threading");
  const py::object main = py::getattr(threading, "_main_thread", py::none());
  const py::object ident = py::getattr(main, "_ident", py::none());
  if (!ident.is_none()) {
    return ident.cast<unsigned long>() == PyThread_get_thread_ident();
  }
  return threading.attr("main_thread")().attr("ident").cast<unsigned long>() ==
         PyThread_get_thread_ident();
}

void raise_later(py::object raised) {
  if (is_main_thread()) {
    if (Py_AddPendingCall(&raise_kept, raised.ptr()) == 0) {
      raised.release();
    }
  } else {
    PyThreadState_SetAsyncExc(
        PyThread_get_thread_ident(), reinterpret_cast<PyObject*>(Py_TYPE(raised.ptr())));
  }
}

void raise_later(Stop& error) {
  under_gil([&] {
    error.restore();
    if (py::object raised = detail::take_error()) {
      raise_later(std::move(raised));
    }
  });
}

bool python_is_up() {
  if (Py_IsInitialized() == 0) {
    return false;
  }
#if PY_VERSION_HEX >= 0x030d0000
  const bool is_ending = Py_IsFinalizing() != 0;
#else
  const bool is_ending = _Py_IsFinalizing() != 0;
#endif
  // The thread that ends it has the GIL.
  return !is_ending || PyGILState_Check() != 0;
}

}  // namespace gradext::base
