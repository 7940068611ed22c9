"""The events of a recording as plain data: columns, records and the queries that diagnoses ask.

Owns no switch and no live tensor; everything here can be made by hand or read from a file.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy
import torch

from gradext.diagnosis.model import Frame
from gradext.native import _C
from gradext.recording.columns import BIRTHS, FLAGS, FLOWS, SAVES, VIEWS, WRITES
from gradext.source import frames

# Bits of the columns `flags`. C++ has the numbers, and says there what each means
# (csrc/journal/events.h).
_OF_WRITES, _OF_FLOWS = _C.EVENT_FLAGS["writes"], _C.EVENT_FLAGS["flows"]
DECLARED_ONLY, SHARED_STORAGE = _OF_WRITES["DECLARED_ONLY"], _OF_WRITES["SHARED_STORAGE"]
INFERENCE, GRAD_MODE = _OF_WRITES["INFERENCE"], _OF_WRITES["GRAD_MODE"]
NOTE, HOLES = _OF_WRITES["NOTE"], _OF_WRITES["HOLES"]
CUT, MERGE, GRAD_CALL = _OF_FLOWS["CUT"], _OF_FLOWS["MERGE"], _OF_FLOWS["GRAD_CALL"]
FROM_PYTHON, TO_PYTHON = _OF_FLOWS["FROM_PYTHON"], _OF_FLOWS["TO_PYTHON"]
NO_GRAD, IN_FUNCTION = _OF_FLOWS["NO_GRAD"], _OF_FLOWS["IN_FUNCTION"]
IN_INFERENCE, FROM_INFERENCE = _OF_FLOWS["IN_INFERENCE"], _OF_FLOWS["FROM_INFERENCE"]
NOT_FLOATING, SOURCE_IS_LEAF = _OF_FLOWS["NOT_FLOATING"], _OF_FLOWS["SOURCE_IS_LEAF"]
IS_NUMBER, WRITTEN = _OF_FLOWS["IS_NUMBER"], _OF_FLOWS["WRITTEN"]
TAINT_CUT, TAINT_GRAD = _OF_FLOWS["TAINT_CUT"], _OF_FLOWS["TAINT_GRAD"]
TAINT_PYTHON, IS_VIEW = _OF_FLOWS["TAINT_PYTHON"], _OF_FLOWS["IS_VIEW"]

_Array = numpy.ndarray[Any, numpy.dtype[numpy.int64]]


@dataclasses.dataclass(frozen=True)
class Write:
    """One in-place write of one tensor. Ids are opaque; bytes count from the storage's start.

    Attributes:
        order: position among all events of the process.
        op: the outermost operator, "aten::dropout_"; inner_op: what it called to write, or "".
        argument: index of the written argument in the op's schema.
        storage, counter: ids as in TensorState.
        begin, end: the bytes, from the first to one past the last.
        version_before, version_after: of the counter; equal when the op bumped nothing.
        thread, sequence: the thread's number and its autograd sequence number at the time.
        stack: number of the Python stack, for Recording.frames().
        geometry: (itemsize, sizes, strides) where elements of others lie between, else None.
        declared_only: the schema says that it writes, and the counter did not move.
        shared_storage: the memory belongs to tensors that this counter does not cover (`.data`).
        is_inference: the tensor has no counter.
        grad_mode: whether grad mode was on.
        is_note: no op: a Python call that moves counters (mark_dirty, increment_version ...).
        has_unknown_holes: elements of others lie between, and the journal had no room for which.
    """

    order: int
    op: str
    inner_op: str
    argument: int
    storage: int
    counter: int
    begin: int
    end: int
    version_before: int
    version_after: int
    thread: int
    sequence: int
    stack: int
    geometry: tuple[int, tuple[int, ...], tuple[int, ...]] | None
    declared_only: bool
    shared_storage: bool
    is_inference: bool
    grad_mode: bool
    is_note: bool
    has_unknown_holes: bool = False


@dataclasses.dataclass(frozen=True)
class View:
    """A view that no graph node remembers: made without grad mode, or one of several of its op."""

    order: int
    op: str
    storage: int
    begin: int
    end: int
    tensor: int
    thread: int
    sequence: int
    stack: int
    creation_meta: str


@dataclasses.dataclass(frozen=True)
class Backward:
    """One call of the backward engine; `nodes` is int64[n, 2]: thread and sequence of each node."""

    order: int
    thread: int
    stack: int
    keeps_graph: bool
    creates_graph: bool
    whole: bool
    nodes: _Array


@dataclasses.dataclass(frozen=True)
class Refused:
    """A use of a tensor that torch refused, with what was known of the tensor at that moment.

    In-place writes; and, for inference tensors, saves and `requires_grad`. `is_leftover`: no
    inference tensor any more, but without a version counter since it was one.
    """

    order: int
    op: str
    what: str
    storage: int
    begin: int
    end: int
    tensor: int
    base: int
    thread: int
    stack: int
    creation_meta: str | None
    is_view: bool
    is_leaf: bool
    requires_grad: bool
    base_is_leaf: bool
    is_inference: bool
    is_leftover: bool
    grad_mode: bool
    chain: tuple[tuple[str, int, int], ...]


@dataclasses.dataclass(frozen=True)
class Birth:
    """How the memory of an inference tensor that lives came to be.

    Attributes:
        order: position among all events of the process; number: among births and flows.
        op: the outermost operator, or the Python function that made it ("torch.from_numpy").
        storage: id as in TensorState (the tensor's own id where it has no storage).
        tensor: id that the tensor had; views and parameters made from it have others.
        stack, mode: numbers for Recording.frames(): where it was made, and where inference_mode
            was entered (0: not known).
        has_gradient_behind: something that it was computed from required grad.
    """

    order: int
    number: int
    op: str
    storage: int
    tensor: int
    stack: int
    mode: int
    thread: int
    has_gradient_behind: bool
    is_inference: bool = True


@dataclasses.dataclass(frozen=True)
class Flow:
    """A value without gradient: what it was made of, and whether the gradient was lost here.

    Attributes:
        number: names it in the `parents` of others.
        tensor: id of the result, which means that tensor only if `lives`; 0 for none.
        source: id of the input that required grad, 0 for none. source_node: (thread, sequence) of
            the node that made it, None for a leaf; for a merge, the node that took the value in.
        value: the number that went to Python or came from there; None where it is no one number.
        stack, mode: numbers for Recording.frames(); mode is where grad mode was switched off.
        parents: numbers of the births and flows of the inputs.
        flags: the constants above.
    """

    order: int
    number: int
    tensor: int
    source: int
    source_node: tuple[int, int] | None
    value: float | None
    stack: int
    mode: int
    thread: int
    op: str
    flags: int
    parents: tuple[int, ...]
    lives: bool

    def has(self, flag: int) -> bool:
        return bool(self.flags & flag)


@dataclasses.dataclass(frozen=True)
class FlagChange:
    """The last time that a program set `requires_grad` of a tensor that lives, itself."""

    tensor: int
    order: int
    stack: int
    thread: int
    value: bool
    taints: int
    parent: int


CREATION_META = (
    *("default", "in_custom_function", "multi_output_node", "no_grad_mode", "inference_mode"),
)


def _meta(value: int) -> str | None:
    return CREATION_META[value] if 0 <= value < len(CREATION_META) else None


class Data:
    """The events of a recording as arrays, with the queries that diagnoses need. Immutable."""

    def __init__(
        self, snapshot: dict[str, Any], stacks: dict[int, tuple[Frame, ...]] | None
    ) -> None:
        self.writes: _Array = snapshot["writes"]
        self.views: _Array = snapshot["views"]
        self.saves: _Array = snapshot["saves"]
        self.births: _Array = snapshot["births"]
        self.flows: _Array = snapshot["flows"]
        self.flags: _Array = snapshot["flags"]
        self.ops: dict[int, str] = snapshot["ops"]
        self.geometries: list[list[int]] = snapshot["geometries"]
        self.dropped: dict[str, int] = snapshot["dropped"]
        self.order: int = snapshot["order"]
        self.backwards = [Backward(*facts) for facts in snapshot["backwards"]]
        self.refused = [
            Refused(
                **{
                    **facts,
                    "chain": tuple(tuple(node) for node in facts["chain"]),
                    "creation_meta": _meta(facts["creation_meta"]),
                }
            )
            for facts in snapshot["refused"]
        ]
        self._held = snapshot.get("held")  # keeps the ids in here from being used again
        self._stacks = {} if stacks is None else dict(stacks)
        self._live_stacks = stacks is None
        self._by_thread: dict[int, _Array] = {}
        self._numbers: dict[int, tuple[str, int]] | None = None
        self._exits: list[Flow] | None = None

    def frames(self, stack: int) -> tuple[Frame, ...]:
        """The Python frames of a stack, innermost first; empty where there were none."""
        if stack not in self._stacks and self._live_stacks:
            self._stacks[stack] = frames.stack_of(_C.recorder_frames(stack))
        return self._stacks.get(stack, ())

    def write(self, row: Any) -> Write:
        facts = dict(zip(WRITES.names, row.tolist(), strict=True))
        flags = facts.pop("flags")
        shape = facts.pop("geometry")
        geometry = None
        if 0 < shape <= len(self.geometries):
            itemsize, *numbers = self.geometries[shape - 1]
            half = len(numbers) // 2
            geometry = (itemsize, tuple(numbers[:half]), tuple(numbers[half:]))
        facts["op"] = self.ops.get(facts["op"], "")
        facts["inner_op"] = self.ops.get(facts["inner_op"], "")
        return Write(
            **cast(Any, facts),
            geometry=geometry,
            declared_only=bool(flags & DECLARED_ONLY),
            shared_storage=bool(flags & SHARED_STORAGE),
            is_inference=bool(flags & INFERENCE),
            grad_mode=bool(flags & GRAD_MODE),
            is_note=bool(flags & NOTE),
            has_unknown_holes=bool(flags & HOLES),
        )

    def writes_of_counter(self, counter: int, after_version: int = -1) -> list[Write]:
        """Writes through one version counter, oldest first, that end above `after_version`."""
        table = self.writes
        rows = table[
            (table[:, WRITES.counter] == counter) & (table[:, WRITES.version_after] > after_version)
        ]
        return [
            self.write(row) for row in rows[numpy.argsort(rows[:, WRITES.order], kind="stable")]
        ]

    def notes_of_counter(self, counter: int, from_version: int) -> list[Write]:
        """Python calls that were about to move the counter from `from_version` or later."""
        table = self.writes
        flags = table[:, WRITES.flags] & (NOTE | DECLARED_ONLY)
        chosen = (table[:, WRITES.counter] == counter) & (flags == NOTE)
        chosen &= table[:, WRITES.version_before] >= from_version
        return [self.write(row) for row in table[chosen]]

    def exchanges(self, counter: int) -> list[Write]:
        """Times that a program gave the tensor other memory: `tensor.data = other`."""
        table = self.writes
        both = NOTE | DECLARED_ONLY
        flags = table[:, WRITES.flags] & both
        rows = table[(table[:, WRITES.counter] == counter) & (flags == both)]
        return [self.write(row) for row in rows]

    def writes_of_storage(self, storage: int) -> list[Write]:
        """Writes to one storage through any counter, oldest first."""
        table = self.writes
        is_write = (table[:, WRITES.flags] & NOTE) == 0
        rows = table[(table[:, WRITES.storage] == storage) & is_write]
        return [
            self.write(row) for row in rows[numpy.argsort(rows[:, WRITES.order], kind="stable")]
        ]

    def writes_of_op(self, name: str) -> list[Write]:
        """All writes that this op made, oldest first."""
        numbers = [number for number, op in self.ops.items() if op == name]
        return [
            self.write(row) for row in self.writes[numpy.isin(self.writes[:, WRITES.op], numbers)]
        ]

    def view(self, row: Any) -> View:
        facts = dict(zip(VIEWS.names, (int(value) for value in row), strict=True))
        facts["op"] = self.ops.get(facts["op"], "")  # type: ignore[assignment]
        facts["creation_meta"] = _meta(facts["creation_meta"])  # type: ignore[assignment]
        return View(**cast(Any, facts))

    def views_of_storage(self, storage: int) -> list[View]:
        return [self.view(row) for row in self.views[self.views[:, VIEWS.storage] == storage]]

    def birth(self, row: Any) -> Birth:
        facts = dict(zip(BIRTHS.names, (int(value) for value in row), strict=True))
        facts["op"] = self.ops.get(facts["op"], "")  # type: ignore[assignment]
        facts["has_gradient_behind"] = bool(facts["has_gradient_behind"])
        return Birth(**cast(Any, facts))

    def birth_of(self, storage: int) -> Birth | None:
        """Of the inference tensors with this storage; None if it was made before the recording.

        Also of a parameter by its own id: its storage may have been exchanged since.
        """
        rows = self.births[self.births[:, BIRTHS.storage] == storage]
        return self.birth(rows[0]) if len(rows) else None

    def flow(self, row: Any) -> Flow:
        # One of thousands that a diagnosis follows: tolist() makes Python's numbers in one go.
        facts = dict(zip(FLOWS.names, row.tolist(), strict=True))
        value = struct.unpack("d", struct.pack("q", facts["value"]))[0]
        flags = facts["flags"]
        with_node = flags & (CUT | MERGE) and not flags & SOURCE_IS_LEAF
        node = (facts["source_thread"], facts["source_sequence"]) if with_node else None
        talks = flags & (FROM_PYTHON | TO_PYTHON)
        return Flow(
            order=facts["order"],
            number=facts["number"],
            tensor=facts["tensor"],
            source=facts["source"],
            source_node=node,
            value=value if talks and value == value else None,
            stack=facts["stack"],
            mode=facts["mode"],
            thread=facts["thread"],
            op=self.ops.get(facts["op"], ""),
            flags=flags,
            parents=tuple(facts[f"parent{k}"] for k in range(4) if facts[f"parent{k}"]),
            lives=bool(facts["lives"]),
        )

    def flow_of(self, tensor: int) -> Flow | None:
        """Of a living tensor without gradient, by its id."""
        table = self.flows
        rows = table[(table[:, FLOWS.tensor] == tensor) & (table[:, FLOWS.lives] == 1)]
        return self.flow(rows[0]) if len(rows) else None

    def origin(self, number: int) -> Birth | Flow | None:
        """The birth or flow that `number`, a parent, names; None where it has been dropped."""
        if self._numbers is None:
            low = (1 << 32) - 1
            flows = (self.flows[:, FLOWS.number] & low).tolist()
            births = (self.births[:, BIRTHS.number] & low).tolist()
            self._numbers = {number: ("flow", k) for k, number in enumerate(flows)}
            self._numbers |= {number: ("birth", k) for k, number in enumerate(births)}
        kind, row = self._numbers.get(number, ("", 0))
        if not kind:
            return None
        return self.flow(self.flows[row]) if kind == "flow" else self.birth(self.births[row])

    def flows_with(self, flag: int, most: int | None = None) -> list[Flow]:
        """Those that have a flag, oldest first; of more than `most`, the latest."""
        rows = self.flows[(self.flows[:, FLOWS.flags] & flag) != 0]
        rows = rows[numpy.argsort(rows[:, FLOWS.order], kind="stable")]
        return [self.flow(row) for row in (rows if most is None else rows[-most:])]

    def exits(self, most: int) -> list[Flow]:
        """The latest values that went to Python, oldest first: one diagnosis asks often."""
        if self._exits is None:
            self._exits = self.flows_with(TO_PYTHON, most)
        return self._exits

    def flag_of(self, tensor: int) -> FlagChange | None:
        """When the program last set `requires_grad` of a living tensor, by its id."""
        rows = self.flags[self.flags[:, FLAGS.tensor] == tensor]
        if not len(rows):
            return None
        facts: dict[str, Any] = dict(zip(FLAGS.names, rows[0].tolist(), strict=True))
        return FlagChange(**{**facts, "value": bool(facts["value"])})

    def stacks(self) -> Iterator[int]:
        """Every stack that an event names."""
        for table, column in (
            (self.writes, WRITES.stack),
            (self.views, VIEWS.stack),
            (self.saves, SAVES.stack),
            (self.births, BIRTHS.stack),
            (self.births, BIRTHS.mode),
            (self.flows, FLOWS.stack),
            (self.flows, FLOWS.mode),
            (self.flags, FLAGS.stack),
        ):
            yield from table[:, column].tolist()
        yield from (backward.stack for backward in self.backwards)
        yield from (event.stack for event in self.refused)

    def node_stack(self, thread: int, sequence: int) -> tuple[int, tuple[int, int] | None]:
        """(stack that made a node, (thread, sequence) of the forward node being differentiated).

        0 when the recording does not reach back so far, or noted no saves on that thread.
        """
        rows = self._by_thread.get(thread)
        if rows is None:
            found = numpy.flatnonzero(self.saves[:, SAVES.thread] == thread)
            # They are one block, in the order in which they were made, unless the id of a thread
            # that has ended was given again: then no copy of them is made.
            if found.size and found[-1] - found[0] + 1 == found.size:
                rows = self.saves[found[0] : found[-1] + 1]
            else:
                rows = self.saves[found]
            if (numpy.diff(rows[:, SAVES.sequence]) < 0).any():
                rows = rows[numpy.argsort(rows[:, SAVES.sequence], kind="stable")]
            self._by_thread[thread] = rows
        at = int(numpy.searchsorted(rows[:, SAVES.sequence], sequence, side="right")) - 1
        if at < 0:
            return 0, None
        row = rows[at]
        origin = (int(row[SAVES.origin_thread]), int(row[SAVES.origin_sequence]))
        return int(row[SAVES.stack]), origin if origin[0] >= 0 else None


def table(rows: Sequence[Sequence[int]], columns: int) -> _Array:
    return numpy.array(rows, dtype=numpy.int64).reshape(len(rows), columns)


def extent(tensor: torch.Tensor) -> tuple[int, int]:
    """First byte and one past the last byte of a strided tensor within its storage.

    A tensor without strides of its own (sparse, nested, symbolic, a subclass that computes them) is
    not asked for them, and lies nowhere: 0, 0.
    """
    geometry = _C.geometry(tensor)
    if geometry is None or 0 in geometry[0]:
        return 0, 0
    sizes, strides, offset, size = geometry
    reach = sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
    return offset * size, (offset + reach + 1) * size


def overlap(first: Write, offset: int, itemsize: int, sizes: Any, strides: Any) -> bool | None:
    """Whether a write touched an element of a saved tensor; None if that cannot be decided.

    The tensor lies in the same storage at `offset` (elements) with `sizes` and `strides`.
    """
    begin = offset * itemsize
    end = begin + (sum((n - 1) * s for n, s in zip(sizes, strides, strict=True)) + 1) * itemsize
    if 0 in sizes or first.begin >= end or first.end <= begin:
        return False
    if first.has_unknown_holes:
        return None
    dense = _is_dense(sizes, strides)
    if first.geometry is None and dense:
        return True
    limit = 1 << 22
    count = int(numpy.prod(sizes, dtype=numpy.int64))
    shape = first.geometry
    written = (first.end - first.begin) if shape is None else int(numpy.prod(shape[1])) * shape[0]
    if count > limit or written > limit:
        return None
    mine = _bytes(begin, itemsize, sizes, strides)
    if shape is None:
        return bool(((mine + itemsize > first.begin) & (mine < first.end)).any())
    theirs = _bytes(first.begin, shape[0], shape[1], shape[2])
    if shape[0] == itemsize:
        return bool(numpy.isin(mine, theirs).any())
    units = numpy.add.outer(theirs, numpy.arange(shape[0])).ravel()
    return bool(numpy.isin(numpy.add.outer(mine, numpy.arange(itemsize)).ravel(), units).any())


def _bytes(begin: int, itemsize: int, sizes: Any, strides: Any) -> _Array:
    offsets = numpy.zeros(1, dtype=numpy.int64)
    for size, stride in zip(sizes, strides, strict=True):
        steps = numpy.arange(size, dtype=numpy.int64) * stride * itemsize
        offsets = numpy.add.outer(offsets, steps).ravel()
    return offsets + begin


def _is_dense(sizes: Any, strides: Any) -> bool:
    expected = 1
    for size, stride in sorted(zip(sizes, strides, strict=True), key=lambda pair: pair[1]):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def empty_snapshot() -> dict[str, Any]:
    """What a recording in which nothing happened is made of."""
    return {
        "writes": table([], len(WRITES)),
        "views": table([], len(VIEWS)),
        "saves": table([], len(SAVES)),
        "births": table([], len(BIRTHS)),
        "flows": table([], len(FLOWS)),
        "flags": table([], len(FLAGS)),
        "ops": {},
        "geometries": [],
        "dropped": dict.fromkeys(("writes", "views", "saves", "backwards", "births", "flows"), 0),
        "order": 0,
        "backwards": [],
        "refused": [],
    }
