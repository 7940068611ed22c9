"""What is wrapped while a recording runs, and who is told when something goes wrong.

Owns the wrappers around torch's Python entry points (all C functions: they leave no line in a
traceback) and the incidents. Never lets an error of gradext reach the program: it is counted here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from gradext import _C, internals, interrupts, objects
from gradext.diagnosis.model import Diagnosis

if TYPE_CHECKING:
    from gradext.findings import Finding
    from gradext.recording import Recording

recordings: list[Recording] = []  # those that run, innermost last

# What may be silently wrong makes a full look at the graph necessary, which takes a while. Never
# spend more than this share of the program's time on it.
_SHARE = 0.05


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
    mark = objects.error_dict(error).get(_MARK)
    return mark if isinstance(mark, tuple) else None


incidents: list[Incident] = []  # of the recordings that run; the latest _KEPT
_KEPT = 64
silent_places: set[Any] = set()  # of the silent writes that the journal alone has shown
_subscribers: list[Callable[[Incident], None]] = []
_errors: dict[str, int] = {}
_lock = threading.RLock()
_undo: list[Callable[[], None]] = []
_installed = 0
unexplained = 0  # findings of a guard beyond those that it explains
_looked = {"recognised": 0.0, "explained": 0.0, "since": 0.0, "skipped": 0.0}

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


def describe(error: BaseException) -> str:
    """ "RuntimeError: the text", as the last line of a traceback."""
    return f"{objects.type_name(type(error)).rsplit('.', 1)[-1]}: {objects.message(error)}"


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


def own_error(error: BaseException, where: str) -> None:
    """Count an error of gradext's own; it is reported at the end and goes nowhere else."""
    text = f"{where}: {describe(error)}"
    with _lock:
        _errors[text] = _errors.get(text, 0) + 1


def own_errors() -> list[str]:
    """gradext's own errors so far, one line each."""
    lines = [text if count == 1 else f"{text} ({count} times)" for text, count in _errors.items()]
    count, last = _C.recorder_faults()
    if count:
        times = "" if count == 1 else f" ({count} times)"
        lines.append(f"recorder: {last}{times}")
    if unexplained:
        lines.append(f"{unexplained} more findings of a guard were not explained")
    lines += [each.line for each in internals.missing]
    if _looked["skipped"]:
        lines.append(
            f"{int(_looked['skipped'])} checks for silent errors were left out: they would have "
            f"taken more than {_SHARE:.0%} of the run"
        )
    return lines


def install() -> None:
    """Wrap torch's entry points; counts, so that each install() needs its uninstall()."""
    global _installed
    with _lock:
        _installed += 1
        if _installed > 1:
            return
        import time

        _looked.update(recognised=0.0, explained=0.0, since=time.perf_counter(), skipped=0.0)
        try:
            _wrap_all()
        except BaseException:
            uninstall()
            raise


def uninstall() -> None:
    """Undo install(); the last one puts everything back and forgets the incidents."""
    global _installed
    with _lock:
        _installed -= 1
        if _installed > 0:
            return
        while _undo:
            _undo.pop()()
        incidents.clear()
        silent_places.clear()


def _wrap_all() -> None:
    import torch.autograd.graph as graph

    if internals.has(internals.ENGINE):
        engine: Any = graph._engine_run_backward
        backward: Any = _C.wrap_backward(engine, _on_suspicion, _on_error)
        _replace(graph, "_engine_run_backward", backward)
        _replace(torch.autograd, "_engine_run_backward", backward)

    if internals.has(internals.MARK_DIRTY):
        context = torch.autograd.function.FunctionCtx
        _note(context, "mark_dirty", "autograd.Function.mark_dirty", True)
    # graph.increment_version ends in this.
    if internals.has(internals.INCREMENT):
        _note(torch._C, "_increment_version", "torch.autograd.graph.increment_version", False)
    if internals.has(internals.SET_COUNTER):
        name = "_unsafe_set_version_counter"
        _note(torch._C._autograd, name, f"torch._C._autograd.{name}", False)

    if internals.has(internals.BOOTSTRAP):
        bootstrap = threading.Thread._bootstrap_inner  # type: ignore[attr-defined]
        _replace(threading.Thread, "_bootstrap_inner", _C.wrap_bootstrap(bootstrap))

    if internals.has(internals.APPLY):
        if internals.apply_is_torchs():
            apply: Any = vars(torch._C._FunctionBase)["apply"]
            _replace(internals.APPLY_OWNER, "apply", _C.wrap_apply(apply))
        else:
            own_error(RuntimeError("somebody has replaced it; not recorded"), internals.APPLY.name)
    if internals.has(internals.HIGHER_ORDER):
        _let_higher_order_ops_pass()

    left = _C.patch_entries()
    _undo.append(_C.unpatch_entries)
    for name in left:
        own_error(RuntimeError("not of a kind that gradext knows; not recorded"), name)


def _note(owner: Any, name: str, label: str, is_method: bool) -> None:
    _replace(owner, name, _C.wrap_noting(label, getattr(owner, name), is_method))


def _replace(owner: Any, name: str, value: Any) -> None:
    had_own = name in vars(owner)
    original = vars(owner).get(name)
    setattr(owner, name, value)

    def undo() -> None:
        # Somebody may have wrapped ours in the meantime; then ours stays inside, doing nothing.
        if vars(owner).get(name) is value:
            if had_own:
                setattr(owner, name, original)
            else:
                delattr(owner, name)

    _undo.append(undo)


def _let_higher_order_ops_pass() -> None:
    """Higher-order ops dispatch in Python and stop at every key that they do not know."""
    ops: Any = torch._ops
    known = ops._HIGHER_ORDER_OP_DEFAULT_FALLTHROUGH_DISPATCH_KEYS
    for key in _C.recorder_keys():
        if key not in known:
            known.append(key)
            for op in list(ops._higher_order_ops.values()):
                op.fallthrough(key)


