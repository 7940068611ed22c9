// The backend of window. It has no CUDA file: a view moves no data, so one kernel serves all
// devices whose tensors are a storage, sizes and strides.
#include "example_ops/window.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/slice.h>
#include <c10/core/TensorImpl.h>
#include <torch/library.h>

#include <optional>
#include <string>

namespace gradext::example_ops {

namespace {

// Not through a stream: in a process that holds a second C++ library (one linked statically into a
// library that shows its symbols) a number is lost in a stream, or the process dies; a string is
// not.
std::string text(const c10::SymInt& number) {
  const std::optional<int64_t> known = number.maybe_as_int();
  return known.has_value() ? std::to_string(*known) : number.toSymNode()->str();
}

}  // namespace

std::pair<int64_t, c10::SymInt> window_place(
    const at::Tensor& x, int64_t dim, int64_t start, int64_t length) {
  TORCH_CHECK_VALUE(x.defined(), "gradext::window: expected a tensor, got None");
  const int64_t dims = x.dim();
  TORCH_CHECK_INDEX(dims > 0, "gradext::window: a 0-d tensor has no dimension to take a part of");
  TORCH_CHECK_INDEX(
      -dims <= dim && dim < dims,
      "gradext::window: dim is ",
      text(dim),
      ", expected ",
      text(-dims),
      " to ",
      text(dims - 1));
  const int64_t from_front = dim < 0 ? dim + dims : dim;
  TORCH_CHECK_VALUE(
      length >= 0, "gradext::window: length is ", text(length), ", expected a number not below 0");
  const c10::SymInt size = x.sym_size(from_front);
  TORCH_CHECK_VALUE(
      -size <= start && size >= start,
      "gradext::window: start is ",
      text(start),
      ", expected ",
      text(-size),
      " to ",
      text(size),
      " in a dimension of size ",
      text(size));
  c10::SymInt first = start < 0 ? size + start : c10::SymInt(start);
  TORCH_CHECK_VALUE(
      first + length <= size,
      "gradext::window: start ",
      text(first),
      " and length ",
      text(length),
      " end at ",
      text(first + length),
      ", past the dimension's size of ",
      text(size));
  return {from_front, std::move(first)};
}

at::Tensor window(const at::Tensor& x, int64_t dim, int64_t start, int64_t length) {
  const auto [from_front, symbolic_first] = window_place(x, dim, start, length);
  const int64_t first = symbolic_first.expect_int();
  // VIEW: a tensor with keys, like the one that it is taken from. An inference tensor has neither
  // Autograd nor ADInplaceOrView, and so its view has neither.
  auto impl = c10::make_intrusive<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(x.storage()), x.key_set(), x.dtype());
  auto sizes = x.sizes().vec();
  sizes[from_front] = length;
  impl->set_storage_offset(x.storage_offset() + first * x.stride(from_front));
  impl->set_sizes_and_strides(sizes, x.strides());
  return at::Tensor(std::move(impl));
}

namespace {

// Functionalization (torch.compile, torch.func.functionalize) replaces views and writes by values.
// It must know how to replay a view on a new base and how to put the view's new values back, and
// knows that of torch's own ops only; of an op that it does not know it refuses any output with an
// alias annotation. So the op becomes the one of torch's that it equals, and the traced program
// holds aten::slice.
at::Tensor window_functionalize(const at::Tensor& x, int64_t dim, int64_t start, int64_t length) {
  auto [from_front, first] = window_place(x, dim, start, length);
  return at::slice_symint(x, from_front, first, first + length, 1);
}

}  // namespace

TORCH_LIBRARY_IMPL(gradext, CPU, m) {
  m.impl("window", &window);
}

#ifdef GRADEXT_WITH_CUDA
TORCH_LIBRARY_IMPL(gradext, CUDA, m) {
  m.impl("window", &window);
}
#endif

TORCH_LIBRARY_IMPL(gradext, Functionalize, m) {
  m.impl("window", &window_functionalize);
}

// These keys' fallbacks hand an op a copy, with the conjugation, the sign or the zeros written out;
// a view of a copy would be no view. The window of a conjugate tensor is a conjugate tensor.
#define GRADEXT_PROBE_STAYS_A_VIEW(key)                      \
  TORCH_LIBRARY_IMPL(gradext, key, m) {                      \
    m.impl("window", torch::CppFunction::makeFallthrough()); \
  }
GRADEXT_PROBE_STAYS_A_VIEW(Conjugate)
GRADEXT_PROBE_STAYS_A_VIEW(Negative)
GRADEXT_PROBE_STAYS_A_VIEW(ZeroTensor)
#undef GRADEXT_PROBE_STAYS_A_VIEW

}  // namespace gradext::example_ops
