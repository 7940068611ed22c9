"""Which cuts of a gradient a program means, by what it does with the value.

Reads a recording's flows. Owns no message; touches no tensor.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from gradext.base import op_names
from gradext.recording import events
from gradext.recording.events import Flow

if TYPE_CHECKING:
    from gradext.recording.tables import Data
    from gradext.rules.wording.cuts import Cut

_DRAWS = ("aten::normal", "aten::bernoulli", "aten::multinomial", "aten::poisson")


def unless_meant(cut: Cut) -> Cut:
    """A cut by a grad mode, as it is told where the mode does not say that a constant is meant."""
    origin = cut.step.origin
    if cut.kind != "no_grad" or cut.mode is None or not isinstance(origin, Flow):
        return cut
    if cut.mode.how in ("switch", "suspended"):
        return dataclasses.replace(cut, kind="off")
    if origin.op in _DRAWS and not origin.has(events.SOURCE_IS_LEAF):
        # What is drawn of was computed with grad mode on.
        what = f"`{op_names.bare(origin.op)}`"
        return dataclasses.replace(cut, kind="drawn", what=what, mode=None)
    return cut


def goes_to_python(data: Data, cut: Cut) -> bool:
    """Whether the function that detached a value made a number of it.

    What is detached and handed to another function is a constant by intention.
    """
    here = cut.sites[0].frame
    for step in cut.step.way():
        origin = step.origin
        if isinstance(origin, Flow) and origin.has(events.TO_PYTHON):
            left = next((f for f in data.frames(origin.stack) if f.is_user), None)
            if left is not None and (left.file, left.function) == (here.file, here.function):
                return True
    return False


def is_of_data(cut: Cut) -> bool:
    """Whether a term was computed from `.data` of a parameter, and goes to the loss by itself.

    `.detach()` says that a constant is meant. What was written somewhere, as a moving average of
    the weights is, or computed without grad mode, is used for what it is.
    """
    origin = cut.step.origin
    return (
        isinstance(origin, Flow)
        and origin.op == "Tensor.data"
        and origin.has(events.SOURCE_IS_LEAF)
        and all(
            isinstance(step.origin, Flow) and not step.origin.has(events.WRITTEN)
            for step in cut.step.way()
        )
        and not cut.step.barriers()
    )


def is_draw(cut: Cut) -> bool:
    """Whether something was drawn there."""
    op = cut.step.origin.op
    return cut.kind in ("draw", "drawn") or (op is not None and op.startswith(_DRAWS))


def is_beside_itself(cut: Cut, straight: frozenset[tuple[int, int]]) -> bool:
    """Whether the value that became a number is a term of the loss as a tensor, too.

    `loss + (surrogate - surrogate.item())` has the loss's value and the surrogate's gradient, as
    estimators of gradients want it.

    Args:
        straight: the nodes, as (thread, sequence), from which only sums and constant factors lead
            to the loss.
    """
    origin = cut.step.origin
    return isinstance(origin, Flow) and origin.source_node in straight


def is_support(cut: Cut) -> bool:
    """Whether what was decided went through a logarithm: a log-probability's support.

    It is 0 within and -inf without, and moves no loss: `torch.distributions.Uniform` has one.
    """
    return any(op_names.bare(step.origin.op) in ("log", "log_") for step in cut.step.way())
