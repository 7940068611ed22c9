"""Inputs for convolutions, pooling, sampling."""

from __future__ import annotations

from typing import Any

import torch

from gradext.opcheck.inputs.by_hand.values import f, op, q


@op("convolution")
def _() -> tuple[Any, ...]:
    return f(1, 2, 4, 4), f(3, 2, 2, 2), f(3), [1, 1], [0, 0], [1, 1], False, [0, 0], 1


@op("_convolution")
def _() -> tuple[Any, ...]:
    rest = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1, False, False, True, True)
    return (f(1, 2, 4, 4), f(3, 2, 2, 2), f(3), *rest)


@op("mkldnn_convolution")
def _() -> tuple[Any, ...]:
    return f(1, 2, 4, 4), f(3, 2, 2, 2), f(3), [0, 0], [1, 1], [1, 1], 1


@op("convolution_backward")
def _() -> tuple[Any, ...]:
    rest = ([3], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, True])
    return (f(1, 3, 3, 3), f(1, 2, 4, 4), f(3, 2, 2, 2), *rest)


@op("conv_tbc")
def _() -> tuple[Any, ...]:
    return f(5, 2, 3), f(2, 3, 4), f(4)


@op("_slow_conv2d_forward", "thnn_conv2d")
def _() -> tuple[Any, ...]:
    return f(1, 2, 4, 4), f(3, 2, 2, 2), [2, 2], f(3), [1, 1], [0, 0]


@op("_slow_conv2d_backward.output_mask")
def _() -> tuple[Any, ...]:
    rest = ([2, 2], [1, 1], [0, 0], [True, True, True])
    return (f(1, 3, 3, 3), f(1, 2, 4, 4), f(3, 2, 2, 2), *rest)


@op("_slow_conv2d_backward.grad_input")
def _() -> tuple[Any, ...]:
    out = {"grad_input": f(1, 2, 4, 4) * 93, "grad_weight": f(3, 2, 2, 2) * 93}
    out["grad_bias"] = f(3) * 93
    return f(1, 3, 3, 3), f(1, 2, 4, 4), f(3, 2, 2, 2), [2, 2], [1, 1], [0, 0], out


@op("slow_conv3d_forward", "slow_conv3d")
def _() -> tuple[Any, ...]:
    return f(1, 2, 4, 4, 4), f(3, 2, 2, 2, 2), [2, 2, 2], f(3), [1, 1, 1], [0, 0, 0]


@op("slow_conv_dilated2d")
def _() -> tuple[Any, ...]:
    return f(1, 2, 4, 4), f(3, 2, 2, 2), [2, 2], f(3), [1, 1], [0, 0], [1, 1]


@op("slow_conv_dilated3d")
def _() -> tuple[Any, ...]:
    sizes = ([1, 1, 1], [0, 0, 0], [1, 1, 1])
    return (f(1, 2, 4, 4, 4), f(3, 2, 2, 2, 2), [2, 2, 2], f(3), *sizes)


@op("slow_conv_transpose2d")
def _() -> tuple[Any, ...]:
    sizes = ([1, 1], [0, 0], [0, 0], [1, 1])
    return (f(1, 2, 4, 4), f(2, 3, 2, 2), [2, 2], f(3), *sizes)


@op("slow_conv_transpose3d")
def _() -> tuple[Any, ...]:
    sizes = ([1, 1, 1], [0, 0, 0], [0, 0, 0], [1, 1, 1])
    return (f(1, 2, 4, 4, 4), f(2, 3, 2, 2, 2), [2, 2, 2], f(3), *sizes)


@op("avg_pool2d_backward")
def _() -> tuple[Any, ...]:
    return f(1, 2, 2, 2), f(1, 2, 4, 4), [2, 2], [2, 2], [0, 0], False, True, None


@op("avg_pool3d_backward")
def _() -> tuple[Any, ...]:
    sizes = ([2, 2, 2], [2, 2, 2], [0, 0, 0], False, True, None)
    return (f(1, 2, 2, 2, 2), f(1, 2, 4, 4, 4), *sizes)


@op("adaptive_max_pool2d")
def _() -> tuple[Any, ...]:
    return f(1, 2, 4, 4), [2, 2]


@op("adaptive_max_pool3d")
def _() -> tuple[Any, ...]:
    return f(1, 2, 4, 4, 4), [2, 2, 2]


@op("max_pool2d_with_indices_backward")
def _() -> tuple[Any, ...]:
    x = f(1, 2, 4, 4)
    values, indices = torch.ops.aten.max_pool2d_with_indices(x, [2, 2])
    return values, x, [2, 2], [2, 2], [0, 0], [1, 1], False, indices


@op("max_pool3d_with_indices_backward")
def _() -> tuple[Any, ...]:
    x = f(1, 2, 4, 4, 4)
    values, indices = torch.ops.aten.max_pool3d_with_indices(x, [2, 2, 2])
    return values, x, [2, 2, 2], [2, 2, 2], [0, 0, 0], [1, 1, 1], False, indices


@op("fractional_max_pool2d")
def _() -> tuple[Any, ...]:
    return f(1, 2, 4, 4), [2, 2], [2, 2], f(1, 2, 2)


@op("fractional_max_pool2d_backward")
def _() -> tuple[Any, ...]:
    x = f(1, 2, 4, 4)
    values, indices = torch.ops.aten.fractional_max_pool2d(x, [2, 2], [2, 2], f(1, 2, 2))
    return values, x, [2, 2], [2, 2], indices


