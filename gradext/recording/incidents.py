"""What happens when backward fails, or is about to give wrong gradients, while a recording runs.

The engine's wrapper calls `on_error` and `on_suspicion`; the judge says what is wrong, or a finding
that was explained before is counted; subscribers are told. No error of gradext reaches the program.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gradext.base import errors, forks, interrupts, package, raw
from gradext.base.met_before import MetBefore
from gradext.diagnosis import ignore_comments
from gradext.diagnosis.model import Diagnosis
from gradext.native import _C
from gradext.recording import findings, judge, own_errors, running, said, time_share, training
from gradext.recording.awaited import Awaited
from gradext.source import live_frames

if TYPE_CHECKING:
    from gradext.recording.findings import Finding
    from gradext.recording.recording import Recording


@dataclasses.dataclass(frozen=True)
class Incident:
    """Something went wrong: an error raised by backward, or a gradient that is silently wrong.

    Holds no exception, traceback or tensor: only what identifies the exception while it lives.
    """

    kind: str  # "backward", "silent" or "cut"
    diagnoses: tuple[Diagnosis, ...]
    error: str | None = None
    _mark: tuple[int, int] | None = None  # (process, number), as set on the exception

    def matches(self, error: BaseException) -> bool:
        """Whether `error` is the exception that this incident was made from."""
        return self._mark is not None and _mark_of(error) == self._mark


# An id() is used again as soon as its exception is gone, and the text of the next may be the same;
# so an exception that has been seen carries a number of its own.
_MARK = "_gradext_incident"
_marks = itertools.count(1)


def _mark_of(error: BaseException) -> tuple[int, int] | None:
    mark = raw.error_dict(error).get(_MARK)
    return mark if isinstance(mark, tuple) else None


incidents: list[Incident] = []  # of the recordings that run; the latest _KEPT
_KEPT = 64
_DEEPEST = 64  # frames that tell one read of a `.grad` from another
silent_places = MetBefore[None]()  # of the silent writes that the journal alone has shown
_subscribers: list[Callable[[Incident], None]] = []
_lock = threading.RLock()

# What is diagnosed needs a copy of the journal, tens of megabytes, so threads that fail at the same
# time take turns; the second often fails like the first, and its answer is there by then. A thread
# waits no longer than this: what the one before it is in may be waiting for it (a finalizer that
# joins a thread).
_TURN = 0.5  # seconds
_turn = threading.RLock()


def _in_child() -> None:
    """The thread that holds a lock may be none of a forked process's."""
    global _lock, _turn
    _lock = threading.RLock()
    _turn = threading.RLock()


_C.call_in_child(_in_child)


def subscribe(callback: Callable[[Incident], None]) -> Callable[[], None]:
    """Call `callback(incident)` at each incident, on its thread. Returns the way to stop that."""
    _subscribers.append(callback)

    def unsubscribe() -> None:
        with contextlib.suppress(ValueError):
            _subscribers.remove(callback)

    return unsubscribe


def is_heard() -> bool:
    """Whether somebody hears of incidents, and so tells of them."""
    return bool(_subscribers)


@contextlib.contextmanager
def _in_turn() -> Iterator[None]:
    turn = _turn
    try:
        turn.acquire(timeout=_TURN)
        yield
    finally:
        with contextlib.suppress(RuntimeError):  # it was never this thread's turn
            turn.release()


def tell(incident: Incident) -> None:
    """Hand an incident to all who subscribed, without the warnings that a comment silences."""
    kept = ignore_comments.kept(incident.diagnoses)
    if not kept:
        return
    if len(kept) < len(incident.diagnoses):
        incident = dataclasses.replace(incident, diagnoses=tuple(kept))
    with _lock:
        incidents.append(incident)
        del incidents[:-_KEPT]
    for callback in list(_subscribers):
        try:
            callback(incident)
        except BaseException as error:
            if interrupts.is_the_programs(error):
                raise
            own_errors.count(error, "subscriber")


