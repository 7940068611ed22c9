"""Inputs for linear algebra and the rest."""

from __future__ import annotations

from typing import Any

import torch

from gradext.opcheck.inputs.by_hand.values import f, i, op, spd


@op("_linalg_det")
@op("_linalg_slogdet")
def _() -> tuple[Any, ...]:
    return (spd(3),)


@op("_linalg_solve_ex")
def _() -> tuple[Any, ...]:
    return spd(3), f(3, 2)


@op("_int_mm")
def _() -> tuple[Any, ...]:
    a = torch.arange(32 * 32, dtype=torch.int64).remainder(7).to(torch.int8).reshape(32, 32)
    return a, a.clone()


@op("_scaled_mm")
def _() -> tuple[Any, ...]:
    a = f(16, 16).to(torch.float8_e4m3fn)
    return a, a.clone().t(), torch.tensor(1.0), torch.tensor(1.0), {"out_dtype": torch.float32}


@op("_fft_c2r")
def _() -> tuple[Any, ...]:
    return torch.complex(f(4), f(4)), [0], 0, 6


@op("_native_multi_head_attention")
def _() -> tuple[Any, ...]:
    x = f(1, 3, 4)
    return x, x, x, 4, 2, f(12, 4), f(12), f(4, 4), f(4), None, True, True, None


@op("_transform_bias_rescale_qkv")
def _() -> tuple[Any, ...]:
    return f(1, 3, 12), f(12), 2


@op("_transformer_encoder_layer_fwd")
def _() -> tuple[Any, ...]:
    norms = (False, False, 1e-5, f(4), f(4), f(4), f(4))
    feed = (f(8, 4), f(8), f(4, 8), f(4))
    return (f(1, 3, 4), 4, 2, f(12, 4), f(12), f(4, 4), f(4), *norms, *feed)


@op("_sobol_engine_ff_")
def _() -> tuple[Any, ...]:
    state = torch.arange(90).reshape(3, 30)
    return i(1, 2, 3), 3, state, 3, 1


@op("_sobol_engine_initialize_state_")
def _() -> tuple[Any, ...]:
    return torch.zeros(3, 30, dtype=torch.int64), 3


@op("_sobol_engine_scramble_")
def _() -> tuple[Any, ...]:
    state = torch.zeros(3, 30, dtype=torch.int64)
    torch.ops.aten._sobol_engine_initialize_state_(state, 3)
    masks = torch.ones(3, 30, 30, dtype=torch.int64).tril()
    return state, masks, 3


@op("_test_optional_intlist")
def _() -> tuple[Any, ...]:
    return torch.arange(2, dtype=torch.int32), [1, 2]


@op("_test_optional_filled_intlist")
def _() -> tuple[Any, ...]:
    return torch.arange(2, dtype=torch.int32), [1, 2]


@op("_test_optional_floatlist")
def _() -> tuple[Any, ...]:
    return f(2), [1.0, 2.0]


@op("_histogramdd_from_bin_tensors")
def _() -> tuple[Any, ...]:
    return f(5, 2), [torch.tensor([0.0, 0.5, 1.0])] * 2


@op("_histogramdd_from_bin_cts")
def _() -> tuple[Any, ...]:
    return f(5, 2), [2, 2]


@op("_histogramdd_bin_edges")
def _() -> tuple[Any, ...]:
    return f(5, 2), [2, 2]


@op("diagonal_backward")
def _() -> tuple[Any, ...]:
    return f(3), [3, 3], 0, 0, 1


@op("empty_permuted")
def _() -> tuple[Any, ...]:
    return [2, 3], [1, 0]


@op("float_power.Scalar")
def _() -> tuple[Any, ...]:
    return 2.0, f(3)


@op("float_power.Tensor_Scalar", "float_power_.Scalar")
def _() -> tuple[Any, ...]:
    return f(3).double(), 2.0


@op("float_power_.Tensor")
def _() -> tuple[Any, ...]:
    return f(3).double(), f(3).double() + 1


@op("glu_backward")
def _() -> tuple[Any, ...]:
    return f(2), f(4), 0


@op("glu_jvp")
def _() -> tuple[Any, ...]:
    return f(2), f(4), f(4), 0


@op("glu_backward_jvp")
def _() -> tuple[Any, ...]:
    return f(4), f(2), f(4), f(2), f(4), 0


@op("hash_tensor")
def _() -> tuple[Any, ...]:
    return (f(3),)


@op("scatter.value_reduce", "scatter_.value_reduce")
def _() -> tuple[Any, ...]:
    return f(3), 0, i(0, 1), 2.0, {"reduce": "add"}


@op("scatter.reduce", "scatter_.reduce")
def _() -> tuple[Any, ...]:
    return f(3), 0, i(0, 1), f(2), {"reduce": "add"}


@op("split_with_sizes_copy", "unsafe_split_with_sizes")
def _() -> tuple[Any, ...]:
    return f(3, 2), [1, 2], 0


@op("view_copy.dtype")
def _() -> tuple[Any, ...]:
    return f(3), torch.int32


@op("_cummax_helper", "_cummin_helper")
def _() -> tuple[Any, ...]:
    return f(3, 3), f(3, 3) * 93, torch.full((3, 3), 93), 0


@op("set_.source_Tensor")
def _() -> tuple[Any, ...]:
    return f(3), f(4)


@op("alpha_dropout_", "feature_alpha_dropout_", "dropout_", "feature_dropout_")
def _() -> tuple[Any, ...]:
    return f(2, 3, 4), 0.5, True


@op("nan_to_num_")
def _() -> tuple[Any, ...]:
    return (torch.tensor([float("nan"), 1.0]),)


@op("conj_physical_")
def _() -> tuple[Any, ...]:
    return (torch.complex(f(3), f(3)),)


@op("logical_or_")
def _() -> tuple[Any, ...]:
    return f(3) * 0, f(3)


@op("lerp_.Tensor")
def _() -> tuple[Any, ...]:
    return f(3), f(3) + 1, f(3)


@op("squeeze_.dims")
def _() -> tuple[Any, ...]:
    return f(1, 3), [0]


@op("swapaxes_")
def _() -> tuple[Any, ...]:
    return f(2, 3), 0, 1


@op("resize_as_")
def _() -> tuple[Any, ...]:
    return f(2), f(3)


@op("resize_")
def _() -> tuple[Any, ...]:
    return f(1, 2, 3, 3), [1, 2, 3, 3], {"memory_format": torch.channels_last}


@op("resize_as_")
def _() -> tuple[Any, ...]:
    return f(1, 2, 3, 3), f(1, 2, 3, 3), {"memory_format": torch.channels_last}
