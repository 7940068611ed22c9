"""Diagnoses: one rule per failure, from (error, graph, Recording) to Diagnosis.

`explain` is the public door; `of_backward` and `of_silent_writes` are what the watch on backward
asks. Rules live in `stale` (GX101), `views` (GX102 to GX106), `inference` (GX201 to GX203),
`cuts` (GX301), `silent_cuts` (GX304), `graph` (GX302, GX303), `silent_writes` (GX401) and `guarded`
(what a guard finds); `checking` is check_backward().
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gradext import objects
from gradext.diagnosis.model import CODES, Diagnosis, Frame, Site

if TYPE_CHECKING:
    from gradext.recording import Recording

__all__ = ["CODES", "Diagnosis", "Frame", "Site", "check_backward", "explain"]


def explain(error: BaseException, recording: Recording | None = None) -> list[Diagnosis]:
    """What caused `error`, an exception that autograd raised: culprit, victim, fix.

    Call it in the `except` block while a recording is on (gradext.record(), gradext.install() or
    `gradext run`). Without one, only what the exception itself shows can be said. Empty when the
    error is none that gradext knows.

    Args:
        error: the exception, or one raised from it.
        recording: defaults to the one that is running.

    Raises:
        TypeError: `error` is no exception.
    """
    if not issubclass(type(error), BaseException):
        name = objects.type_name(type(error))
        raise TypeError(f"gradext.explain: expected an exception, got {name}")
    from gradext import findings, watch
    from gradext.diagnosis import cuts, graph, inference, stale, views

    chain = _chain(error)
    for at in chain:
        known = _seen_before(at, recording)
        if known:
            return list(known)
    if recording is None and watch.recordings:
        recording = watch.recordings[-1]
    keys: list[tuple[findings.Finding | None, list[Any]]] = []
    for at in chain:
        finding = None
        if recording is not None:
            finding = findings.of_refusal(at, recording, objects.message(at))
        live = [*watch.frames_of_error(at), *watch.frames_above()] if finding is not None else []
        if finding is not None and recording is not None:
            again = recording._known.recall(finding, live)
            if again:
                return list(again)
        keys.append((finding, live))
    data = recording.data if recording is not None else None
    for at, (finding, live) in zip(chain, keys, strict=True):
        for rule in (
            *(views.refused_write, graph.second_backward, graph.unused_input, stale.stale),
            *(inference.misused, cuts.no_gradient),
        ):
            found = rule(at, data)
            if found:
                if finding is not None and recording is not None:
                    recording._known.keep(finding, found, live)
                return found
    return []


# What was said of the errors that a backward call raised, for explain() after the recording ended:
# (the exception's id, its text, the diagnoses). An exception is told by both; nothing holds it.
_said: weakref.WeakKeyDictionary[Recording, list[tuple[int, str, tuple[Diagnosis, ...]]]]
_said = weakref.WeakKeyDictionary()
_MOST_SAID = 64


def remember(error: BaseException, found: Sequence[Diagnosis]) -> None:
    """Keep what was said of an error, for explain() after the recording has ended."""
    from gradext import watch

    words = watch.describe(error)
    for recording in watch.recordings:
        said = _said.setdefault(recording, [])
        said.append((id(error), words, tuple(found)))
        del said[:-_MOST_SAID]


def _seen_before(error: BaseException, recording: Recording | None) -> Sequence[Diagnosis] | None:
    from gradext import watch

    if recording is None:
        incident = watch.incident_of(error)
        return incident.diagnoses if incident is not None else None
    text = watch.describe(error)
    for known, words, found in reversed(_said.get(recording, [])):
        if known == id(error) and words == text:
            return found
    return None


def _chain(error: BaseException) -> list[BaseException]:
    """The exception, what it was raised from, and what a group holds; each once."""
    found: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending:
        at = pending.pop()
        if at is None or any(at is known for known in found):
            continue
        found.append(at)
        cause, context = objects.reasons_of(at)
        pending += [context, cause, *reversed(objects.members_of(at))]
    return found


def of_backward(error: BaseException, outputs: Any, recording: Recording) -> list[Diagnosis]:
    """Diagnoses of an error that the engine raised on the graph below `outputs`."""
    from gradext import watch
    from gradext.diagnosis import cuts, evidence, graph, inference, naming, stale, views

    text = objects.message(error)
    known = (stale.PATTERN, graph.FREED, graph.UNUSED, views.ANY, inference.ANY, cuts.ANY)
    if not any(pattern.search(text) for pattern in known):
        return []
    data = recording.data
    found = cuts.no_gradient(error, data, outputs) or inference.misused(error, data)
    if found:
        remember(error, found)
        return found
    live = evidence.read(outputs)
    names = naming.Names([*watch.frames_of_error(error), *watch.frames_above()])
    found = (
        stale.stale(error, data, live, names)
        or graph.second_backward(error, data, live, names)
        or graph.unused_input(error, data, live, names)
        or views.refused_write(error, data)
    )
    if found:
        remember(error, found)
    return found


def of_silent_writes(outputs: Any, recording: Recording) -> list[Diagnosis]:
    """GX401: saved tensors below `outputs` whose memory was written without a version bump."""
    from gradext import watch
    from gradext.diagnosis import evidence, naming, silent_writes

    data = recording.data
    live = evidence.read(outputs)
    if not silent_writes.any_silent(data, live):
        return []
    return silent_writes.silent(data, live, naming.Names(watch.frames_above()))


def of_silent_cuts(outputs: Any, why: int, gradients: Any, recording: Recording) -> list[Diagnosis]:
    """GX304: values below `outputs` that lost their gradient, and hide it."""
    from gradext.diagnosis import silence, silent_cuts

    if not recording.cuts:
        return []
    return silence.kept(silent_cuts.silent(outputs, why, recording.data))


def check_backward(loss: Any, recording: Recording | None = None) -> list[Diagnosis]:
    """Before `loss.backward()`: do the saved tensors still hold? Runs nothing, changes nothing.

    The list has what backward would raise (GX101, GX302) and, from a running recording, the silent
    writes that it would not (GX401). What cannot be read without running a hook is named in
    `unchecked` of the returned list; `checked` counts the saved tensors that were compared.

    Args:
        loss: a tensor, or a list or tuple of tensors.

    Raises:
        TypeError: `loss` is no tensor and holds none.
    """
    from gradext.diagnosis import checking

    return checking.check(loss, recording)
