"""guard(): fingerprints of what is saved for backward, compared when backward uses it.

Owns the switch of the C++ guard, and how a finding reaches the program: a warning, or an error.
What is wrong and who did it is said by gradext.rules.codes.gx401_402_saved_bytes.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import torch

from gradext.base import interrupts
from gradext.base.met_before import MetBefore
from gradext.base.package import PREFIX, is_user_file
from gradext.diagnosis import ignore_comments
from gradext.diagnosis.model import Diagnosis
from gradext.native import _C
from gradext.ops import graph_break
from gradext.recording import (
    checkpoints,
    findings,
    incidents,
    own_errors,
    running,
    time_share,
)
from gradext.recording.options import ALL, EXPOSED, GUARD_WORDS, GUARDS, GuardReads, RecordOptions
from gradext.source import live_frames

if TYPE_CHECKING:
    from gradext.recording.recording import Recording

_MOST = 64  # findings that are explained; a loop that goes on finding the same has one cause
_guards: list[guard] = []
_known = findings.Known()  # of the guards that record by themselves


class GuardWarning(UserWarning):
    """A guard found a tensor changed."""


class GuardError(RuntimeError):
    """A guard with ``on_change="raise"`` found a tensor changed.

    Attributes:
        diagnoses: what was found, as gradext.explain() gives it.
    """

    def __init__(self, text: str, diagnoses: tuple[Diagnosis, ...]) -> None:
        super().__init__(text)
        self.diagnoses = diagnoses


class guard:
    """Compare bytes: ``with gradext.guard():`` around forward and backward.

    A tensor that is saved for backward is fingerprinted, and again when backward is about to use
    it. One that has changed and that torch's version check lets through makes the gradients
    silently wrong: GX401 (a write that moved no version counter) or GX402 (saved-tensor hooks had
    switched the check off), with the line that wrote. Gradients written in place while others
    still use them are GX403, writes through overlapping memory GX404.

    With `watched`, the bytes of these tensors are compared as well, at the end of the block: a
    frozen backbone, a reference model, a cache. One that has changed is GX405, with who wrote it.

    A write past the version counters takes somebody who has the memory (numpy, a pointer, a
    storage, `.data`) or an op that does not say what it writes. Memory that torch has allocated
    while the guard was on is not read before one of these has it: then what was saved there is
    fingerprinted, and whatever is saved there later. With ``reads="all"`` it is read at each save.

    Costs a read of such tensors at the save and at the use (`gradext bench fingerprint`), and for
    memory that is handed to numpy or by pointer a read at each line of Python. Takes no
    saved-tensor hooks and holds no tensor. Of the watched tensors, those on the CPU are compared.

    Args:
        watched: a module, a tensor, or anything that gradext.inspect_tree() takes.
        on_change: "warn" (a GuardWarning with the diagnosis) or "raise" (a GuardError, out of
            backward() or out of the block). What torch itself raises comes as without the guard.
            GX404 only ever warns.
        reads: "exposed" (memory that can be written without torch knowing) or "all": also what a
            function of C++ writes that is no op and gets a tensor.

    Attributes:
        diagnoses: what was found so far.
        counts: how often each was met, by its code and lines.
        quiet: warns and raises nothing: the report of `gradext run` tells it.
        whole_program: set before it begins where the program has made no tensor yet.

    Raises:
        ValueError: `on_change` or `reads` is neither; or nothing in `watched` is a tensor.
    """

    def __init__(
        self,
        watched: Any = None,
        *,
        on_change: Literal["warn", "raise"] = "warn",
        reads: GuardReads = EXPOSED,
    ) -> None:
        if on_change not in ("warn", "raise"):
            raise ValueError(f'gradext.guard: on_change is "warn" or "raise", got {on_change!r}')
        if reads not in GUARDS:
            raise ValueError(f"gradext.guard: reads is {GUARD_WORDS}, got {reads!r}")
        self.on_change = on_change
        self.reads = reads
        self.diagnoses: list[Diagnosis] = []
        self._named = _tensors_of(watched) if watched is not None else []
        self._watches: list[tuple[str, Any]] = []
        self._recording: Recording | None = None
        self._entered = 0
        self._wants: Any = None
        self.whole_program = False  # whether it begins before the program has made a tensor
        self.quiet = False  # under `gradext run`, whose report has what is found
        self.told = MetBefore[None]()  # by findings.places_of()

    def __enter__(self) -> guard:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop(may_raise=error is None)

    @graph_break
    def start(self) -> guard:
        """Begin; `with` does the same."""
        from gradext.recording import recording

        if self in _guards:
            raise RuntimeError("gradext.guard: this guard is on already; make another one")
        recorded = running.innermost()
        if recorded is None or not recorded.saves:
            self._recording = recording.Recording(RecordOptions(births=False, cuts=False)).start()
            self._recording.known = _known  # a guard in a loop begins a recording each time
        self._wants = _C.guard_wants(
            all=self.reads == ALL, watches=bool(self._named), whole_program=self.whole_program
        )
        try:
            _C.guard_start(self._wants, _on_finding, is_user_file)
        except BaseException:
            self._end_recording()
            raise
        if not _guards:
            _wrap_hooks()
            checkpoints.deliver = _deliver_recompute
        _guards.append(self)
        time_share.lift(1)
        self._entered = _C.recorder_stack()
        self._watches = [(name, _C.guard_watch(tensor, True)) for name, tensor in self._named]
        return self

    @graph_break
    def stop(self, *, may_raise: bool = False) -> None:
        """Compare what is watched, and end. Calling it again does nothing."""
        if self not in _guards:
            return
        try:
            found = interrupts.deferring(self._changed)() or []
        finally:
            _guards.remove(self)
            time_share.lift(-1)
            if not _guards:
                _unwrap_hooks()
                checkpoints.deliver = None
            _C.guard_stop(self._wants)
            self._end_recording()
            self._watches = []
        if found:
            _deliver(found, [self], may_raise=may_raise)

    def _end_recording(self) -> None:
        if self._recording is not None:
            self._recording.stop()
            self._recording = None

    def _changed(self) -> list[Diagnosis]:
        from gradext.rules.codes import (
            gx405_watched_tensor,
        )

        found: list[tuple[str, Diagnosis]] = []
        try:
            data, now = None, _C.recorder_stack()
            for name, watcher in self._watches:
                facts = watcher.changed()
                if facts is None:
                    continue
                facts |= {"entered": self._entered, "now": now}
                recording = running.innermost()
                if recording is None:
                    break
                finding = findings.of_watched(name, facts)
                again = recording.known.recall(finding, ())
                if again is None:
                    data = data or recording.data
                    again = (gx405_watched_tensor.watched(facts, name, data),)
                    recording.known.keep(finding, again)
                found.append((name, again[0]))
            return gx405_watched_tensor.together(found)
        except BaseException as error:
            if interrupts.is_the_programs(error):
                raise
            own_errors.count(error, "guard")
            return []

    def __repr__(self) -> str:
        state = "on" if self in _guards else "off"
        return f"<gradext.guard {state}, {len(self.diagnoses)} found>"


# --- saved-tensor hooks of the program's ----------------------------------------------------------


class _Packed:
    """What a pack hook returned, and the bytes that it was given."""

    __slots__ = ("value", "watch")

    def __init__(self, value: Any, watcher: Any) -> None:
        self.value = value
        self.watch = watcher


def _shared(pack: Any, unpack: Any) -> tuple[Any, Any]:
    """The program's pack and unpack hooks, wrapped so that the bytes they pass on are compared.

    The user's hooks stay installed. A hook may return a copy, which is ignored: only memory that
    comes back from `unpack` as it went into `pack` is compared.
    """

    def packed(tensor: torch.Tensor) -> Any:
        watcher = None
        if _guards and type(tensor) in (torch.Tensor, torch.nn.Parameter):
            try:
                watcher = _C.guard_watch(tensor, False)
            except Exception:  # no bytes of its own on the CPU
                watcher = None
        return _Packed(pack(tensor), watcher)

    def unpacked(held: Any) -> Any:
        if not isinstance(held, _Packed):
            return unpack(held)
        result = unpack(held.value)
        facts = None
        if held.watch is not None and _guards and isinstance(result, torch.Tensor):
            try:
                facts = interrupts.deferring(held.watch.unpacked)(result)
            except BaseException as error:
                if interrupts.is_the_programs(error):
                    raise
                own_errors.count(error, "guard of saved-tensor hooks")
        if facts is not None:
            _on_finding("saved", facts)
        return result

    return packed, unpacked


_PUSH = "_push_saved_tensors_default_hooks"
_push: list[Any] = []
_register: list[Any] = []


def _wrap_hooks() -> None:
    owner: Any = torch._C._autograd
    original = getattr(owner, _PUSH)

    def push(pack: Any, unpack: Any) -> Any:
        # torch's own (checkpointing, offloading) keep no memory that we could not see; and tracing
        # looks at hooks by their kind.
        module = getattr(pack, "__module__", None) or ""
        if module.split(".")[0] == "torch" or not callable(pack) or not callable(unpack):
            return original(pack, unpack)
        return original(*_shared(pack, unpack))

    setattr(owner, _PUSH, push)
    _push.append((original, push))
    register = owner.SavedTensor.register_hooks

    def register_hooks(saved: Any, *hooks: Any, **named: Any) -> Any:
        """Register hooks on a saved tensor, fingerprinted before: torch does not check it any more.

        `data` is what was saved, with no hook run; `data_ptr()` tells the guard that it is exposed.
        """
        with torch._C.DisableTorchFunctionSubclass(), contextlib.suppress(Exception):
            saved.data.data_ptr()  # raises where nothing was saved, or it has no bytes here
        return register(saved, *hooks, **named)

    owner.SavedTensor.register_hooks = register_hooks
    _register.append((register, register_hooks))


def _unwrap_hooks() -> None:
    owner: Any = torch._C._autograd
    original, push = _push.pop()
    if getattr(owner, _PUSH) is push:
        setattr(owner, _PUSH, original)
    register, ours = _register.pop()
    if owner.SavedTensor.register_hooks is ours:
        owner.SavedTensor.register_hooks = register


def start_quietly(
    reads: GuardReads = EXPOSED, *, whole_program: bool = False
) -> Callable[[], None]:
    """A guard for `gradext run`, whose report tells what it finds. Returns the way to end it.

    Args:
        reads: as guard() takes it.
        whole_program: the program has made no tensor yet.
    """
    one = guard(reads=reads)
    one.quiet = True
    one.whole_program = whole_program
    one.start()
    return one.stop


_DEVICE_AND_SPARSE: Any = (torch.Tensor.device, torch.Tensor.is_sparse)


def _tensors_of(watched: Any) -> list[tuple[str, torch.Tensor]]:
    from gradext.state.tree import tensors_of

    found = []
    seen: set[int] = set()
    for path, tensor in tensors_of(watched):
        with torch._C.DisableTorchFunctionSubclass():
            # Through torch's own descriptors: a subclass may have properties of these names.
            device, is_sparse = (get.__get__(tensor) for get in _DEVICE_AND_SPARSE)
        if id(tensor) not in seen and device.type == "cpu" and not is_sparse:
            seen.add(id(tensor))
            found.append((path or "tensor", tensor))
    if not found:
        raise ValueError(
            f"gradext.guard: nothing to watch: no CPU tensor in a {type(watched).__qualname__}"
        )
    return found


def _on_finding(kind: str, facts: dict[str, Any]) -> None:
    """Called by C++ under the GIL, with a finding. Raises only what is meant for the program."""
    try:
        diagnosis = _diagnosis(kind, facts)
    except BaseException as error:
        if interrupts.is_the_programs(error):
            raise
        own_errors.count(error, "diagnosis of a guard")
        return
    if diagnosis is not None:
        _deliver([diagnosis], list(_guards), may_raise=kind != "overlap")


def _diagnosis(kind: str, facts: dict[str, Any]) -> Diagnosis | None:
    from gradext.objects.naming import Names
    from gradext.rules.codes import (
        gx401_402_saved_bytes,
        gx403_gradient_written,
        gx404_overlapping_write,
    )
    from gradext.rules.wording import context_attributes

    recording = running.innermost()
    if recording is None or not _guards:
        return None
    is_kept = kind == "saved" and facts["saved"]["kind"] == "context"
    if is_kept and not context_attributes.is_read(facts["node"], facts["attribute"]):
        return None
    finding, known = findings.of_guard(kind, facts), recording.known
    live = live_frames.frames_above()
    again = known.recall(finding, live)
    if again is not None:
        return again[0] if again else None
    # A loop that goes on finding something else each time has one cause, too.
    if sum(len(one.diagnoses) for one in _guards) >= _MOST:
        own_errors.not_explained()
        return None
    data = recording.data
    if kind == "saved":
        told = gx401_402_saved_bytes.changed(facts, data, Names(live))
        if told is None:
            return None
        found = told
    elif kind == "gradient":
        found = gx403_gradient_written.gradient_written(facts, data)
    else:
        overlaps = gx404_overlapping_write.overlapping(facts, data)
        if overlaps is None:
            known.keep(finding, [])  # a next step copies no events to come to the same
            return None
        found = overlaps
    known.keep(finding, [found])
    return found


def _deliver(found: list[Diagnosis], guards: list[guard], *, may_raise: bool) -> None:
    """Tell every guard, the session that reports, and the program."""
    found = ignore_comments.kept(found)
    if not found:
        return
    new = []
    keys = [findings.places_of(diagnosis) for diagnosis in found]
    for diagnosis, key in zip(found, keys, strict=True):
        for one in guards:
            if one.told.meet(key, None):
                one.diagnoses.append(diagnosis)
                new.append(diagnosis)
    # The recording may have reported the same write already, without a guard.
    known = incidents.silent_places
    fresh = tuple(d for d, key in zip(found, keys, strict=True) if key not in known)
    if fresh:
        incidents.tell(incidents.Incident("silent", fresh))
    if may_raise and any(one.on_change == "raise" and not one.quiet for one in guards):
        raise GuardError("\n\n".join(str(diagnosis) for diagnosis in found), tuple(found))
    if incidents.is_heard():  # a report is to come that has them
        return
    for diagnosis in dict.fromkeys(new):
        warnings.warn(f"gradext:\n{diagnosis}", GuardWarning, stacklevel=_level())


def _deliver_recompute(found: list[Diagnosis]) -> None:
    _deliver(found, list(_guards), may_raise=True)


def _level() -> int:
    """So that the warning names the program's line."""
    level = 2
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(PREFIX):
        level += 1
        frame = frame.f_back
    return level
