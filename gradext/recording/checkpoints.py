"""Checkpoints without reentry: what a forward packed, compared with what its recompute packs.

torch keeps, of each tensor that a block saves, its place in the order of packing, its shape and
dtype; this keeps its version and its line as well, and its bytes while a guard is on. Holds no
tensor. What differs is judged by gradext.rules.codes.gx406_recompute_differs.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

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


@dataclasses.dataclass(frozen=True)
class Recomputed:
    """A recompute that packed something else than its forward.

    Attributes:
        facts: what `_C.checkpoint_packs.compare` says of each tensor that differs, in the order in
            which they were packed.
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
    notes = notes_of(frame)
    if notes is not None:
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
    notes = notes_of(frame)
    if notes is None or not running.recordings or frame.ignore_saved_mismatch:
        return []
    holders = frame.weak_holders
    if len(notes.log) != len(holders) or frame.recomp_counter.get(backward) != len(holders):
        return []  # begun before the recording; or torch is about to raise
    facts = []
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
        unread = unread or _C.checkpoint_unread()
        if id(holder) in unread[0] or (unread[1] and not told["requires_grad"]):
            continue
        facts.append(told)
    if not facts:
        return []
    function, keeps = _of_function(frame.recompute_fn)
    what = Recomputed(notes.forward, notes.recompute, tuple(facts[:_MOST_LISTED]), keeps, function)
    return list(_explain(what))


def _of_function(recompute: Any) -> tuple[Any, bool]:
    """The checkpointed function, and whether random numbers are put back: as its closure has it."""
    code, cells = recompute.__code__, recompute.__closure__ or ()
    held = {}
    for name, cell in zip(code.co_freevars, cells, strict=True):
        try:
            held[name] = cell.cell_contents
        except ValueError:  # empty
            continue
    return held.get("fn"), held.get("preserve_rng_state", True) is not False


def _explain(what: Recomputed) -> Sequence[Diagnosis]:
    global _explained
    recording = running.recordings[-1]
    places, details = [], []
    for told in what.facts:
        saved = told["saved"]
        places.append((_C.place_of(told["stack"]), told["is_moved"], told["is_same_tensor"]))
        details.append((saved["dtype"], tuple(saved["sizes"]), told["is_compared"]))
    where = _C.place_of(what.forward.stack), what.keeps_random_state
    finding = findings.Finding(("recompute", where, *places), tuple(details))
    live = live_frames.frames_above()
    again = recording.known.recall(finding, live)
    if again is not None:
        return again
    if _explained >= _MOST:
        own_errors.not_explained()
        return ()
    _explained += 1
    found = judge.the_judge().of_recompute(what, recording)
    recording.known.keep(finding, found, live)
    return found
