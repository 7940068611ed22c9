"""The derivative of a program's loss along one direction, for a check by central differences.

In a child of `gradext fix`: each leaf is moved a little, along a direction that is the same in all
runs, before the first op of the pass that uses it. The loss there, and the slope that backward
computes along the same direction, are what two such runs (forth and back) are compared by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from gradext.state.tree import tensors_of

TOLERANCE = 1e-4  # a kink (ReLU) between the two points shows as more


class Nudger(TorchFunctionMode):
    """Moves leaves by `size` along their directions.

    Args:
        wanted: (pass that is compared, pass before which the first leaf may be moved).
        count: how many passes there were.
    """

    def __init__(self, size: float, wanted: Sequence[int], count: Callable[[], int]) -> None:
        super().__init__()
        self.size, self.count = size, count
        self.compared, self.first = wanted
        self.moved: list[tuple[Any, Any]] = []  # (leaf, its direction)
        self._known: set[int] = set()
        self._before: list[Any] = []
        self._loss: float | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_near = self.first <= self.count() <= self.compared
        new = []
        if is_near and torch.is_grad_enabled() and _computes(func):
            new = [
                tensor
                for _, tensor in tensors_of((args, kwargs))
                if tensor.requires_grad and tensor.is_leaf and id(tensor) not in self._known
            ]
        if not new:
            return func(*args, **(kwargs or {}))
        drawn = torch.get_rng_state()
        made = func(*args, **(kwargs or {}))
        if not any(tensor.grad_fn is not None for _, tensor in tensors_of(made)):
            return made  # `.dim()`, `.size()`: no part of the loss
        for tensor in new:
            self._move(tensor)
        torch.set_rng_state(drawn)
        return func(*args, **(kwargs or {}))

    def _move(self, leaf: Any) -> None:
        self._known.add(id(leaf))
        with torch._C.DisableTorchFunction():
            if not leaf.is_floating_point() or leaf.layout != torch.strided:
                return
            generator = torch.Generator().manual_seed(len(self.moved) + 1)
            direction = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
            direction = direction.to(leaf)
            self.moved.append((leaf, direction))
            leaf.data.add_(direction, alpha=self.size)

    def before(self, outputs: Any) -> None:
        """The pass begins."""
        if self.count() != self.compared:
            return
        with torch._C.DisableTorchFunction():
            alone = len(outputs) == 1 and outputs[0].numel() == 1
            exact = alone and outputs[0].dtype == torch.float64
            self._loss = outputs[0].detach().item() if exact else None
            self._before = [None if t.grad is None else t.grad.clone() for t, _ in self.moved]

    def after(self, returned: Any) -> tuple[float, float] | None:
        """(loss, slope) of the pass; None of one that cannot be compared."""
        is_whole = all(t is None for t in returned or ())
        if self.count() != self.compared or self._loss is None or not is_whole:
            return None
        slope = 0.0
        with torch._C.DisableTorchFunction():
            for (leaf, direction), old in zip(self.moved, self._before, strict=False):
                if leaf.grad is not None:
                    change = leaf.grad if old is None else leaf.grad - old
                    slope += (change.detach().to_dense() * direction).sum().item()
        return self._loss, slope


def _computes(func: Any) -> bool:
    """Whether a function makes a value of its arguments: no attribute's, and no write in place.

    torch.nn.init fills a parameter, with grad mode off only further within.
    """
    name = getattr(func, "__name__", "")
    init = getattr(func, "__module__", None) == "torch.nn.init"
    return not init and not name.endswith("_") and name not in {"backward", "grad"}


def agree(forth: Any, back: Any, size: float) -> tuple[bool, float]:
    """(whether backward computes what the loss changes by, how far they are apart).

    The slopes at both points are averaged, which is as exact as the central difference.
    """
    by_loss = (forth[0] - back[0]) / (2 * size)
    by_backward = (forth[1] + back[1]) / 2
    largest = max(abs(by_loss), abs(by_backward))
    if not largest > 1e-9:  # a loss that nothing changes proves nothing
        return False, 0.0
    apart = abs(by_loss - by_backward) / largest
    return apart <= TOLERANCE, apart
