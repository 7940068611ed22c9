"""Pairs of tensors for axpby, and the plain torch that it is held against."""

from __future__ import annotations

import torch

DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex64, torch.complex128),
)
Pair = tuple[torch.Tensor, torch.Tensor]


def random(*shape: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, device=device)


def pairs(dtype: torch.dtype, device: str) -> dict[str, Pair]:
    """Layouts by name; in each of them `x` may be written and `y` broadcasts to it."""

    def r(*shape: int) -> torch.Tensor:
        return random(*shape, dtype=dtype, device=device)

    same = r(5, 7)
    return {
        "contiguous": (r(5, 7), r(5, 7)),
        "one pack and a rest": (r(19), r(19)),
        "many packs": (r(123_457), r(123_457)),
        "one element": (r(1), r(1)),
        "0-d": (r(), r()),
        "0-d y": (r(3, 4), r()),
        "empty": (r(0), r(0)),
        "empty rows": (r(0, 3), r(3)),
        "misaligned": (r(40)[1:38], r(40)[3:40]),
        "x misaligned": (r(38)[1:], r(37)),
        "transposed": (r(7, 5).t(), r(5, 7)),
        "both transposed": (r(7, 5).t(), r(7, 5).t()),
        "permuted": (r(2, 3, 4).permute(2, 0, 1), r(4, 2, 3)),
        "channels last": (r(2, 3, 4, 5).to(memory_format=torch.channels_last), r(2, 3, 4, 5)),
        "every second": (r(9)[::2], r(10)[::2]),
        "columns": (r(6, 9)[:, 2:7:2], r(6, 3)),
        "rows of a larger one": (r(600, 301)[::2, :300], r(300, 300)),
        "y a row": (r(5, 7), r(7)),
        "y a column": (r(5, 7), r(5, 1)),
        "y expanded": (r(5, 7), r(7).expand(5, 7)),
        "eight dimensions": (r(2, 1, 2, 3, 1, 2, 2, 2)[..., ::2], r(2, 1, 2, 3, 1, 2, 2, 1)),
        "y is x": (same, same),
    }


def reference(x: torch.Tensor, y: torch.Tensor, a: float, b: float) -> torch.Tensor:
    """In double precision, rounded once."""
    exact = torch.complex128 if x.is_complex() else torch.float64
    return (a * x.to(exact) + b * y.to(exact)).to(x.dtype)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    # One rounding more than the reference, of numbers that may cancel.
    loose = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-5, torch.complex64: 1e-5}
    bound = loose.get(found.dtype, 1e-13)
    torch.testing.assert_close(found, expected, rtol=bound, atol=bound)
