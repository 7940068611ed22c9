"""Who is asked what went wrong: the rules, which stand above this room, through a Protocol.

gradext._wiring connects gradext.rules.judge, which is imported when it is first asked.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from gradext.diagnosis.model import Diagnosis
    from gradext.recording.awaited import Awaited
    from gradext.recording.findings import Finding
    from gradext.recording.recording import Recording


class Occasion(enum.Enum):
    """When a recording asks what is silently wrong, and of what."""

    UNCOUNTED_WRITE = "a backward on these outputs begins, after writes that no counter counted"
    NO_GRADIENT = "a backward on these outputs begins, which may lack values that left the graph"
    HELD_LEAVES = "a backward on these outputs begins, which takes in values of leaves as constants"
    STARVED_LEAVES = "a backward on these outputs has ended, and leaves got no gradient"
    TRAINING = "a backward on these outputs has ended, and gave parameters their gradients"
    RECOMPUTE = "a checkpoint packed something else in its recompute: a Recomputed"
    EMPTY_GRAD = "the `.grad` of this tensor was read, which is no leaf and keeps none"


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

    def look(
        self, occasion: Occasion, what: Any, recording: Recording, why: int = 0
    ) -> Sequence[Diagnosis | Awaited]:
        """What is silently wrong, as far as can be seen now; `why` is a sum of _C.SUSPICIONS."""


_find: Callable[[], Judge] | None = None


def connect(find: Callable[[], Judge]) -> None:
    """Set what finds the judge."""
    global _find
    _find = find


def the_judge() -> Judge:
    """The judge that was connected."""
    assert _find is not None, "gradext._wiring has not run"
    return _find()


def diagnoses(occasion: Occasion, what: Any, recording: Recording) -> list[Diagnosis]:
    """What the judge finds now, and waits for nothing to tell."""
    from gradext.diagnosis.model import Diagnosis

    found = the_judge().look(occasion, what, recording)
    return [one for one in found if isinstance(one, Diagnosis)]
