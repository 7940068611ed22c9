// Visits the tensors in a boxed value: a tensor, a list of them, a list of optional ones.
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
