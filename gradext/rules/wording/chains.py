"""How a value without gradient came to be: from a tensor back to where its gradient was lost.

Reads a recording's births and flows; a value that went to Python and came back is linked by its
number and by the functions that handled it. Owns no message; touches no tensor.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from gradext.recording import events
from gradext.recording.events import Birth, Flow

if TYPE_CHECKING:
    from gradext.diagnosis.model import Frame
    from gradext.recording.tables import Data

_MOST = 20_000  # births and flows that are followed
_MOST_EXITS = 4_000  # values that went to Python, the latest
_FEW = 64  # values that are looked at behind one that left


@dataclasses.dataclass(slots=True, eq=False)
class Step:
    """One birth or flow on the way back. There are thousands: hence slots, and not frozen.

    Attributes:
        origin: it. after: what was made of it on the way, None at the start.
        is_past_cut: whether a cut lies between it and the start.
        is_sure: False behind a value that was linked to one that left for Python by its place only.
    """

    origin: Birth | Flow
    after: Step | None
    depth: int
    is_past_cut: bool
    is_sure: bool = True

    def barriers(self) -> list[Step]:
        """Where gradient would be lost on the way to the start, if it got past this cut."""
        return [step for step in self.way() if step is not self and is_barrier(step.origin)]

    def way(self) -> Iterator[Step]:
        """The steps from here to the start."""
        at: Step | None = self
        while at is not None:
            yield at
            at = at.after


@dataclasses.dataclass(frozen=True)
class Chain:
    """Everything that some tensors were made of, nearest first."""

    steps: tuple[Step, ...]
    whole: bool

    def cuts(self) -> list[Step]:
        """Where gradient was lost, without those that lie behind another on the same way."""
        return [step for step in self.steps if is_cut(step.origin) and not step.is_past_cut]

    def all_cuts(self) -> list[Step]:
        return [step for step in self.steps if is_cut(step.origin)]

    def ends(self) -> list[Step]:
        """What was made of nothing that is known: data, fresh tensors."""
        return [
            step
            for step in self.steps
            if isinstance(step.origin, Flow)
            and not step.origin.parents
            and not step.origin.has(events.CUT)
        ]


def is_cut(origin: Birth | Flow) -> bool:
    if isinstance(origin, Birth):
        return origin.has_gradient_behind
    return origin.has(events.CUT)


DETACHES = {"aten::detach", "aten::detach_", "Tensor.data"}
_LOSES = events.IN_INFERENCE | events.NOT_FLOATING | events.TO_PYTHON | events.FROM_PYTHON


def is_without_grad_mode(origin: Birth | Flow) -> bool:
    """Whether the program itself ran the op under no_grad or inference_mode.

    What forward() of an autograd.Function computes is no such thing: its result has a gradient
    where an input has one.
    """
    if isinstance(origin, Birth):
        return True
    return origin.has(events.IN_INFERENCE) or (
        origin.has(events.NO_GRAD) and not origin.has(events.IN_FUNCTION)
    )


def is_barrier(origin: Birth | Flow) -> bool:
    """Whether an op loses the gradient of whatever goes in."""
    if is_without_grad_mode(origin):
        return True
    return isinstance(origin, Flow) and (
        origin.has(_LOSES) or origin.op in DETACHES or origin.has(events.GRAD_CALL)
    )


def back_from(
    data: Data, origins: Iterable[Birth | Flow | None], after: Step | None = None
) -> Chain:
    """The chain of tensors by their births and flows (Data.flow_of, birth_of).

    Args:
        after: what was made of them.
    """
    depth = after.depth + 1 if after is not None else 0
    pending = deque(Step(origin, after, depth, False) for origin in origins if origin is not None)
    seen: set[int] = set()
    steps: list[Step] = []
    while pending and len(steps) < _MOST:
        step = pending.popleft()
        origin = step.origin
        if origin.number in seen:
            continue
        seen.add(origin.number)
        steps.append(step)
        if isinstance(origin, Birth):
            continue
        past = step.is_past_cut or is_cut(origin)
        for number in origin.parents:
            parent = data.origin(number)
            if parent is not None:
                pending.append(Step(parent, step, step.depth + 1, past, step.is_sure))
        if origin.has(events.FROM_PYTHON) and not origin.parents and not origin.has(events.CUT):
            left = linked_exit(data, origin)
            if left is not None:
                pending.append(Step(left, step, step.depth + 1, past, is_sure=False))
    return Chain(tuple(steps), not pending)


def linked_exit(data: Data, entry: Flow) -> Flow | None:
    """A value that went to Python and may have come back as `entry`, by the functions involved.

    The recorder links what it recognises (the same number, an array of the same size). This is for
    what Python computed with in between; only values that left since the last backward.
    """
    exits = exits_before(data, entry)
    if not exits:
        return None
    stack = data.frames(entry.stack)
    for index in [index for index, frame in enumerate(stack) if frame.is_user]:
        wanted = _call(stack[index:])
        found = [flow for flow in exits if _contains(data.frames(flow.stack), wanted)]
        if found:
            # Labels and the like go to numpy in the same call; they never had a gradient.
            return next((flow for flow in found if _has_cut(data, flow)), found[0])
    return None


def _has_cut(data: Data, flow: Flow) -> bool:
    """Whether a value that left lost its gradient on the way, within a few ops."""
    pending: list[Birth | Flow] = [flow]
    for _ in range(_FEW):
        if not pending:
            break
        at = pending.pop()
        if is_cut(at):
            return True
        if isinstance(at, Flow):
            pending += [origin for n in at.parents if (origin := data.origin(n)) is not None]
    return False


def exits_before(data: Data, entry: Flow) -> list[Flow]:
    """What left for Python between the last backward and `entry`, the latest first.

    Of the values that left at the same place the latest stands for all.
    """
    last = data.last_backward(entry.order, entry.thread)
    exits = data.exits(_MOST_EXITS, last, entry.order, entry.thread)
    return sorted(exits, key=lambda flow: -flow.order)


def _call(frames: Sequence[Frame]) -> tuple[tuple[str, str, int | None], ...]:
    """One call of a function: it, whatever its line, and the lines that called it."""
    first, *callers = frames
    outer = [(f.file, f.function, f.line) for f in callers]
    return ((first.file, first.function, None), *outer)


def _contains(frames: Sequence[Frame], call: Sequence[tuple[str, str, int | None]]) -> bool:
    index = len(frames) - len(call)
    if index < 0:
        return False
    for frame, (file, function, line) in zip(frames[index:], call, strict=True):
        if frame.file != file or frame.function != function:
            return False
        if line is not None and frame.line != line:
            return False
    return True
