// The tensors in a boxed value: itself, a list's, a list's with gaps.
#pragma once

#include <ATen/core/ivalue.h>

namespace gradext::graph {

template <class Visit>
void each_tensor(const c10::IValue& value, Visit&& visit) {
  if (value.isTensor()) {
    visit(value.toTensor());
  } else if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorVector()) {
      visit(tensor);
    }
  } else if (value.isList()) {
    for (const c10::IValue& item : value.toListRef()) {
      if (item.isTensor()) {
        visit(item.toTensor());
      }
    }
  }
}

}  // namespace gradext::graph
