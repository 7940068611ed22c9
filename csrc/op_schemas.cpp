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

  // --- fingerprint: what a tensor's dtype, shape and bytes come to -------------------------------
  // int64[2], (low, high), and int64[n, 2], on the tensors' device.
  m.def("fingerprint(Tensor self) -> Tensor");
  m.def("fingerprint_list(Tensor[] tensors) -> Tensor");

  // --- probe: ops that exist to be measured ------------------------------------------------------
  m.def("null_launch(Tensor self) -> ()");
  m.def("axpby(Tensor x, Tensor y, float a, float b) -> Tensor");
  // Returns nothing: of an op that torch does not know, functionalization refuses an output that
  // is an input. gradext.ops.axpby_ returns x.
  m.def("axpby_(Tensor(a!) x, Tensor y, float a, float b) -> ()");
  m.def("window(Tensor(a) x, int dim, int start, int length) -> Tensor(a)");
  // The same with layers left out (dispatch_layers.cpp). They lie to autograd on purpose; the last
  // two of each read and write nothing.
  m.def("axpby_no_autograd(Tensor x, Tensor y, float a, float b) -> Tensor");
  m.def("axpby_no_adinplaceorview(Tensor x, Tensor y, float a, float b) -> Tensor");
  m.def("axpby_empty(Tensor x, Tensor y, float a, float b) -> ()");
  m.def("axpby_nothing(Tensor x, Tensor y, float a, float b) -> ()");
  m.def("axpby_inplace_no_autograd(Tensor(a!) x, Tensor y, float a, float b) -> ()");
  m.def("axpby_inplace_no_adinplaceorview(Tensor(a!) x, Tensor y, float a, float b) -> ()");
  m.def("axpby_inplace_empty(Tensor x, Tensor y, float a, float b) -> ()");
  m.def("axpby_inplace_nothing(Tensor x, Tensor y, float a, float b) -> ()");
  m.def("window_no_autograd(Tensor(a) x, int dim, int start, int length) -> Tensor(a)");
  m.def("window_no_adinplaceorview(Tensor(a) x, int dim, int start, int length) -> Tensor(a)");
  m.def("window_empty(Tensor x, int dim, int start, int length) -> ()");
  m.def("window_nothing(Tensor x, int dim, int start, int length) -> ()");
}
