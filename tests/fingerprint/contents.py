"""Tensors of every dtype and every way to look at memory, and the doors to their fingerprints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch

from gradext import _C

# Bytes around every boundary of the definition: word, 16-byte load, row, block.
SIZES = sorted(
    {0, 1, 2, 3, 5, 7}
    | {edge + d for edge in (8, 16, 32, 64, 128, 256, 1024, 4096) for d in (-1, 0, 1)}
)

PLAIN_DTYPES = [
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
    *(torch.uint16, torch.uint32, torch.uint64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex32, torch.complex64, torch.complex128),
    *(torch.float8_e5m2, torch.float8_e4m3fn, torch.float8_e5m2fnuz, torch.float8_e4m3fnuz),
    torch.float8_e8m0fnu,
]


def random_bytes(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)


def random_of(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Random bits as elements of `dtype`."""
    if dtype is torch.bool:
        return random_bytes(torch.Size(shape).numel(), seed).bool().view(shape)
    count = torch.Size(shape).numel() * dtype.itemsize
    return random_bytes(count, seed).view(dtype).view(shape)


def views(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Ways to look at memory that are not its order."""
    cube = random_of(dtype, (6, 10, 14))
    return {
        "whole": cube,
        "slice": cube[1:5],
        "inner slice": cube[:, 2:7],
        "step": cube[::2, ::3, ::5],
        "column": cube[:, :, 3],
        "misaligned": cube.view(-1)[1:],
        "misaligned end": cube.view(-1)[3:-2],
        "transposed": cube.transpose(0, 2),
        "permuted": cube.permute(1, 2, 0),
        "expanded": cube[:, :1].expand(6, 9, 14),
        "expanded scalar": cube[0, 0, 0].expand(5, 300),
        "one element": cube[1, 2, 3],
        "empty": cube[:, :0],
        "empty, transposed": cube[:0].transpose(0, 2),
        "overlapping": cube.view(-1).as_strided((20, 30), (2, 1)),
        "unfolded": cube.view(-1).unfold(0, 12, 5),
        "size 1 with odd strides": cube.as_strided((1, 5, 1), (77, 3, 999)),
        "many dimensions": random_of(dtype, (2,) * 11).permute(*range(10, -1, -1)),
        "large, transposed": random_of(dtype, (300, 70)).t(),
    }


def number(row: Any) -> int:
    """(low, high), signed or not, as one number."""
    low, high = (int(half) % 2**64 for half in row)
    return high << 64 | low


def by_op(t: torch.Tensor) -> int:
    return number(torch.ops.gradext.fingerprint(t).tolist())


def rows(matrix: torch.Tensor) -> numpy.ndarray[Any, numpy.dtype[numpy.uint64]]:
    """The fingerprint of every row: uint64[n, 2]."""
    return _C.fingerprint_list(matrix.unbind(0))[0]


@contextmanager
def variant(name: str) -> Iterator[None]:
    assert _C.testing.fingerprint_force_variant(name)
    try:
        yield
    finally:
        assert _C.testing.fingerprint_force_variant("")
