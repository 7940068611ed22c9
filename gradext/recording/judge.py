"""Who is asked what went wrong: the rules, which stand above this room, through a Protocol.

gradext._wiring connects gradext.rules.judge, which is imported when it is first asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from gradext.diagnosis.model import Diagnosis
    from gradext.recording.awaited import Awaited
    from gradext.recording.checkpoints import Recomputed
    from gradext.recording.findings import Finding
    from gradext.recording.recording import Recording


class Judge(Protocol):
    """What a recording asks. `outputs` are what backward was called on."""

    def explain(self, error: BaseException, recording: Recording) -> Sequence[Diagnosis]:
        """What caused an error that the program has caught."""

    def recognise(self, error: BaseException, outputs: Any, recording: Recording) -> Finding | None:
        """The finding that such an error stands for; None where it is of no known kind."""

    def of_backward(
        self, error: BaseException, outputs: Any, recording: Recording
    ) -> Sequence[Diagnosis]:
        """What caused an error that the engine raised on the graph below `outputs`."""

    def of_silent_writes(self, outputs: Any, recording: Recording) -> Sequence[Diagnosis]:
        """Saved tensors below `outputs` that were written without a version bump."""

    def of_recompute(self, what: Recomputed, recording: Recording) -> Sequence[Diagnosis]:
        """Why a checkpoint's recompute packed something else than its forward."""

    def of_silent_cuts(
        self, outputs: Any, why: int, gradients: Any, recording: Recording
    ) -> Sequence[Diagnosis | Awaited]:
        """Values below `outputs` that lost their gradient, and hide it."""

    def of_held_leaves(self, outputs: Any, recording: Recording) -> None:
        """Leaves whose values go into the graph below `outputs` as constants, to be waited for."""

    def of_training(self, outputs: Any, recording: Recording) -> None:
        """Parameters that have got a gradient and are in no optimizer, to be waited for."""

    def of_empty_grad(self, tensor: Any, recording: Recording) -> Sequence[Diagnosis]:
        """Why nothing fills the `.grad` of a tensor that is no leaf."""


_find: Callable[[], Judge] | None = None


def connect(find: Callable[[], Judge]) -> None:
    """Set what finds the judge."""
    global _find
    _find = find


def the_judge() -> Judge:
    """The judge that was connected."""
    assert _find is not None, "gradext._wiring has not run"
    return _find()