def on_error(error: BaseException, outputs: Any) -> None:
    """The engine raised. Called inside its wrapper, while the graph is as it failed."""
    # Kept from here on: while this thread waits for its turn, another may end the recording.
    recording = running.innermost()
    if recording is None:
        return
    if _mark_of(error) is not None and any(incident.matches(error) for incident in incidents):
        return  # an inner backward has raised it, and it was seen then
    try:
        with _in_turn():
            found = _explained(error, outputs, recording)
    except BaseException as fault:
        if interrupts.is_the_programs(fault):
            raise
        own_errors.count(fault, "diagnosis of a failed backward")
        return
    if found:
        mark = (os.getpid(), next(_marks))
        with interrupts.whole():
            raw.error_dict(error)[_MARK] = mark
            tell(Incident("backward", tuple(found), errors.describe(error), mark))


def _explained(error: BaseException, outputs: Any, recording: Recording) -> Sequence[Diagnosis]:
    finding = judge.the_judge().recognise(error, outputs, recording)
    if finding is not None:
        live = [*live_frames.frames_of_error(error), *live_frames.frames_above()]
        again = recording.known.recall(finding, live)
        if again is not None:
            said.remember(error, again)
            return again
    found = judge.the_judge().of_backward(error, outputs, recording)
    if found:
        said.remember(error, found)
        frames = [*live_frames.frames_of_error(error), *live_frames.frames_above()]
        _draw(recording, outputs, found, frames)
    if finding is not None:
        recording.known.keep(finding, found, live)
    return found


def _draw(
    recording: Recording, outputs: Any, found: Sequence[Diagnosis], live: Sequence[Any]
) -> None:
    """What a timeline will want to know of this fault, where one is to be drawn."""
    if recording.drawing is not None and found:
        try:
            recording.drawing.note_fault(recording.data, outputs, found, live)
        except Exception as fault:
            own_errors.count(fault, "timeline")


def _hidden_cuts(outputs: Any, why: int, recording: Recording) -> Sequence[Diagnosis]:
    if not recording.cuts:
        return ()
    occasion = judge.Occasion.NO_GRADIENT
    if why & STARVED_LEAVES:
        occasion = judge.Occasion.STARVED_LEAVES
    finding: Finding | None = None
    is_new = False

    def find() -> tuple[bool, Finding | None]:
        nonlocal finding
        finding = findings.of_hidden_cuts(outputs, why)
        return True, finding

    def explain() -> Sequence[Diagnosis]:
        nonlocal is_new
        found = judge.the_judge().look(occasion, outputs, recording, why)
        waiting = [one for one in found if isinstance(one, Awaited)]
        if waiting:
            is_new = True
            recording.waiting.add(finding.places if finding is not None else None, waiting)
        return [one for one in found if isinstance(one, Diagnosis)]

    told = _silent(find, explain, recording, by_guard=False)
    if finding is None or is_new:
        return told
    return (*told, *recording.waiting.again(finding.places))


def _silent_writes(outputs: Any, recording: Recording) -> Sequence[Diagnosis]:
    def explain() -> Sequence[Diagnosis]:
        found = judge.diagnoses(judge.Occasion.UNCOUNTED_WRITE, outputs, recording)
        if time_share.is_lifted():
            # A guard compares the bytes themselves, when backward comes to use them.
            found = [diagnosis for diagnosis in found if diagnosis.severity == "error"]
        for diagnosis in found:
            silent_places.meet(findings.places_of(diagnosis), None)
        return found

    return _silent(lambda: findings.of_silent_writes(outputs, recording), explain, recording)


def _silent(
    find: Callable[[], tuple[bool, Finding | None]],
    explain: Callable[[], Sequence[Diagnosis]],
    recording: Recording,
    *,
    by_guard: bool = True,
) -> Sequence[Diagnosis]:
    """The diagnoses of a silent fault: those made before, or new ones if there is time.

    A guard lifts the limit of time where it looks itself (`by_guard`).
    """
    again = None
    with time_share.limited("recognised", by_guard=by_guard) as may_look:
        if not may_look:
            return ()
        may_be, finding = find()
        if may_be and finding is not None:
            again = recording.known.recall(finding, live_frames.frames_above())
    if again is not None or not may_be:
        return again or ()
    with time_share.limited("explained", by_guard=by_guard) as may_look:
        if not may_look:
            return ()
        found = explain()
    if finding is not None:
        recording.known.keep(finding, found)
    return found


