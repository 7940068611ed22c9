#include "state/identity.h"

#include "state/state.h"

namespace gradext::state {
namespace {

using torch::autograd::Node;

// The mutex is protected; an explicit instantiation may name it (see graph.cpp).
template <class Tag, typename Tag::type Member>
struct OpenNode {
  friend typename Tag::type node_member(Tag) {
    return Member;
  }
};
struct node_mutex {
  using type = std::mutex Node::*;
  friend type node_member(node_mutex);
};
template struct OpenNode<node_mutex, &Node::mutex_>;

int64_t grad_address(AutogradMeta& meta) {
  std::unique_lock<std::mutex> lock(meta.mutex_, std::try_to_lock);
  if (!lock.owns_lock()) {
    return 0;
  }
  const auto accumulator = meta.grad_accumulator_.lock();
  lock.unlock();
  std::unique_lock<std::mutex> node_lock;
  if (accumulator) {
    node_lock = std::unique_lock<std::mutex>(mutex_of(*accumulator), std::try_to_lock);
    if (!node_lock.owns_lock()) {
      return 0;
    }
  }
  // Without an accumulator no graph leads here, and what others write is not followed either.
  return meta.grad_.defined() ? opaque_id(meta.grad_.unsafeGetTensorImpl()) : 0;
}

}  // namespace

std::mutex& mutex_of(Node& node) {
  return node.*node_member(node_mutex{});
}

Words words_of(const c10::TensorImpl& impl) {
  Words words;
  words.id = opaque_id(&impl);
  words.is_inference = is_inference(impl);
  words.counter = opaque_id(counter_address(impl));
  words.storage = opaque_id(storage(impl));
  AutogradMeta* meta = autograd_meta(impl);
  if (meta == nullptr) {
    return words;
  }
  const DifferentiableViewMeta* view = backward_view_meta(meta);
  words.is_view = view != nullptr;
  words.node = meta->grad_fn_ ? opaque_id(&*meta->grad_fn_) : 0;
  // A view gets its node when it is asked for, if its base has one.
  words.is_leaf =
      words.node == 0 && (view == nullptr || !view->get_backward_view().base_.requires_grad());
  words.requires_grad = meta->requires_grad_ || !words.is_leaf;
  if (words.is_leaf && meta->requires_grad_) {
    words.grad = grad_address(*meta);
  }
  return words;
}

}  // namespace gradext::state
