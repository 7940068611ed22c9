// The worked example: what stands between a custom op's name and its backend kernel, so that
// autograd's state is right afterwards. docs/probe-ops.md walks through it.
//
// A call goes down through the dispatch keys of its tensors, highest first. Two of them are
// autograd's:
//
//   Autograd          records the graph. Checks that an in-place write is allowed, makes the
//                     backward node, and ties the output to it.
//   ADInplaceOrView   keeps the books. Counts a write in the version counter, marks an output that
//                     shares memory as a view of its input. Functional ops have no kernel here.
//   CPU, CUDA, ...    computes. axpby.cpp, window.cpp
//
// They are two because the modes differ: under no_grad both run (nothing requires grad, so the
// first makes no node, but writes are counted and views tracked all the same); under inference_mode
// Autograd is excluded, and the tensors made there do not carry either key, so that no bookkeeping
// is paid for. An op gets this for free by having its work under the right key.
//
// torch writes such kernels for its own ops (torch/csrc/autograd/generated/VariableType_*.cpp and
// ADInplaceOrViewType_*.cpp); these follow them step by step. torch::autograd::Function is shorter,
// and does not fit here: it cannot return a view that may be written, or leave the counting of
// versions to another key.
#include "example_ops/autograd.h"

#include <ATen/ExpandUtils.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/slice_backward.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/AutogradState.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <type_traits>

