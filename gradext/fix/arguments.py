"""The tensors among what an op is called with, or returns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch


def tensors_in(given: Any) -> Iterator[torch.Tensor]:
    """The tensors in `given`, in order, down through tuples, lists and the values of dicts."""
    if isinstance(given, torch.Tensor):
        yield given
    elif isinstance(given, (tuple, list)):
        for one in given:
            yield from tensors_in(one)
    elif isinstance(given, dict):
        yield from tensors_in(tuple(given.values()))
