"""gradext.explain: from an exception that autograd raised to its diagnoses."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gradext.base import errors, raw
from gradext.diagnosis.model import Diagnoses, Diagnosis
from gradext.ops import graph_break
from gradext.recording import findings, incidents, running, said
from gradext.rules import recognise
from gradext.rules.case import Case
from gradext.rules.codes import diagnose
from gradext.source import live_frames

if TYPE_CHECKING:
    from gradext.recording.recording import Recording


@graph_break
def explain(error: BaseException | None = None, recording: Recording | None = None) -> Diagnoses:
    """What caused `error`, an exception that autograd raised: culprit, victim, fix.

    Call it in the `except` block while a recording is on (gradext.record(), gradext.install() or
    `gradext run`). Without one, only what the exception itself shows can be said. Empty when the
    error is none that gradext knows. `print()` of the result is the report.

    Args:
        error: the exception, or one raised from it. Default: the one that is being handled, else
            the last that Python has printed: in a console, `gradext.explain()` after an error.
        recording: defaults to the one that is running.

    Raises:
        TypeError: `error` is no exception.
        ValueError: no error is given, and none has been raised.
    """
    if error is None:
        error = _last_error()
    if not issubclass(type(error), BaseException):
        name = raw.type_name(type(error))
        raise TypeError(f"gradext.explain: expected an exception, got {name}")
    chain = errors.chain(error)
    for at in chain:
        known = _seen_before(at, recording)
        if known:
            return Diagnoses(known)
    if recording is None and running.recordings:
        recording = running.recordings[-1]
    keys: list[tuple[findings.Finding | None, list[Any]]] = []
    for at in chain:
        finding = None
        if recording is not None:
            finding = recognise.of_refusal(at, recording, raw.message(at))
        live = (
            [*live_frames.frames_of_error(at), *live_frames.frames_above()]
            if finding is not None
            else []
        )
        if finding is not None and recording is not None:
            again = recording.known.recall(finding, live)
            if again:
                return Diagnoses(again)
        keys.append((finding, live))
    data = recording.data if recording is not None else None
    for at, (finding, live) in zip(chain, keys, strict=True):
        found = diagnose(Case(at, data))
        if found:
            if finding is not None and recording is not None:
                recording.known.keep(finding, found, live)
            return Diagnoses(found)
    return Diagnoses()


def _last_error() -> BaseException:
    last: BaseException | None = getattr(sys, "last_exc", getattr(sys, "last_value", None))
    found = sys.exc_info()[1] or last
    if found is None:
        raise ValueError("gradext.explain: no error has been raised here; give it the exception")
    return found


def _seen_before(error: BaseException, recording: Recording | None) -> Sequence[Diagnosis] | None:
    if recording is not None:
        return said.of(error, recording)
    incident = incidents.incident_of(error)
    return incident.diagnoses if incident is not None else None
