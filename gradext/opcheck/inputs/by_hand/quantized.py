"""Inputs for quantized."""

from __future__ import annotations

from typing import Any

import torch

from gradext.opcheck.inputs.by_hand.values import f, i, op, q, qc


@op("quantize_per_tensor")
def _() -> tuple[Any, ...]:
    return f(4), 0.1, 3, torch.quint8


@op("quantize_per_tensor.tensor_qparams")
def _() -> tuple[Any, ...]:
    return f(4), torch.tensor(0.1), torch.tensor(3), torch.quint8


@op("quantize_per_tensor.tensors")
def _() -> tuple[Any, ...]:
    return [f(4), f(4)], torch.tensor([0.1, 0.2]), i(3, 4), torch.quint8


@op("quantize_per_tensor_dynamic")
def _() -> tuple[Any, ...]:
    return f(4), torch.quint8, False


@op("quantize_per_channel")
def _() -> tuple[Any, ...]:
    return f(2, 4), torch.tensor([0.1, 0.2]), i(3, 4), 0, torch.quint8


@op("_make_per_tensor_quantized_tensor")
def _() -> tuple[Any, ...]:
    return torch.arange(4, dtype=torch.uint8), 0.1, 3


@op("_make_per_channel_quantized_tensor")
def _() -> tuple[Any, ...]:
    return torch.arange(4, dtype=torch.uint8).reshape(2, 2), torch.tensor([0.1, 0.2]), i(3, 4), 0


@op("int_repr", "dequantize.self")
def _() -> tuple[Any, ...]:
    return (q(2, 3),)


@op("dequantize.tensors")
def _() -> tuple[Any, ...]:
    return ([q(2, 3), q(3)],)


@op("q_per_channel_scales", "q_per_channel_zero_points")
def _() -> tuple[Any, ...]:
    return (qc(2, 3),)


@op("empty_quantized")
def _() -> tuple[Any, ...]:
    return [2, 3], q(2, 3)


@op("_empty_affine_quantized")
def _() -> tuple[Any, ...]:
    return [2, 3], {"scale": 0.1, "zero_point": 3, "dtype": torch.quint8}


@op("_empty_per_channel_affine_quantized")
def _() -> tuple[Any, ...]:
    scales = {"scales": torch.tensor([0.1, 0.2]), "zero_points": i(3, 4), "axis": 0}
    return [2, 3], {**scales, "dtype": torch.quint8}


@op("fake_quantize_per_channel_affine_cachemask")
def _() -> tuple[Any, ...]:
    return f(2, 4), torch.tensor([0.1, 0.2]), torch.tensor([1, 2], dtype=torch.int32), 0, 0, 20


@op("fake_quantize_per_tensor_affine_cachemask")
def _() -> tuple[Any, ...]:
    return f(2, 4), 0.1, 3, 0, 20


@op("_fake_quantize_per_tensor_affine_cachemask_tensor_qparams")
def _() -> tuple[Any, ...]:
    scale, zero = torch.tensor([0.1]), torch.tensor([3], dtype=torch.int32)
    return f(2, 4), scale, zero, torch.tensor([1]), 0, 20


@op("_fused_moving_avg_obs_fq_helper", "fused_moving_avg_obs_fake_quant")
@op("_fused_moving_avg_obs_fq_helper_functional")
def _() -> tuple[Any, ...]:
    one = torch.ones(1, dtype=torch.int64)
    least, most, scale = torch.tensor([-1.0]), torch.tensor([1.0]), torch.tensor([0.5])
    zero = torch.tensor([1], dtype=torch.int32)
    return f(2, 4), one, one.clone(), least, most, scale, zero, 0.5, 0, 255, -1, False, False