# Why a backward is looked at before it runs (csrc/recorder/python/backward.h).
UNCOUNTED_WRITE = _C.SUSPICIONS["UNCOUNTED_WRITE"]
HELD_LEAVES = _C.SUSPICIONS["HELD_LEAVES"]
STARVED_LEAVES = _C.SUSPICIONS["STARVED_LEAVES"]
TRAINING = _C.SUSPICIONS["TRAINING"]


def on_suspicion(outputs: Any, why: int) -> None:
    """Before a backward that may be silently wrong, or after it; `why` is a sum of reasons."""
    recording = running.innermost()
    if recording is None:
        return
    try:
        if why & TRAINING:
            _look_at_training(outputs, recording)
            return
        if why & UNCOUNTED_WRITE:
            with _in_turn():
                found = _silent_writes(outputs, recording)
            if found:
                _draw(recording, outputs, found, live_frames.frames_above())
                with interrupts.whole():
                    tell(Incident("silent", tuple(found)))
        if why & HELD_LEAVES and recording.cuts:
            with _in_turn(), time_share.limited("explained", by_guard=False) as may_look:
                if may_look:
                    judge.diagnoses(judge.Occasion.HELD_LEAVES, outputs, recording)
        if why & ~(UNCOUNTED_WRITE | HELD_LEAVES):
            with _in_turn():
                found = _hidden_cuts(outputs, why & ~(UNCOUNTED_WRITE | HELD_LEAVES), recording)
            if found:
                _draw(recording, outputs, found, live_frames.frames_above())
                with interrupts.whole():
                    tell(Incident("cut", tuple(found)))
    except BaseException as fault:
        if interrupts.is_the_programs(fault):
            raise
        own_errors.count(fault, "check for silent errors")


def _look_at_training(outputs: Any, recording: Recording) -> None:
    """A backward has ended: what it gave a gradient, and who is to step that."""
    training.known.looked()
    if not recording.cuts:
        return
    with _in_turn(), time_share.limited("explained", by_guard=False) as may_look:
        if may_look:
            judge.diagnoses(judge.Occasion.TRAINING, outputs, recording)


def on_empty_grad(tensor: Any) -> None:
    """The program has read the `.grad` of a tensor that is no leaf and keeps none."""
    recording = running.innermost()
    if recording is None:
        return
    try:
        live = live_frames.frames_above()
        if not live or not package.is_user_file(live[0].f_code.co_filename):
            return  # an optimizer's look, or that of a tool
        place = tuple((frame.f_code, frame.f_lasti) for frame in live[:_DEEPEST])
        found = recording.empty_grads.get(place)
        if found is None:
            with _in_turn():
                found = tuple(judge.diagnoses(judge.Occasion.EMPTY_GRAD, tensor, recording))
            if len(recording.empty_grads) >= _KEPT:
                recording.empty_grads.pop(next(iter(recording.empty_grads)), None)
            recording.empty_grads[place] = found
        if found:
            with interrupts.whole():
                tell(Incident("cut", found))
    except BaseException as fault:
        if interrupts.is_the_programs(fault):
            raise
        own_errors.count(fault, "look at a `.grad` that was read")


def settle(recording: Recording) -> None:
    """The program has come to its end: tell what was waiting for that."""
    try:
        with _in_turn():
            found = recording.waiting.settle()
        with interrupts.whole():
            for diagnosis in found:
                tell(Incident("cut", (diagnosis,)))
    except BaseException as fault:
        if interrupts.is_the_programs(fault):
            raise
        own_errors.count(fault, "check for silent errors")


def incident_of(error: BaseException) -> Incident | None:
    """The incident that `error`, or what it was raised from, was seen as."""
    for at in errors.chain(error):
        for incident in reversed(incidents):
            if incident.matches(at):
                return incident
    return None


def forget() -> None:
    """Forget all incidents: the last recording has ended."""
    incidents.clear()
    silent_places.clear()


forks.when_settled(_subscribers.clear)  # a report on a child of ours is nobody's business
