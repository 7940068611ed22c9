"""The events of a recording as tables of numbers, and the questions that rules ask of them."""

from __future__ import annotations

import bisect
import struct
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy

from gradext.diagnosis.model import Frame
from gradext.native import _C
from gradext.recording.arrays import Array
from gradext.recording.events import (
    BIRTHS,
    COUNTED,
    CUT,
    DECLARED_ONLY,
    FLAGS,
    FLOWS,
    FROM_PYTHON,
    GRAD_CALL,
    GRAD_MODE,
    HOLES,
    INFERENCE,
    MERGE,
    NOTE,
    OP_COLUMNS,
    SAVES,
    SHARED_STORAGE,
    SOURCE_IS_LEAF,
    STACK_COLUMNS,
    TABLES,
    TAKES_HELD,
    TO_PYTHON,
    VIEWS,
    WRITES,
    Backward,
    Birth,
    Columns,
    FlagChange,
    Flow,
    Refused,
    View,
    Write,
    creation_meta_of,
)
from gradext.source import frames

_PARENTS = (FLOWS.parent0, FLOWS.parent1, FLOWS.parent2, FLOWS.parent3)


class Data:
    """The events of a recording as arrays, with the queries that diagnoses need. Immutable."""

    def __init__(
        self, snapshot: dict[str, Any], stacks: dict[int, tuple[Frame, ...]] | None
    ) -> None:
        self.tables: dict[str, Array] = {name: snapshot[name] for name in TABLES}
        self.writes, self.views = self.tables["writes"], self.tables["views"]
        self.saves, self.births = self.tables["saves"], self.tables["births"]
        self.flows, self.flags = self.tables["flows"], self.tables["flags"]
        self.uses, self.moments = self.tables["uses"], self.tables["moments"]
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
                    "creation_meta": creation_meta_of(facts["creation_meta"]),
                }
            )
            for facts in snapshot["refused"]
        ]
        self._held = snapshot.get("held")  # keeps the ids in here from being used again
        self._stacks = {} if stacks is None else dict(stacks)
        self._live_stacks = stacks is None
        self._by_thread: dict[int, Array] = {}
        self._numbers: tuple[Array, Array] | None = None  # sorted, and whose rows they are
        self._origins: dict[int, Birth | Flow | None] = {}  # by number, as far as asked for
        self._exits: Array | None = None
        self._exits_of: dict[tuple[int, int, int | None, int], list[Flow]] = {}
        self._backwards_of: dict[int, list[int]] = {}  # their orders, by thread

    def frames(self, stack: int) -> tuple[Frame, ...]:
        """The Python frames of a stack, innermost first; empty where there were none."""
        if stack not in self._stacks and self._live_stacks:
            self._stacks[stack] = frames.stack_of(_C.recorder_frames(stack))
        return self._stacks.get(stack, ())

    def facts(self, columns: Columns, row: Any) -> dict[str, Any]:
        """What stands in a row, by column, with the ops by name: all that most records need."""
        # One of thousands that a diagnosis follows: tolist() makes Python's numbers in one go.
        found = dict(zip(columns.names, row.tolist(), strict=True))
        for column in OP_COLUMNS.intersection(found):
            found[column] = self.ops.get(found[column], "")
        return found

    def write(self, row: Any) -> Write:
        facts = self.facts(WRITES, row)
        flags = facts.pop("flags")
        shape = facts.pop("geometry")
        geometry = None
        if 0 < shape <= len(self.geometries):
            itemsize, *numbers = self.geometries[shape - 1]
            half = len(numbers) // 2
            geometry = (itemsize, tuple(numbers[:half]), tuple(numbers[half:]))
        return Write(
            **facts,
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
        facts = self.facts(VIEWS, row)
        return View(**{**facts, "creation_meta": creation_meta_of(facts["creation_meta"])})

    def views_of_storage(self, storage: int) -> list[View]:
        return [self.view(row) for row in self.views[self.views[:, VIEWS.storage] == storage]]

    def birth(self, row: Any) -> Birth:
        facts = self.facts(BIRTHS, row)
        return Birth(**{**facts, "has_gradient_behind": bool(facts["has_gradient_behind"])})

    def birth_of(self, storage: int) -> Birth | None:
        """The birth of the inference tensors on a storage; None if it came before the recording.

        Also of a parameter by its own id: its storage may have been exchanged since.
        """
        rows = self.births[self.births[:, BIRTHS.storage] == storage]
        return self.birth(rows[0]) if len(rows) else None

    def flow(self, row: Any) -> Flow:
        # One of thousands that a diagnosis follows: no dict by column, as facts() makes one.
        numbers: list[int] = row.tolist()
        flags, value = numbers[FLOWS.flags], None
        if flags & (FROM_PYTHON | TO_PYTHON | GRAD_CALL):
            number = struct.unpack("d", struct.pack("q", numbers[FLOWS.value]))[0]
            value = number if number == number else None
        with_node = flags & (CUT | MERGE) and not flags & SOURCE_IS_LEAF
        node = (numbers[FLOWS.source_thread], numbers[FLOWS.source_sequence])
        return Flow(
            order=numbers[FLOWS.order],
            number=numbers[FLOWS.number],
            tensor=numbers[FLOWS.tensor],
            source=numbers[FLOWS.source],
            source_node=node if with_node else None,
            value=value,
            stack=numbers[FLOWS.stack],
            mode=numbers[FLOWS.mode],
            thread=numbers[FLOWS.thread],
            op=self.ops.get(numbers[FLOWS.op], ""),
            flags=flags,
            parents=tuple(numbers[at] for at in _PARENTS if numbers[at]),
            lives=bool(numbers[FLOWS.lives]),
        )

    def flow_of(self, tensor: int) -> Flow | None:
        """The flow that made a living tensor without gradient, given by its id."""
        table = self.flows
        rows = table[(table[:, FLOWS.tensor] == tensor) & (table[:, FLOWS.lives] == 1)]
        return self.flow(rows[0]) if len(rows) else None

    def origin(self, number: int) -> Birth | Flow | None:
        """The birth or flow that `number`, a parent, names; None where it has been dropped."""
        # Chains that lead to one value share most of what is behind it.
        if number not in self._origins:
            self._origins[number] = self._find_origin(number)
        return self._origins[number]

    def _find_origin(self, number: int) -> Birth | Flow | None:
        if self._numbers is None:
            both = (self.flows[:, FLOWS.number], self.births[:, BIRTHS.number])
            low = numpy.concatenate(both) & ((1 << 32) - 1)
            rows = numpy.argsort(low, kind="stable")
            self._numbers = low[rows], rows
        low, rows = self._numbers
        at = int(low.searchsorted(number, side="right")) - 1
        if at < 0 or low[at] != number:
            return None
        row = int(rows[at])
        if row < len(self.flows):
            return self.flow(self.flows[row])
        return self.birth(self.births[row - len(self.flows)])

    def flows_with(self, flag: int, most: int | None = None) -> list[Flow]:
        """The flows that have a flag, oldest first; if they are more than `most`, the latest."""
        return [self.flow(row) for row in self._flow_rows(flag, most)]

    def _flow_rows(self, flag: int, most: int | None = None) -> Array:
        rows: Array = self.flows[(self.flows[:, FLOWS.flags] & flag) != 0]
        rows = rows[numpy.argsort(rows[:, FLOWS.order], kind="stable")]
        return rows if most is None else rows[-most:]

    def has_merges(self, flag: int) -> bool:
        """Whether an op took in a constant that has a flag."""
        flags = self.flows[:, FLOWS.flags]
        return bool((((flags & MERGE) != 0) & ((flags & flag) != 0)).any())

    def merges_in(self, nodes: Collection[tuple[int, int]], flag: int = MERGE) -> list[Flow]:
        """The constants that ops of a graph took in, newest first; of each place the first one.

        Args:
            nodes: of the graph, as (thread, sequence). flag: what they must have as well.
        """
        return self._of_places(self._merge_rows(nodes, flag))

    def merged_in(self, nodes: Collection[tuple[int, int]]) -> list[int]:
        """The numbers of what all those constants were made of, newest first."""
        parents = [FLOWS.parent0, FLOWS.parent1, FLOWS.parent2, FLOWS.parent3]
        rows: list[list[int]] = self._merge_rows(nodes, MERGE)[:, parents].tolist()
        return [number for row in rows for number in row if number]

    def takers_in(self, nodes: Collection[tuple[int, int]]) -> list[Flow]:
        """Where ops of a graph took in what is TAINT_HELD; of each place the first one."""
        return self._of_places(self._merge_rows(nodes, TAKES_HELD, TAKES_HELD))

    def written_since(self, order: int) -> set[int] | None:
        """The storages that were written after an event; None if that is not known of all."""
        orders = self.writes[:, WRITES.order]
        if self.dropped.get("writes") and not (orders <= order).any():
            return None
        return self.written_after(order)

    def written_after(self, order: int) -> set[int]:
        """The storages that were written after an event, as far as the writes are still known."""
        found: list[int] = self.writes[
            self.writes[:, WRITES.order] > order, WRITES.storage
        ].tolist()
        return set(found)

    def _merge_rows(
        self, nodes: Collection[tuple[int, int]], flag: int, kind: int = MERGE
    ) -> Array:
        rows: Array = self._flow_rows(kind)[::-1]
        flags = rows[:, FLOWS.flags]
        rows = rows[((flags & flag) != 0) & ((flags & SOURCE_IS_LEAF) == 0)]
        made_by = rows[:, [FLOWS.source_thread, FLOWS.source_sequence]].tolist()
        rows = rows[numpy.array([tuple(node) in nodes for node in made_by], dtype=bool)]
        return rows

    def exits(
        self, most: int, after: int, before: int, thread: int | None = None, without: int = 0
    ) -> list[Flow]:
        """Values that went to Python; of each place the latest. They are in the order of places.

        Args:
            most: how many there are chosen from, the latest of all.
            after, before: their orders are between these. without: a flag that they lack.
        """
        if self._exits is None:
            self._exits = self._flow_rows(TO_PYTHON, most)
        orders = self._exits[:, FLOWS.order]
        begin = int(numpy.searchsorted(orders, after, side="right"))
        end = int(numpy.searchsorted(orders, before))
        key = begin, end, thread, without
        if key not in self._exits_of:  # one diagnosis asks often
            rows = self._exits[begin:end]
            kept = (rows[:, FLOWS.flags] & without) == 0
            if thread is not None:
                kept &= rows[:, FLOWS.thread] == thread
            self._exits_of[key] = self._of_places(rows[kept])
        return self._exits_of[key]

    def _of_places(self, rows: Array) -> list[Flow]:
        """The last of the rows of each place, in the order in which the places come."""
        last = {stack: k for k, stack in enumerate(rows[:, FLOWS.stack].tolist())}
        return [self.flow(rows[k]) for k in last.values()]

    def last_backward(self, before: int, thread: int) -> int:
        """The order of the thread's last backward before an event; 0 where there was none."""
        if thread not in self._backwards_of:
            orders = sorted(b.order for b in self.backwards if b.thread == thread)
            self._backwards_of[thread] = orders
        orders = self._backwards_of[thread]
        at = bisect.bisect_left(orders, before)
        return orders[at - 1] if at else 0

    def flag_of(self, tensor: int) -> FlagChange | None:
        """The last time that the program set `requires_grad` of a living tensor (its id)."""
        rows = self.flags[self.flags[:, FLAGS.tensor] == tensor]
        if not len(rows):
            return None
        facts = self.facts(FLAGS, rows[0])
        return FlagChange(**{**facts, "value": bool(facts["value"])})

    def stacks(self) -> Iterator[int]:
        """Every stack that an event names."""
        for name, columns in TABLES.items():
            for position, column in enumerate(columns.names):
                if column in STACK_COLUMNS:
                    yield from self.tables[name][:, position].tolist()
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


def table(rows: Sequence[Sequence[int]], columns: int) -> Array:
    return numpy.array(rows, dtype=numpy.int64).reshape(len(rows), columns)


def empty_snapshot() -> dict[str, Any]:
    """What a recording in which nothing happened is made of."""
    return {
        **{name: table([], len(columns)) for name, columns in TABLES.items()},
        "ops": {},
        "geometries": [],
        "dropped": dict.fromkeys(COUNTED, 0),
        "order": 0,
        "backwards": [],
        "refused": [],
    }
