"""Diagnoses: one rule per failure, from (error, graph, Recording) to Diagnosis.

`explain` is the public door; `of_backward` and `of_silent_writes` are what the watch on backward
asks. Rules live in `saved` (GX101, GX401), `views` (GX102 to GX106) and `graph` (GX302, GX303).
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
    if not isinstance(error, BaseException):
        raise TypeError(f"gradext.explain: expected an exception, got {type(error).__qualname__}")
    from gradext import watch
    from gradext.diagnosis import graph, saved, views

    chain = _chain(error)
    for at in chain:
        known = _seen_before(at, recording)
        if known:
            return list(known)
    if recording is None and watch.recordings:
        recording = watch.recordings[-1]
    data = recording.data if recording is not None else None
    for at in chain:
        for rule in (views.refused_write, graph.second_backward, graph.unused_input, saved.stale):
            found = rule(at, data)
            if found:
                return found
    return []


# What was said of the errors that a backward call raised, for explain() after the recording ended:
# (the exception's id, its text, the diagnoses). An exception is told by both; nothing holds it.
_said: weakref.WeakKeyDictionary[Recording, list[tuple[int, str, tuple[Diagnosis, ...]]]]
_said = weakref.WeakKeyDictionary()
_MOST_SAID = 64


def _remember(error: BaseException, found: list[Diagnosis]) -> None:
    from gradext import watch

    for recording in watch.recordings:
        said = _said.setdefault(recording, [])
        said.append((id(error), watch.describe(error), tuple(found)))
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
        pending.append(at.__context__)
        pending.append(at.__cause__)
        group = getattr(at, "exceptions", ()) if type(at).__name__.endswith("Group") else ()
        if isinstance(group, tuple):
            pending += [item for item in reversed(group) if isinstance(item, BaseException)]
    return found


def of_backward(error: BaseException, outputs: Any, recording: Recording) -> list[Diagnosis]:
    """Diagnoses of an error that the engine raised on the graph below `outputs`."""
    from gradext import watch
    from gradext.diagnosis import evidence, graph, naming, saved, views

    text = str(error)
    known = (saved.PATTERN, graph.FREED, graph.UNUSED, views.ANY)
    if not any(pattern.search(text) for pattern in known):
        return []
    live = evidence.read(outputs)
    data = recording.data
    names = naming.Names([*_frames_of(error), *watch.frames_above()])
    found = (
        saved.stale(error, data, live, names)
        or graph.second_backward(error, data, live, names)
        or graph.unused_input(error, data, live, names)
        or views.refused_write(error, data)
    )
    if found:
        _remember(error, found)
    return found


def of_silent_writes(outputs: Any, recording: Recording) -> list[Diagnosis]:
    """GX401: saved tensors below `outputs` whose memory was written without a version bump."""
    from gradext import watch
    from gradext.diagnosis import evidence, naming, saved

    data = recording.data
    live = evidence.read(outputs)
    if not saved.any_silent(data, live):
        return []
    return saved.silent(data, live, naming.Names(watch.frames_above()))


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
    from gradext.diagnosis import saved

    return saved.check(loss, recording)


def _frames_of(error: BaseException) -> list[Any]:
    found = []
    traceback = error.__traceback__
    while traceback is not None:
        found.append(traceback.tb_frame)
        traceback = traceback.tb_next
    return found[::-1]
