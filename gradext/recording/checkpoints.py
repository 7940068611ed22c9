"""Checkpoints without reentry: what a forward packed, compared with what its recompute packs.

torch keeps, of each tensor that a block saves, its place in the order of packing, its shape and
dtype; this keeps its version and its line as well, and its bytes while a guard is on. Holds no
tensor. What differs is judged by gradext.rules.codes.gx406_recompute_differs.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gradext.base import interrupts, raw
from gradext.diagnosis.model import Diagnosis
from gradext.native import _C
from gradext.recording import findings, incidents, judge, own_errors, running
from gradext.source import live_frames

_MOST = 64  # findings that are explained while recordings run
_MOST_LISTED = 8  # tensors of one recompute that are told of

# Tells what was found where a guard is on (gradext.byte_guard.guard sets it).
deliver: Callable[[list[Diagnosis]], None] | None = None
_explained = 0


@dataclasses.dataclass(frozen=True)
class Pass:
    """One run of a checkpointed block.

    Attributes:
        order: of the journal when it began. thread, sequence: the thread, and how many nodes it
            had made. stack: where it began, for Recording.frames().
        packs: the stack of each tensor that was packed, and the thread's sequence number then.
    """

    order: int
    thread: int
    sequence: int
    stack: int
    packs: tuple[tuple[int, int], ...]


class Notes:
    """Stands in a checkpoint's frame for the function that notes the metadata of a tensor.

    Called for each tensor that the forward packs, and once more for each that was recomputed.
    """

    __slots__ = ("_holders", "log", "original")

    def __init__(self, original: Callable[[Any], Any], holders: list[Any]) -> None:
        self.original = original
        self._holders = holders  # the frame's own list: one for each tensor that was packed
        self.log = _C.checkpoint_packs()

    def __call__(self, tensor: Any) -> Any:
        if len(self.log) < len(self._holders):
            self.log.note(tensor)
        return self.original(tensor)

    @property
    def forward(self) -> Pass:
        return _pass(self.log.forward())

    @property
    def recompute(self) -> Pass:
        return _pass(self.log.recompute())


def _pass(facts: tuple[Any, ...]) -> Pass:
    order, thread, sequence, stack, packs = facts
    return Pass(order, thread, sequence, stack, tuple(packs))


class _Counts(defaultdict[Any, int]):
    """A frame's counts of what its recomputes have packed: notes where each was packed."""

    def __init__(self, log: Any) -> None:
        super().__init__(int)
        self._log = log

    def __setitem__(self, backward: Any, count: int) -> None:
        super().__setitem__(backward, count)
        if count > 0:
            self._log.count_one()


class Difference(NamedTuple):
    """A tensor that differs, as `_C.checkpoint_packs.compare` tells of it.

    Attributes:
        position: among the packs. stack, order: of the forward's pack.
        is_moved: its version is another. is_compared: its bytes are others.
        is_same_tensor: both have one version counter.
    """

    position: int
    stack: int
    order: int
    is_moved: bool
    is_compared: bool
    is_same_tensor: bool
    requires_grad: bool
    dtype: Any
    sizes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Recomputed:
    """A recompute that packed something else than its forward.

    Attributes:
        facts: of each tensor that differs the fields of Difference and, as "saved", what a rule
            knows of a saved tensor, in the order in which they were packed.
        keeps_random_state: the checkpoint puts back torch's random numbers.
        function: what was checkpointed, while it is told of.
    """

    forward: Pass
    recompute: Pass
    facts: tuple[dict[str, Any], ...]
    keeps_random_state: bool
    function: Any


def forget() -> None:
    """Begin to count anew: the last recording has ended."""
    global _explained
    _explained = 0


def notes_of(frame: Any) -> Notes | None:
    """What was noted of a checkpoint's frame (torch.utils.checkpoint._CheckpointFrame)."""
    held = raw.dict_of(frame)
    notes = held.get("metadata_fn") if type(held) is dict else None
    return notes if type(notes) is Notes else None


def function_of(recompute: Any) -> Any:
    """The checkpointed function, given the one that runs it again; None where it is not known."""
    return _of_function(recompute)[0] if hasattr(recompute, "__closure__") else None


