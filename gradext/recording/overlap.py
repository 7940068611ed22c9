"""Which bytes of a storage a tensor covers, and whether a write meets them."""

from __future__ import annotations

from typing import Any

import numpy
import torch

from gradext.native import _C
from gradext.recording.arrays import Array
from gradext.recording.events import Write


def extent(tensor: torch.Tensor) -> tuple[int, int]:
    """First byte and one past the last byte of a strided tensor within its storage.

    A tensor without strides of its own (sparse, nested, symbolic, a subclass that computes them) is
    not asked for them, and lies nowhere: 0, 0.
    """
    geometry = _C.geometry(tensor)
    if geometry is None or 0 in geometry[0]:
        return 0, 0
    sizes, strides, offset, size = geometry
    reach = sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
    return offset * size, (offset + reach + 1) * size


def overlap(first: Write, offset: int, itemsize: int, sizes: Any, strides: Any) -> bool | None:
    """Whether a write touched an element of a saved tensor; None if that cannot be decided.

    The tensor lies in the same storage at `offset` (elements) with `sizes` and `strides`.
    """
    begin = offset * itemsize
    end = begin + (sum((n - 1) * s for n, s in zip(sizes, strides, strict=True)) + 1) * itemsize
    if 0 in sizes or first.begin >= end or first.end <= begin:
        return False
    if first.has_unknown_holes:
        return None
    dense = _is_dense(sizes, strides)
    if first.geometry is None and dense:
        return True
    limit = 1 << 22
    count = int(numpy.prod(sizes, dtype=numpy.int64))
    shape = first.geometry
    written = (first.end - first.begin) if shape is None else int(numpy.prod(shape[1])) * shape[0]
    if count > limit or written > limit:
        return None
    mine = _bytes(begin, itemsize, sizes, strides)
    if shape is None:
        return bool(((mine + itemsize > first.begin) & (mine < first.end)).any())
    theirs = _bytes(first.begin, shape[0], shape[1], shape[2])
    if shape[0] == itemsize:
        return bool(numpy.isin(mine, theirs).any())
    units = numpy.add.outer(theirs, numpy.arange(shape[0])).ravel()
    return bool(numpy.isin(numpy.add.outer(mine, numpy.arange(itemsize)).ravel(), units).any())


def _bytes(begin: int, itemsize: int, sizes: Any, strides: Any) -> Array:
    offsets = numpy.zeros(1, dtype=numpy.int64)
    for size, stride in zip(sizes, strides, strict=True):
        steps = numpy.arange(size, dtype=numpy.int64) * stride * itemsize
        offsets = numpy.add.outer(offsets, steps).ravel()
    return offsets + begin


def _is_dense(sizes: Any, strides: Any) -> bool:
    expected = 1
    for size, stride in sorted(zip(sizes, strides, strict=True), key=lambda pair: pair[1]):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
