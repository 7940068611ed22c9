"""What the tables of inputs are written with: how an op gets a row, and small tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gradext.opcheck.inputs.from_op_db import Call

INPUTS: dict[str, list[Callable[[], Call]]] = {}

Make = Callable[[], tuple[Any, ...]]


def op(*names: str) -> Callable[[Make], Make]:
    """Register a function that returns the positional arguments, a dict at the end for the rest."""

    def register(make: Make) -> Make:
        def call() -> Call:
            made = list(make())
            kwargs = made.pop() if made and isinstance(made[-1], dict) else {}
            return made, kwargs

        for name in names:
            INPUTS.setdefault(f"aten::{name}", []).append(call)
        return make

    return register


def f(*shape: int) -> torch.Tensor:
    """Distinct values in (0.1, 0.9)."""
    count = torch.Size(shape).numel()
    ramp = torch.arange(count, dtype=torch.float64)
    return (0.1 + 0.8 * ((ramp * 7 + 3) % (count + 1)) / (count + 1)).float().reshape(shape)


def i(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def spd(size: int) -> torch.Tensor:
    return f(size, size) @ f(size, size).T + torch.eye(size)


def sparse(*shape: int) -> torch.Tensor:
    return (f(*shape) * (f(*shape) > 0.4)).to_sparse()


def q(*shape: int) -> torch.Tensor:
    return torch.quantize_per_tensor(f(*shape), 0.01, 3, torch.quint8)


def qc(*shape: int) -> torch.Tensor:
    scales, zeros = torch.full((shape[0],), 0.01), torch.zeros(shape[0], dtype=torch.int64)
    return torch.quantize_per_channel(f(*shape), scales, zeros, 0, torch.quint8)


def nested() -> torch.Tensor:
    return torch.nested.nested_tensor([f(2, 3), f(4, 3)])