@contextlib.contextmanager
def _in_turn() -> Iterator[None]:
    turn = _turn
    try:
        turn.acquire(timeout=_TURN)
        yield
    finally:
        with contextlib.suppress(RuntimeError):  # it was never this thread's turn
            turn.release()


def _tell(incident: Incident) -> None:
    with _lock:
        incidents.append(incident)
        del incidents[:-_KEPT]
    for callback in list(_subscribers):
        try:
            callback(incident)
        except BaseException as error:
            if interrupts.is_the_programs(error):
                raise
            own_error(error, "subscriber")


def _on_error(error: BaseException, outputs: Any) -> None:
    """The engine raised. Called inside its wrapper, while the graph is as it failed."""
    # Kept from here on: while this thread waits for its turn, another may end the recording.
    recording = next(reversed(recordings), None)
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
        own_error(fault, "diagnosis of a failed backward")
        return
    if found:
        mark = (os.getpid(), next(_marks))
        with interrupts.whole():
            objects.error_dict(error)[_MARK] = mark
            _tell(Incident("backward", tuple(found), describe(error), mark))


def _explained(error: BaseException, outputs: Any, recording: Recording) -> Sequence[Diagnosis]:
    from gradext import diagnosis, findings

    finding = findings.of_error(error, outputs, recording)
    if finding is not None:
        live = [*frames_of_error(error), *frames_above()]
        again = recording._known.recall(finding, live)
        if again is not None:
            diagnosis.remember(error, again)
            return again
    found = diagnosis.of_backward(error, outputs, recording)
    if finding is not None:
        recording._known.keep(finding, found, live)
    return found


def _hidden_cuts(
    outputs: Any, why: int, gradients: Any, recording: Recording
) -> Sequence[Diagnosis]:
    from gradext import diagnosis, findings

    def explain() -> Sequence[Diagnosis]:
        return diagnosis.of_silent_cuts(outputs, why, gradients, recording)

    if not recording.cuts:
        return ()
    return _silent(lambda: (True, findings.of_hidden_cuts(outputs, why)), explain, recording)


def _silent_writes(outputs: Any, recording: Recording) -> Sequence[Diagnosis]:
    from gradext import diagnosis, findings

    def explain() -> Sequence[Diagnosis]:
        found = diagnosis.of_silent_writes(outputs, recording)
        silent_places.update(map(findings.places_of, found))
        return found

    return _silent(lambda: findings.of_silent_writes(outputs, recording), explain, recording)


def _silent(
    find: Callable[[], tuple[bool, Finding | None]],
    explain: Callable[[], Sequence[Diagnosis]],
    recording: Recording,
) -> Sequence[Diagnosis]:
    """What is silently wrong: as it was explained before, or explained now if there is time."""
    again = None
    with _limited("recognised") as may_look:
        if not may_look:
            return ()
        may_be, finding = find()
        if may_be and finding is not None:
            again = recording._known.recall(finding, frames_above())
    if again is not None or not may_be:
        return again or ()
    with _limited("explained") as may_look:
        if not may_look:
            return ()
        found = explain()
    if finding is not None:
        recording._known.keep(finding, found)
    return found


@contextlib.contextmanager
def _limited(what: str) -> Iterator[bool]:
    """Counts the processor time of a block; whether its share of the run is not used up yet.

    Recognising has a share of its own: one long explanation must not keep others from being
    counted.
    """
    import time

    may_look = _looked[what] <= 1.0 + _SHARE * (time.perf_counter() - _looked["since"])
    _looked["skipped"] += not may_look
    start = time.thread_time()
    try:
        yield may_look
    finally:
        _looked[what] += time.thread_time() - start


# Why a backward is looked at before it runs (csrc/recorder/python.h).
UNCOUNTED_WRITE = 1


def _on_suspicion(outputs: Any, why: int, gradients: Any) -> None:
    """Before a backward that may be silently wrong; `why` is a sum of reasons."""
    recording = next(reversed(recordings), None)
    if recording is None:
        return
    try:
        if why & UNCOUNTED_WRITE:
            with _in_turn():
                found = _silent_writes(outputs, recording)
            if found:
                with interrupts.whole():
                    _tell(Incident("silent", tuple(found)))
        if why & ~UNCOUNTED_WRITE:
            with _in_turn():
                found = _hidden_cuts(outputs, why & ~UNCOUNTED_WRITE, gradients, recording)
            if found:
                with interrupts.whole():
                    _tell(Incident("cut", tuple(found)))
    except BaseException as fault:
        if interrupts.is_the_programs(fault):
            raise
        own_error(fault, "check for silent errors")


def incident_of(error: BaseException) -> Incident | None:
    """The incident that `error`, or what it was raised from, was seen as."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        for incident in reversed(incidents):
            if incident.matches(at):
                return incident
        cause, context = objects.reasons_of(at)
        at = context if cause is None else cause
    return None


def frames_above() -> list[Any]:
    """The live frames of the calling thread outside gradext, innermost first."""
    found = []
    frame: Any = sys._getframe(1)
    package = __file__.rsplit("watch", 1)[0]
    while frame is not None:
        if not frame.f_code.co_filename.startswith(package):
            found.append(frame)
        frame = frame.f_back
    return found


def frames_of_error(error: BaseException) -> list[Any]:
    """The live frames of an error's traceback, innermost first."""
    found = []
    traceback = error.__traceback__
    while traceback is not None:
        found.append(traceback.tb_frame)
        traceback = traceback.tb_next
    return found[::-1]