def on_begin(frame: Any, *_: Any) -> None:
    """Before a checkpoint saves its inputs, which is before its forward runs."""
    try:
        notes = Notes(frame.metadata_fn, frame.weak_holders)
        with interrupts.whole():
            frame.recomp_counter = _Counts(notes.log)
            frame.metadata_fn = notes
    except BaseException as error:
        if interrupts.is_the_programs(error):
            raise
        own_errors.count(error, "notes of a checkpoint")


def on_recompute(frame: Any) -> None:
    """Before a recompute asks for the inputs that the checkpoint has saved."""
    notes = getattr(frame, "metadata_fn", None)  # torch's own frame: no code of the program's runs
    if type(notes) is Notes:
        notes.log.begin()


def on_recomputed(frame: Any, backward: Any) -> None:
    """Before torch compares the metadata of what was recomputed with the forward's."""
    try:
        found = _differences(frame, backward)
    except BaseException as error:
        if interrupts.is_the_programs(error):
            raise
        own_errors.count(error, "check of a checkpoint's recompute")
        return
    if found:
        if deliver is not None:
            deliver(found)
        else:
            incidents.tell(incidents.Incident("silent", tuple(found)))


def _differences(frame: Any, backward: Any) -> list[Diagnosis]:
    notes = getattr(frame, "metadata_fn", None)
    if type(notes) is not Notes or not running.recordings or frame.ignore_saved_mismatch:
        return []
    holders = frame.weak_holders
    if len(notes.log) != len(holders) or frame.recomp_counter.get(backward) != len(holders):
        return []  # begun before the recording; or torch is about to raise
    differences: list[Difference] = []
    tensors = []
    unread: tuple[set[int], bool] | None = None
    recomputed = frame.recomputed.get(backward, {})
    for index, weak in enumerate(holders):
        holder = weak()
        handle = None if holder is None else holder.handles.get(backward)
        tensor = None if handle is None else recomputed.get(handle)
        told = None if tensor is None else notes.log.compare(index, tensor)
        if told is None:
            continue
        if notes.original(tensor) != frame.x_metadatas[index]:
            return []  # torch is about to raise
        one = Difference._make(told)
        unread = unread or _C.checkpoint_unread()
        if id(holder) in unread[0] or (unread[1] and not one.requires_grad):
            continue
        if len(differences) < _MOST_LISTED:
            differences.append(one)
            tensors.append(tensor)
    if not differences:
        return []
    return list(_explain(notes, frame.recompute_fn, differences, tensors))


def _of_function(recompute: Any) -> tuple[Any, bool]:
    """The checkpointed function, and whether random numbers are put back: as its closure has it."""
    names, cells = recompute.__code__.co_freevars, recompute.__closure__ or ()

    def held(name: str) -> Any:
        try:
            return cells[names.index(name)].cell_contents
        except (ValueError, IndexError):  # there is none of that name, or it is empty
            return None

    return held("fn"), held("preserve_rng_state") is not False


def _explain(
    notes: Notes, recompute: Any, differences: Sequence[Difference], tensors: Sequence[Any]
) -> Sequence[Diagnosis]:
    global _explained
    recording = running.recordings[-1]
    function, keeps = _of_function(recompute)
    places = [(_C.place_of(one.stack), one.is_moved, one.is_same_tensor) for one in differences]
    finding = findings.Finding(
        ("recompute", _C.place_of(notes.log.begun), keeps, *places),
        tuple((one.dtype, one.sizes, one.is_compared) for one in differences),
    )
    live = live_frames.frames_above()
    again = recording.known.recall(finding, live)
    if again is not None:
        return again
    if _explained >= _MOST:
        own_errors.not_explained()
        return ()
    _explained += 1
    facts = tuple(
        {**one._asdict(), "saved": notes.log.saved(one.position, tensor)}
        for one, tensor in zip(differences, tensors, strict=True)
    )
    what = Recomputed(notes.forward, notes.recompute, facts, keeps, function)
    found = judge.diagnoses(judge.Occasion.RECOMPUTE, what, recording)
    recording.known.keep(finding, found, live)
    return found


def refused_finding(notes: Notes, text: str) -> findings.Finding:
    """torch's own error about a recompute: by its text, and by the lines that packed in both."""

    def lines(ran: Pass) -> tuple[tuple[Any, int], ...]:
        return tuple((_C.place_of(stack), number - ran.sequence) for stack, number in ran.packs)

    forward, recompute = notes.forward, notes.recompute
    where = _C.place_of(forward.stack)
    return findings.Finding(("refused recompute", text, where), (lines(forward), lines(recompute)))
