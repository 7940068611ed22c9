"""What the tests of the pages' claims share: torch's words, and small tensors and Functions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

STALE = "modified by an inplace operation"
FREED = "Trying to backward through the graph a second time"
UNUSED = "appears to not have been used in the graph"
LEAF = "^a leaf Variable that requires grad is being used in an in-place operation"
VIEW_OF_LEAF = "^a view of a leaf Variable that requires grad is being used"
NO_GRAD_VIEW = "^A view was created in no_grad mode and is being modified inplace"
ITS_BASE = "its base or another view of its base has been modified inplace"
MULTIPLE = "This view is the output of a function that returns multiple views"
IN_FUNCTION = "This view was created inside a custom Function"


def leaf(*sizes: int) -> Tensor:
    return torch.ones(*sizes, requires_grad=True)


def result(*sizes: int) -> Tensor:
    return leaf(*sizes) * 1


def creation_meta(view: Tensor) -> str | None:
    import gradext

    return gradext.inspect(view).creation_meta


def two_layers() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    return model, torch.optim.SGD(model.parameters(), 0.1)


def function(forward: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    """A custom Function of that forward; its backward turns the sign."""
    made = type(
        "Reverse",
        (torch.autograd.Function,),
        {
            "forward": staticmethod(forward),
            "backward": staticmethod(lambda ctx, grad: -grad),
        },
    )
    return made.apply  # type: ignore[attr-defined, no-any-return]
