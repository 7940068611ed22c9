"""What a recording asks of the rules: why a backward failed, and whether one is silently wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradext.base import raw
from gradext.diagnosis.model import Diagnosis
from gradext.native import _C
from gradext.objects.naming import Names
from gradext.recording.awaited import Awaited
from gradext.rules import codes, graph_copy
from gradext.rules.case import Case
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
from gradext.rules.explain import explain
from gradext.rules.recognise import of_error as recognise
from gradext.rules.wording import unstepped
from gradext.rules.wording.trained import Stacks, Trained
from gradext.source import live_frames

if TYPE_CHECKING:
    from gradext.recording.checkpoints import Recomputed
    from gradext.recording.recording import Recording

__all__ = [
    "explain",
    "of_backward",
    "of_empty_grad",
    "of_held_leaves",
    "of_recompute",
    "of_silent_cuts",
    "of_silent_writes",
    "of_training",
    "recognise",
]


# A value left the graph, and no backward has reached what is behind it.
LOST_LEAVES = _C.SUSPICIONS["LOST_LEAVES"]
# A backward has ended, and leaves that it came to have no gradient.
STARVED_LEAVES = _C.SUSPICIONS["STARVED_LEAVES"]


def of_backward(error: BaseException, outputs: Any, recording: Recording) -> list[Diagnosis]:
    """Diagnoses of an error that the engine raised on the graph below `outputs`."""
    if not codes.is_known(raw.message(error)):
        return []  # before the journal is copied
    return codes.diagnose(Case(error, recording.data, outputs))


def of_silent_writes(outputs: Any, recording: Recording) -> list[Diagnosis]:
    """GX401: saved tensors below `outputs` whose memory was written without a version bump."""
    data = recording.data
    live = graph_copy.read(outputs)
    if not gx401_silent_write.any_silent(data, live):
        return []
    return gx401_silent_write.silent(data, live, Names(live_frames.frames_above()))


def of_recompute(what: Recomputed, recording: Recording) -> list[Diagnosis]:
    """GX406: what a checkpoint recomputed is not what its forward saved."""
    names = Names(live_frames.frames_above())
    return gx406_recompute_differs.differs(what, recording.data, names)


def of_silent_cuts(
    outputs: Any, why: int, gradients: Any, recording: Recording
) -> list[Diagnosis | Awaited]:
    """GX304: values below `outputs` that lost their gradient, and hide it."""
    if not recording.cuts:
        return []
    data = recording.data
    if why & STARVED_LEAVES:
        return [*gx304_starved_leaf.silent(outputs, data)]
    found: list[Diagnosis | Awaited] = [
        *gx304_silent_checkpoint.silent(outputs, data),
        *gx304_silent_cut.silent(outputs, why, data),
    ]
    if why & LOST_LEAVES and not found:
        found += gx304_lost_leaf.silent(outputs, data)
    return found


def of_held_leaves(outputs: Any, recording: Recording) -> None:
    """GX304 of leaves whose values go into this graph as constants: told at the end, or never."""
    if recording.cuts:
        gx304_held_leaf.look(outputs, recording.data, recording.held, recording.waiting)


def of_training(outputs: Any, recording: Recording) -> None:
    """GX306 of parameters that nobody steps: told at the end, or never."""
    now = Trained(live_frames.frames_above())
    if not now.steppings:
        return
    stacks = Stacks()
    found = [*gx306_untrained.found(now, stacks)]
    known = {leaf for one in found for leaf in one.leaves}
    found += gx306_hidden_leaf.found(now, stacks, outputs, known)
    others = gx306_other_model.may_be(now)
    if found or others or recording.unstepped:
        data = recording.data  # a copy of all events
        found += gx306_other_model.found(now, data, stacks) if others else ()
        unstepped.note(now, found, recording, data)


def of_empty_grad(tensor: Any, recording: Recording) -> list[Diagnosis]:
    """GX305: a `.grad` was read that nothing fills."""
    return gx305_non_leaf_grad.read(tensor, recording.data)