@op("fractional_max_pool3d")
def _() -> tuple[Any, ...]:
    return f(1, 2, 4, 4, 4), [2, 2, 2], [2, 2, 2], f(1, 2, 3)


@op("fractional_max_pool3d_backward")
def _() -> tuple[Any, ...]:
    x, size = f(1, 2, 4, 4, 4), [2, 2, 2]
    values, indices = torch.ops.aten.fractional_max_pool3d(x, size, size, f(1, 2, 3))
    return values, x, size, size, indices


@op("_grid_sampler_2d_cpu_fallback", "grid_sampler_2d")
def _() -> tuple[Any, ...]:
    return f(1, 2, 4, 4), f(1, 3, 3, 2), 0, 0, False


@op("grid_sampler_2d_backward")
def _() -> tuple[Any, ...]:
    return f(1, 2, 3, 3), f(1, 2, 4, 4), f(1, 3, 3, 2), 0, 0, False, [True, True]


@op("grid_sampler_3d_backward")
def _() -> tuple[Any, ...]:
    grid = f(1, 3, 3, 3, 3)
    return f(1, 2, 3, 3, 3), f(1, 2, 4, 4, 4), grid, 0, 0, False, [True, True]


@op("affine_grid_generator")
def _() -> tuple[Any, ...]:
    return f(1, 2, 3), [1, 2, 4, 4], False


@op("col2im")
def _() -> tuple[Any, ...]:
    return f(1, 8, 9), [4, 4], [2, 2], [1, 1], [0, 0], [1, 1]


for _name in ("_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa", "_upsample_lanczos2d_aa"):

    @op(f"{_name}_backward")
    def _() -> tuple[Any, ...]:
        return f(1, 2, 8, 8), [8, 8], [1, 2, 4, 4], False, None, None


@op("upsample_bicubic2d_backward", "upsample_bilinear2d_backward")
def _() -> tuple[Any, ...]:
    return f(1, 2, 8, 8), [8, 8], [1, 2, 4, 4], False, None, None


@op("_upsample_nearest_exact1d_backward", "upsample_nearest1d_backward")
def _() -> tuple[Any, ...]:
    return f(1, 2, 8), [8], [1, 2, 4], None


@op("_upsample_nearest_exact2d_backward", "upsample_nearest2d_backward")
def _() -> tuple[Any, ...]:
    return f(1, 2, 8, 8), [8, 8], [1, 2, 4, 4], None, None


@op("_upsample_nearest_exact3d_backward", "upsample_nearest3d_backward")
def _() -> tuple[Any, ...]:
    return f(1, 2, 4, 4, 4), [4, 4, 4], [1, 2, 2, 2, 2], None, None, None


@op("upsample_linear1d_backward")
def _() -> tuple[Any, ...]:
    return f(1, 2, 8), [8], [1, 2, 4], False, None


@op("upsample_trilinear3d_backward")
def _() -> tuple[Any, ...]:
    return f(1, 2, 4, 4, 4), [4, 4, 4], [1, 2, 2, 2, 2], False, None, None, None


@op("upsample_bilinear2d.vec", "upsample_bicubic2d.vec")
def _() -> tuple[Any, ...]:
    return f(1, 2, 4, 4), [8, 8], False, None


@op("upsample_nearest2d.vec")
def _() -> tuple[Any, ...]:
    return f(1, 2, 4, 4), [8, 8], None


@op("mkldnn_max_pool2d")
def _() -> tuple[Any, ...]:
    return f(1, 2, 4, 4).to_mkldnn(), [2, 2], [2, 2], [0, 0], [1, 1], False


@op("mkldnn_max_pool3d")
def _() -> tuple[Any, ...]:
    size = [2, 2, 2]
    return f(1, 2, 4, 4, 4).to_mkldnn(), size, size, [0, 0, 0], [1, 1, 1], False


@op("mkldnn_adaptive_avg_pool2d")
def _() -> tuple[Any, ...]:
    return f(1, 2, 4, 4).to_mkldnn(), [2, 2]


@op("mkldnn_adaptive_avg_pool2d_backward")
def _() -> tuple[Any, ...]:
    return f(1, 2, 2, 2).to_mkldnn(), f(1, 2, 4, 4).to_mkldnn()


@op("mkldnn_linear")
def _() -> tuple[Any, ...]:
    return f(2, 3).to_mkldnn(), f(4, 3), f(4)


@op("mkldnn_reorder_conv2d_weight")
def _() -> tuple[Any, ...]:
    return f(3, 2, 2, 2).to_mkldnn(), [0, 0], [1, 1], [1, 1], 1, None


@op("mkldnn_reorder_conv3d_weight")
def _() -> tuple[Any, ...]:
    return f(3, 2, 2, 2, 2).to_mkldnn(), [0, 0, 0], [1, 1, 1], [1, 1, 1], 1, None


@op("quantized_max_pool1d")
def _() -> tuple[Any, ...]:
    return q(1, 2, 4), [2], [2], [0], [1], False


@op("quantized_max_pool2d")
def _() -> tuple[Any, ...]:
    return q(1, 2, 4, 4), [2, 2], [2, 2], [0, 0], [1, 1], False


@op("quantized_max_pool3d")
def _() -> tuple[Any, ...]:
    return q(1, 2, 4, 4, 4), [2, 2, 2], [2, 2, 2], [0, 0, 0], [1, 1, 1], False
