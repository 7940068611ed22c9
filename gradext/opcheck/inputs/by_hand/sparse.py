"""Inputs for sparse and nested."""

from __future__ import annotations

from typing import Any

import torch

from gradext.opcheck.inputs.by_hand.values import f, i, nested, op, sparse


@op("_coalesce")
def _() -> tuple[Any, ...]:
    return (torch.sparse_coo_tensor(torch.tensor([[1, 1], [2, 2]]), f(2), (3, 3)),)


@op("_coalesced", "_coalesced_")
def _() -> tuple[Any, ...]:
    return sparse(3, 3), False


@op("_to_dense")
def _() -> tuple[Any, ...]:
    return (sparse(3, 3),)


@op("_sparse_softmax", "_sparse_log_softmax")
def _() -> tuple[Any, ...]:
    return sparse(3, 3), 1, False


@op("_sparse_softmax_backward_data", "_sparse_log_softmax_backward_data")
def _() -> tuple[Any, ...]:
    return sparse(3, 3), sparse(3, 3), 1, sparse(3, 3)


@op("_sparse_sum.dim")
def _() -> tuple[Any, ...]:
    return sparse(3, 3), [0]


@op("_sparse_sum_backward")
def _() -> tuple[Any, ...]:
    x = sparse(3, 3)
    return torch.ops.aten._sparse_sum.dim(x, [0]), x, [0]


@op("_sparse_csr_sum.dim_dtype", "_sparse_csr_prod.dim_dtype")
def _() -> tuple[Any, ...]:
    return f(3, 3).to_sparse_csr(), [0], True


@op("_sparse_sparse_matmul")
def _() -> tuple[Any, ...]:
    return sparse(3, 3), sparse(3, 3)


@op("hspmm")
def _() -> tuple[Any, ...]:
    return sparse(3, 3), f(3, 3)


@op("sspaddmm")
def _() -> tuple[Any, ...]:
    return sparse(3, 3), sparse(3, 3), f(3, 3)


@op("_sparse_mask_projection", "sparse_mask")
def _() -> tuple[Any, ...]:
    return sparse(3, 3), sparse(3, 3)


@op("sparse_mask")
def _() -> tuple[Any, ...]:
    return f(3, 3), sparse(3, 3)


@op("_sparse_coo_tensor_with_dims")
def _() -> tuple[Any, ...]:
    return 2, 0, [3, 3], {"layout": torch.sparse_coo}


@op("_sparse_coo_tensor_with_dims_and_tensors")
def _() -> tuple[Any, ...]:
    place = torch.tensor([[0, 1], [1, 2]])
    return 2, 0, [3, 3], place, f(2), {"layout": torch.sparse_coo}


@op("sparse_coo_tensor.size")
def _() -> tuple[Any, ...]:
    return [3, 3], {"layout": torch.sparse_coo}


@op("sparse_resize", "sparse_resize_", "sparse_resize_and_clear", "sparse_resize_and_clear_")
def _() -> tuple[Any, ...]:
    return sparse(3, 3), [4, 4], 2, 0


@op("resize_as_sparse", "resize_as_sparse_")
def _() -> tuple[Any, ...]:
    return sparse(2, 2), sparse(3, 3)


@op("copy_sparse_to_sparse", "copy_sparse_to_sparse_")
def _() -> tuple[Any, ...]:
    return sparse(3, 3), sparse(3, 3) * 2, False


@op("ccol_indices_copy", "row_indices_copy")
def _() -> tuple[Any, ...]:
    return (f(3, 3).to_sparse_csc(),)


@op("crow_indices_copy", "col_indices_copy")
def _() -> tuple[Any, ...]:
    return (f(3, 3).to_sparse_csr(),)


@op("_to_sparse")
def _() -> tuple[Any, ...]:
    return f(3, 3), {"layout": torch.sparse_coo}


@op("_to_sparse.sparse_dim")
def _() -> tuple[Any, ...]:
    return f(3, 3), 2


@op("_to_sparse_csr", "_to_sparse_csc")
def _() -> tuple[Any, ...]:
    return f(3, 3), None


@op("_to_sparse_bsr", "_to_sparse_bsc")
def _() -> tuple[Any, ...]:
    return f(4, 4), [2, 2], None


@op("_spdiags")
def _() -> tuple[Any, ...]:
    return f(2, 3), i(0, 1), [3, 3], None


@op("_convert_indices_from_csr_to_coo")
def _() -> tuple[Any, ...]:
    return i(0, 1, 3), i(0, 1, 2), {"out_int32": False, "transpose": False}


@op("_convert_indices_from_coo_to_csr")
def _() -> tuple[Any, ...]:
    return i(0, 1, 1), 2, {"out_int32": False}


@op("to_padded_tensor")
def _() -> tuple[Any, ...]:
    return nested(), 0.5, None


@op("_nested_tensor_size", "_nested_tensor_strides", "_nested_tensor_storage_offsets")
def _() -> tuple[Any, ...]:
    return (nested(),)


@op("_nested_tensor_from_mask")
def _() -> tuple[Any, ...]:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    return f(2, 3, 4), mask, True


@op("_nested_from_padded")
def _() -> tuple[Any, ...]:
    return f(2, 4, 3), torch.tensor([[2, 3], [4, 3]]), False


@op("_nested_from_padded_and_nested_example")
def _() -> tuple[Any, ...]:
    return f(2, 4, 3), nested()


@op("_nested_view_from_buffer_copy")
def _() -> tuple[Any, ...]:
    sizes, strides = torch.tensor([[2, 3], [4, 3]]), torch.tensor([[3, 1], [3, 1]])
    return f(18), sizes, strides, i(0, 6)


@op("_pack_padded_sequence")
def _() -> tuple[Any, ...]:
    return f(4, 2, 3), i(4, 2), False
