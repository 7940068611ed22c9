// Loops in C++ around one call, for benchmarks: through the dispatcher, and past it. What a call
// from Python costs beyond the first is the Python binding, what the first costs beyond the second
// is the dispatcher.
#include "benchmarks/bind.h"

#include "example_ops/axpby.h"
#include "example_ops/window.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>
#include <torch/csrc/utils/pybind.h>

#include <map>
#include <memory>
#include <string>
#include <string_view>

namespace py = pybind11;

namespace gradext::benchmarks {

using namespace example_ops;

namespace {

// The arguments beside the tensors; gradext/_C.pyi says so too.
constexpr double kA = 0.5, kB = 0.5;
constexpr int64_t kDim = 0, kStart = 1, kLength = 2;

// Kept once found, and asked for without a copy of the name: what the look-up costs is in the time
// of the loop, and must not depend on how long a name is.
const c10::OperatorHandle& probe_op(std::string_view name) {
  static std::map<std::string, c10::OperatorHandle, std::less<>> found;  // under the GIL
  const auto at = found.find(name);
  if (at != found.end()) {
    return at->second;
  }
  const std::string own(name);
  const bool is_probe = own.rfind("axpby", 0) == 0 || own.rfind("window", 0) == 0;
  const auto op = c10::Dispatcher::singleton().findSchema({"gradext::" + own, ""});
  TORCH_CHECK_VALUE(is_probe && op.has_value(), "gradext._C: no probe is named ", own);
  return found.emplace(own, *op).first->second;
}

// `n` calls from the top of the dispatcher.
void dispatched(std::string_view name, int64_t n, at::Tensor x, const at::Tensor& y) {
  const c10::OperatorHandle& op = probe_op(name);
  const bool returns = !op.schema().returns().empty();
  const bool is_window = name.rfind("window", 0) == 0;
  const auto* alias = op.schema().arguments()[0].alias_info();
  if (is_window && returns) {
    const auto call = op.typed<at::Tensor(const at::Tensor&, int64_t, int64_t, int64_t)>();
    for (int64_t i = 0; i < n; ++i) {
      call.call(x, kDim, kStart, kLength);
    }
  } else if (is_window) {
    const auto call = op.typed<void(const at::Tensor&, int64_t, int64_t, int64_t)>();
    for (int64_t i = 0; i < n; ++i) {
      call.call(x, kDim, kStart, kLength);
    }
  } else if (returns) {
    const auto call = op.typed<at::Tensor(const at::Tensor&, const at::Tensor&, double, double)>();
    for (int64_t i = 0; i < n; ++i) {
      call.call(x, y, kA, kB);
    }
  } else if (alias != nullptr && alias->isWrite()) {
    const auto call = op.typed<void(at::Tensor&, const at::Tensor&, double, double)>();
    for (int64_t i = 0; i < n; ++i) {
      call.call(x, y, kA, kB);
    }
  } else {
    const auto call = op.typed<void(const at::Tensor&, const at::Tensor&, double, double)>();
    for (int64_t i = 0; i < n; ++i) {
      call.call(x, y, kA, kB);
    }
  }
}

void nothing(const at::Tensor& /*x*/, const at::Tensor& /*y*/, double /*a*/, double /*b*/) {}

// `n` calls of the bare C++ function.
void direct(std::string_view name, int64_t n, at::Tensor x, const at::Tensor& y) {
  // Through pointers that the compiler cannot see through, as it would leave out what does nothing.
  at::Tensor (*volatile functional)(const at::Tensor&, const at::Tensor&, double, double) = &axpby;
  void (*volatile inplace)(at::Tensor&, const at::Tensor&, double, double) = &axpby_;
  at::Tensor (*volatile view)(const at::Tensor&, int64_t, int64_t, int64_t) = &window;
  void (*volatile none)(const at::Tensor&, const at::Tensor&, double, double) = &nothing;
  if (name == "axpby") {
    for (int64_t i = 0; i < n; ++i) {
      functional(x, y, kA, kB);
    }
  } else if (name == "axpby_") {
    for (int64_t i = 0; i < n; ++i) {
      inplace(x, y, kA, kB);
    }
  } else if (name == "window") {
    for (int64_t i = 0; i < n; ++i) {
      view(x, kDim, kStart, kLength);
    }
  } else {
    TORCH_CHECK_VALUE(name == "nothing", "gradext._C: no function is named ", name);
    for (int64_t i = 0; i < n; ++i) {
      none(x, y, kA, kB);
    }
  }
}

// A floor to measure against: a RecordFunction callback that does nothing.
class EmptyObserver {
 public:
  explicit EmptyObserver(std::string mode) : inputs_(mode == "inputs") {
    if (mode != "inputs" && mode != "none") {
      throw py::value_error("empty_observer: mode is \"none\" or \"inputs\", got " + mode);
    }
  }
  void enter() {
    handle_ = at::addGlobalCallback(
        at::RecordFunctionCallback(
            [](const at::RecordFunction&) -> std::unique_ptr<at::ObserverContext> {
              return nullptr;
            })
            .needsInputs(inputs_)
            .scopes({at::RecordScope::FUNCTION}));
  }
  void exit() {
    at::removeCallback(handle_);
  }

 private:
  bool inputs_;
  at::CallbackHandle handle_ = 0;
};

}  // namespace

void bind_testing(py::module_& m) {
  m.def("probe_dispatched", &dispatched, py::arg("name"), py::arg("n"), py::arg("x"), py::arg("y"));
  m.def("probe_direct", &direct, py::arg("name"), py::arg("n"), py::arg("x"), py::arg("y"));
  py::class_<EmptyObserver>(m, "empty_observer")
      .def(py::init<std::string>())
      .def("__enter__", &EmptyObserver::enter)
      .def("__exit__", [](EmptyObserver& self, const py::args&) { self.exit(); });
}

}  // namespace gradext::benchmarks
