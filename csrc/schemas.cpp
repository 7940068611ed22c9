// Every op of gradext, declared in one place. Kernels live in the rooms (state/, probe/ ...), each
// of which registers its own implementations; nothing is implemented here.
#include <torch/library.h>

TORCH_LIBRARY(gradext, m) {
  // Fake rules and Python kernels for these ops live in this module; torch names it when one is
  // missing.
  m.set_python_module("gradext.ops");

  // --- state: reads of one tensor's autograd state -----------------------------------------------
  // `int?`: an inference tensor has no version, and that is an answer, not an error.
  m.def("version(Tensor self) -> int?");
  m.def("version_counter(Tensor self) -> int?");
  m.def("is_view(Tensor self) -> bool");
  m.def("is_differentiable_view(Tensor self) -> bool");
  // The result IS another existing tensor, so it aliases `self` (a view and its base share memory).
  m.def("base(Tensor(a) self) -> Tensor(a)?");
  m.def("creation_meta(Tensor self) -> str?");
  m.def("is_inference(Tensor self) -> bool");
  m.def("shares_version_counter(Tensor self, Tensor other) -> bool");
  m.def("shares_storage(Tensor self, Tensor other) -> bool");
  m.def("dispatch_keys(Tensor self) -> str[]");
  m.def(
      "grad_mode_state() -> (bool grad_mode, bool inference_mode, str[] included, str[] excluded)");
  // All integer facts at once, int64[n, k] on the CPU; columns: gradext.STATE_COLUMNS.
  m.def("states(Tensor[] tensors) -> Tensor");

  // --- probe: ops that exist to be measured ------------------------------------------------------
  m.def("null_launch(Tensor self) -> ()");
}