namespace gradext::example_ops {
namespace {

using torch::autograd::CreationMeta;
using torch::autograd::Node;
using torch::autograd::variable_list;
using NodePointer = decltype(torch::autograd::Edge::function);

// --- the ops, to be called or redispatched ------------------------------------------------------
// A handle is looked up once. `call` starts at the top, with all keys of the arguments;
// `redispatch` goes on from a kernel to the keys that are left.

const auto& axpby_op() {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("gradext::axpby", "")
          .typed<at::Tensor(const at::Tensor&, const at::Tensor&, double, double)>();
  return op;
}

const auto& axpby_inplace_op() {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("gradext::axpby_", "")
                             .typed<void(at::Tensor&, const at::Tensor&, double, double)>();
  return op;
}

const auto& window_op() {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("gradext::window", "")
                             .typed<at::Tensor(const at::Tensor&, int64_t, int64_t, int64_t)>();
  return op;
}

// --- backward nodes -----------------------------------------------------------------------------

// torch held nodes by std::shared_ptr before it held them by c10::intrusive_ptr. The deleter of the
// first (deleteNode, found through T) takes long graphs apart without recursion.
template <typename T>
auto make_node() {
  if constexpr (std::is_same_v<NodePointer, std::shared_ptr<Node>>) {
    return std::shared_ptr<T>(new T(), [](T* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<T>();
  }
}

// The op is linear: its backward needs no tensor, only what the inputs' shapes were. A node that
// does need one keeps it as a torch::autograd::SavedVariable, never as an at::Tensor: that notes
// the version at the save and refuses an unpack after a write.
struct AxpbyBackward : Node {
  double a = 0, b = 0;
  std::vector<c10::SymInt> x_sizes, y_sizes;

  std::string name() const override {
    return "AxpbyBackward";
  }

  // Ops called here are recorded in their turn when the caller wants a second backward
  // (create_graph). For that they must be differentiable ops, and not kernels called directly.
  variable_list apply(variable_list&& gradients) override {
    variable_list inputs(2);
    const at::Tensor& gradient = gradients[0];
    if (!gradient.defined()) {  // zero, not written out
      return inputs;
    }
    // What was broadcast is summed up again. `a` and `b` are real, so nothing is conjugated.
    if (task_should_compute_output(0)) {
      inputs[0] = at::sum_to(at::mul(gradient, a), x_sizes);
    }
    if (task_should_compute_output(1)) {
      inputs[1] = at::sum_to(at::mul(gradient, b), y_sizes);
    }
    return inputs;
  }
};

struct WindowBackward : Node {
  int64_t dim = 0, length = 0;
  c10::SymInt start;  // from the front
  std::vector<c10::SymInt> x_sizes;

  std::string name() const override {
    return "WindowBackward";
  }

  variable_list apply(variable_list&& gradients) override {
    variable_list inputs(1);
    if (gradients[0].defined() && task_should_compute_output(0)) {
      inputs[0] = at::slice_backward_symint(gradients[0], x_sizes, dim, start, start + length, 1);
    }
    return inputs;
  }
};

// None unless grad mode is on and an input requires grad.
NodePointer axpby_node(const at::Tensor& x, const at::Tensor& y, double a, double b) {
  if (!torch::autograd::compute_requires_grad(x, y)) {
    return {};
  }
  auto node = make_node<AxpbyBackward>();
  node->set_next_edges(torch::autograd::collect_next_edges(x, y));
  node->a = a;
  node->b = b;
  node->x_sizes = x.sym_sizes().vec();
  node->y_sizes = y.sym_sizes().vec();
  return node;
}

// --- forward-mode differentiation ---------------------------------------------------------------

bool has_tangent(const at::Tensor& t) {
  return t.defined() && t._fw_grad(/*level=*/0).defined();
}

at::Tensor tangent_or_zeros(const at::Tensor& t) {
  const at::Tensor& tangent = t._fw_grad(/*level=*/0);
  return tangent.defined() ? tangent : at::zeros_like(t);
}

// --- axpby: functional --------------------------------------------------------------------------

at::Tensor axpby_autograd(
    c10::DispatchKeySet keys, const at::Tensor& x, const at::Tensor& y, double a, double b) {
  const NodePointer node = axpby_node(x, y, a, b);
  at::Tensor result = [&] {
    // Ops that the kernels below call are part of this one, and no steps of their own: without the
    // guard autograd would record them too. Below ADInplaceOrView at once, as there is no work for
    // it: the result is new memory.
    const at::AutoDispatchBelowADInplaceOrView guard;
    return axpby_op().redispatch(keys & c10::after_autograd_keyset, x, y, a, b);
  }();
  if (node) {
    // Without this the result would be a leaf that requires no grad: the graph is cut, silently.
    torch::autograd::set_history(result, node);
  }
  if (has_tangent(x) || has_tangent(y)) {
    result._set_fw_grad(
        axpby_op().call(tangent_or_zeros(x), tangent_or_zeros(y), a, b),
        /*level=*/0,
        /*is_inplace_op=*/false);
  }
  return result;
}

// --- axpby_: in place ---------------------------------------------------------------------------

void axpby_inplace_autograd(
    c10::DispatchKeySet keys, at::Tensor& x, const at::Tensor& y, double a, double b) {
  // First of all, while nothing has been written: a leaf that requires grad, a view of one, and a
  // view that was made without a graph (under no_grad, by unbind, ...) may not be.
  torch::autograd::check_inplace(x, torch::autograd::compute_requires_grad(x, y));
  const NodePointer node = axpby_node(x, y, a, b);
  // Taken now: the tangent may be a view of one that the write below is about to change.
  at::Tensor tangent;
  if (has_tangent(x) || has_tangent(y)) {
    tangent = axpby_op().call(tangent_or_zeros(x), tangent_or_zeros(y), a, b);
  }
  {
    // Below Autograd only: ADInplaceOrView comes next and counts the write.
    const at::AutoDispatchBelowAutograd guard;
    axpby_inplace_op().redispatch(keys & c10::after_autograd_keyset, x, y, a, b);
  }
  if (node) {
    // The tensor is the same and its value is another, so it gets a new grad_fn. If it is a view,
    // its base gets one as well (CopySlices), and the other views of that base rebuild theirs when
    // they are next asked. set_history instead would leave the base with its old gradient.
    torch::autograd::rebase_history(x, node);
  }
  if (tangent.defined()) {
    const at::Tensor& held = x._fw_grad(/*level=*/0);
    // In place as well where there is one already: views of it must see the change.
    x._set_fw_grad(
        held.defined() ? held.copy_(tangent) : tangent, /*level=*/0, /*is_inplace_op=*/true);
  }
}

void axpby_inplace_count(
    c10::DispatchKeySet keys, at::Tensor& x, const at::Tensor& y, double a, double b) {
  {
    // An in-place op that a kernel below calls on `x` would count the same write twice.
    const at::AutoDispatchBelowADInplaceOrView guard;
    axpby_inplace_op().redispatch(keys & c10::after_ADInplaceOrView_keyset, x, y, a, b);
  }
  // The counter that x shares with its base, its views and its detach(). Without this line a
  // backward that saved any of them computes wrong gradients and says nothing. For an inference
  // tensor outside inference_mode it raises.
  torch::autograd::increment_version(x);
}

// --- window: a view -----------------------------------------------------------------------------

at::Tensor window_autograd(
    c10::DispatchKeySet keys, const at::Tensor& x, int64_t dim, int64_t start, int64_t length) {
  at::Tensor result = [&] {
    // Below Autograd only: ADInplaceOrView comes next and marks the view.
    const at::AutoDispatchBelowAutograd guard;
    return window_op().redispatch(keys & c10::after_autograd_keyset, x, dim, start, length);
  }();
  if (torch::autograd::compute_requires_grad(x)) {
    auto node = make_node<WindowBackward>();
    node->set_next_edges(torch::autograd::collect_next_edges(x));
    node->dim = dim < 0 ? dim + x.dim() : dim;
    node->start = start < 0 ? x.sym_size(dim) + start : c10::SymInt(start);
    node->length = length;
    node->x_sizes = x.sym_sizes().vec();
    // On a view this also notes the version that the node belongs to; a later write to the base
    // makes it stale.
    torch::autograd::set_history(result, NodePointer(std::move(node)));
  }
  if (has_tangent(x)) {
    result._set_fw_grad(
        window_op().call(x._fw_grad(/*level=*/0), dim, start, length),
        /*level=*/0,
        /*is_inplace_op=*/false);
  }
  return result;
}

// How autograd takes the view again: of the base as it is after a write, for the view's new
// grad_fn.
struct WindowView : torch::autograd::ViewFunc {
  WindowView(int64_t dim, int64_t start, int64_t length) : dim(dim), start(start), length(length) {}

  at::Tensor operator()(const at::Tensor& base) const override {
    return window_op().call(base, dim, start, length);
  }

  // No SymInts and no tensors are kept, so there is nothing to put in their place.
  std::unique_ptr<torch::autograd::ViewFunc> clone_and_set(
      std::optional<std::vector<c10::SymInt>> /*symints*/,
      std::optional<std::vector<at::Tensor>> /*tensors*/) const override {
    return std::make_unique<WindowView>(dim, start, length);
  }

  int64_t dim, start, length;
};

at::Tensor window_track(
    c10::DispatchKeySet keys, const at::Tensor& x, int64_t dim, int64_t start, int64_t length) {
  const at::Tensor result = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return window_op().redispatch(keys & c10::after_ADInplaceOrView_keyset, x, dim, start, length);
  }();
  return track_window(x, result, dim, start, length);
}

}  // namespace

at::Tensor track_window(
    const at::Tensor& x, const at::Tensor& result, int64_t dim, int64_t start, int64_t length) {
  // Tensors that are a storage, sizes and strides need no ViewFunc: autograd takes their views
  // again with as_strided. The rest do (a fake tensor, a subclass with __torch_dispatch__), and so
  // does who asked for a replay.
  std::unique_ptr<torch::autograd::ViewFunc> again;
  std::function<at::Tensor(const at::Tensor&)> back;
  const c10::TensorImpl* impl = x.unsafeGetTensorImpl();
  if (!impl->support_as_strided() || impl->is_python_dispatch() ||
      c10::AutogradState::get_tls_state().get_view_replay_enabled()) {
    again = std::make_unique<WindowView>(dim, start, length);
    back = [sizes = x.sym_sizes().vec(),
            strides = x.sym_strides().vec(),
            offset = x.sym_storage_offset()](const at::Tensor& view) {
      return view.as_strided_symint(sizes, strides, offset);
    };
  }
  // What a later write in place is judged by: it raises on a view of another mode, as the view
  // has no node through which the write could be recorded.
  const CreationMeta made = c10::InferenceMode::is_enabled() ? CreationMeta::INFERENCE_MODE
                            : c10::GradMode::is_enabled()    ? CreationMeta::DEFAULT
                                                             : CreationMeta::NO_GRAD_MODE;
  // From here on the result shares the version counter of x, and its `_base` is x, or the base of
  // x. Without this a write through the result would be counted by nobody who saved x. (An
  // inference tensor has no counter to share: as_view returns the result as it is.)
  return torch::autograd::as_view(
      x,
      result,
      /*is_bw_differentiable=*/true,
      /*is_fw_differentiable=*/true,
      std::move(again),
      std::move(back),
      made);
}

// Autograd stands for the Autograd key of every backend.
TORCH_LIBRARY_IMPL(gradext, Autograd, m) {
  m.impl("axpby", &axpby_autograd);
  m.impl("axpby_", &axpby_inplace_autograd);
  m.impl("window", &window_autograd);
}

// Nothing for axpby: where an op registers no kernel, this key falls through.
TORCH_LIBRARY_IMPL(gradext, ADInplaceOrView, m) {
  m.impl("axpby_", &axpby_inplace_count);
  m.impl("window", &window_track);
}

}  // namespace gradext::example_ops
