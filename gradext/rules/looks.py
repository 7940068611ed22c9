"""What looks for a fault that raised no error, and on which occasion; LOOKS names them in order.

Errors have a table of their own (rules/codes/__init__.py), which finds a rule by its message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from gradext.diagnosis.model import Diagnosis
from gradext.native import _C
from gradext.objects.naming import Names
from gradext.recording.awaited import Awaited
from gradext.recording.judge import Occasion
from gradext.rules import graph_copy
from gradext.rules.codes import (
    gx304_held_leaf,
    gx304_lost_leaf,
    gx304_silent_checkpoint,
    gx304_silent_cut,
    gx304_starved_leaf,
    gx305_non_leaf_grad,
    gx306_hidden_leaf,
    gx306_other_model,
    gx306_untrained,
    gx401_silent_write,
    gx406_recompute_differs,
)
from gradext.rules.wording import unstepped
from gradext.rules.wording.trained import Stacks, Trained
from gradext.source import live_frames

if TYPE_CHECKING:
    from gradext.recording.recording import Recording
    from gradext.recording.tables import Data

# A value left the graph, and no backward has reached what is behind it.
LOST_LEAVES = _C.SUSPICIONS["LOST_LEAVES"]

Found: TypeAlias = "Iterable[Diagnosis | Awaited]"


class Seen:
    """What a look may read.

    Args:
        recording: what has been noted until now.
        what: what `Occasion` says of each. why: a sum of _C.SUSPICIONS, 0 where there is no doubt.
    """

    def __init__(self, recording: Recording, what: Any, why: int) -> None:
        self.recording = recording
        self.what = what
        self.why = why
        self._data: Data | None = None

    @property
    def data(self) -> Data:
        """A copy of all events, made when it is first asked for."""
        if self._data is None:
            self._data = self.recording.data
        return self._data

    @property
    def names(self) -> Names:
        """Names of tensors in the frames of the program that are running."""
        return Names(live_frames.frames_above())


def _silent_writes(seen: Seen) -> Found:
    live = graph_copy.read(seen.what)
    if not gx401_silent_write.any_silent(seen.data, live):
        return ()
    return gx401_silent_write.silent(seen.data, live, seen.names)


def _held_leaves(seen: Seen) -> Found:
    recording = seen.recording
    gx304_held_leaf.look(seen.what, seen.data, recording.held, recording.waiting)
    return ()  # told at the end, or never


def _untrained(seen: Seen) -> Found:
    now = Trained(live_frames.frames_above())
    if not now.steppings:
        return ()
    stacks = Stacks()
    found = [*gx306_untrained.found(now, stacks)]
    known = {leaf for one in found for leaf in one.leaves}
    found += gx306_hidden_leaf.found(now, stacks, seen.what, known)
    others = gx306_other_model.may_be(now)
    if found or others or seen.recording.unstepped:
        found += gx306_other_model.found(now, seen.data, stacks) if others else ()
        unstepped.note(now, found, seen.recording, seen.data)
    return ()  # told at the end, or never


class Look(NamedTuple):
    """Who is asked on an occasion.

    Args:
        is_last_resort: asked only where those above it have found nothing.
    """

    occasion: Occasion
    ask: Callable[[Seen], Found]
    is_last_resort: bool = False


LOOKS = (
    Look(Occasion.UNCOUNTED_WRITE, _silent_writes),
    Look(
        Occasion.NO_GRADIENT,
        lambda seen: gx304_silent_checkpoint.silent(seen.what, seen.data),
    ),
    Look(
        Occasion.NO_GRADIENT,
        lambda seen: gx304_silent_cut.silent(seen.what, seen.why, seen.data),
    ),
    Look(
        Occasion.NO_GRADIENT,
        lambda seen: gx304_lost_leaf.silent(seen.what, seen.data) if seen.why & LOST_LEAVES else (),
        is_last_resort=True,
    ),
    Look(
        Occasion.STARVED_LEAVES,
        lambda seen: gx304_starved_leaf.silent(seen.what, seen.data),
    ),
    Look(Occasion.HELD_LEAVES, _held_leaves),
    Look(Occasion.TRAINING, _untrained),
    Look(
        Occasion.RECOMPUTE,
        lambda seen: gx406_recompute_differs.differs(seen.what, seen.data, seen.names),
    ),
    Look(
        Occasion.EMPTY_GRAD,
        lambda seen: gx305_non_leaf_grad.read(seen.what, seen.data),
    ),
)


def look(
    occasion: Occasion, what: Any, recording: Recording, why: int = 0
) -> list[Diagnosis | Awaited]:
    """What is silently wrong, as far as can be seen on this occasion."""
    seen = Seen(recording, what, why)
    found: list[Diagnosis | Awaited] = []
    for one in LOOKS:
        if one.occasion is occasion and not (found and one.is_last_resort):
            found += one.ask(seen)
    return found
