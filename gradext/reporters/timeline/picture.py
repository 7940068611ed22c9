"""Lays the events of a recording out as lanes of ticks: plain data, which a page draws.

A lane is a tensor, by its version counter and its bytes; a view has a lane below its base's. Ticks
are writes, saves and uses in backward, in the order in which they happened. Of very many events
those around the faults are laid out, else the latest; the others are counted.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy

from gradext.diagnosis.model import Diagnosis, Frame
from gradext.recording.events import NODES, NOTE, SAVES, USES, WRITES
from gradext.source import sites

if TYPE_CHECKING:
    from gradext.recording.arrays import Array
    from gradext.recording.drawing import Drawing
    from gradext.recording.tables import Data

WRITE, SAVE, USE = 0, 1, 2
MOST_TICKS = 6_000
AROUND = 400  # ticks before the first one of a fault, and behind the last
MOST_LANES = 120


class Tick(NamedTuple):
    """One event.

    Attributes:
        at: its position among all ticks. kind: WRITE, SAVE or USE.
        op: of a write, the operator; of others the node. attribute: what the node calls it.
        before, after: versions around a write; of a save the version, of a use the saved one and
            that of the counter as the backward began.
        frames: where, innermost first.
        is_bad: it belongs to a fault.
    """

    at: int
    kind: int
    op: str
    attribute: str
    before: int
    after: int
    frames: tuple[Frame, ...]
    is_bad: bool


@dataclasses.dataclass
class Lane:
    """One tensor.

    Attributes:
        name: as the program calls it, or the line that it is first met in.
        note: which bytes of its memory. depth: 1 for a view, below its base.
    """

    name: str
    note: str
    depth: int
    ticks: list[Tick] = dataclasses.field(default_factory=list)

    @property
    def is_bad(self) -> bool:
        return any(tick.is_bad for tick in self.ticks)


@dataclasses.dataclass
class Picture:
    """What a page draws.

    Attributes:
        first, end: the ticks that are laid out, of `count`.
        backwards: (position, frames) of calls of the engine among them.
        counts: writes, saves and uses in all.
        left_out: lanes for which there was no room. dropped: events that the journal forgot.
    """

    lanes: list[Lane]
    first: int
    end: int
    count: int
    backwards: list[tuple[int, Frame | None]]
    counts: tuple[int, int, int]
    left_out: int
    dropped: int


def of(
    data: Data, drawing: Drawing, found: Sequence[Diagnosis], most: int = MOST_TICKS
) -> Picture | None:
    """The picture of a recording; None where it has nothing to show."""
    events = _Events(data)
    if not len(events.at):
        return None
    bad, told = _bad(events, data, found)
    first, end = _window(len(events.at), numpy.flatnonzero(bad), most)
    lanes = _lanes(events, data, drawing, bad, told, first, end)
    backwards = [
        (int(at), sites.user_frame(data.frames(stack)))
        for at, stack in events.backwards
        if first <= at < end
    ]
    return Picture(
        lanes=lanes[:MOST_LANES],
        first=first,
        end=end,
        count=len(events.at),
        backwards=backwards,
        counts=(len(events.table[0]), len(events.table[1]), len(events.table[2])),
        left_out=max(0, len(lanes) - MOST_LANES),
        dropped=sum(data.dropped.get(name, 0) for name in ("writes", "uses")),
    )


class _Events:
    """Writes, saves and uses in one row, oldest first.

    Attributes:
        kind, at: of each tick: its kind, and its row in `table[kind]`.
        backwards: (position, stack) of each call of the engine.
    """

    def __init__(self, data: Data) -> None:
        flags = data.writes[:, WRITES.flags]
        writes = data.writes[(flags & NOTE) == 0]
        uses = data.uses
        # A node saves once, however often it is used.
        what = uses[:, [USES.thread, USES.sequence, USES.attribute, USES.storage]]
        _, saved_at = numpy.unique(what, axis=0, return_index=True) if len(uses) else (None, [])
        saves = uses[numpy.sort(numpy.asarray(saved_at, dtype=numpy.int64))]
        self.table = (writes, saves, uses)
        base = numpy.concatenate(
            [writes[:, WRITES.order], _order_of_saves(data, writes, saves), uses[:, USES.order]]
        )
        kind = numpy.repeat([WRITE, SAVE, USE], [len(writes), len(saves), len(uses)])
        # A node is made after the writes before it; backward goes from the newest node to the
        # oldest.
        within = numpy.concatenate(
            [writes[:, WRITES.order] * 0, saves[:, USES.sequence], -uses[:, USES.sequence]]
        )
        row = numpy.concatenate([numpy.arange(len(rows)) for rows in self.table])
        in_order = numpy.lexsort((within, kind, base))
        self.kind, self.at = kind[in_order], row[in_order]
        orders = base[in_order]
        self.backwards = [
            (int(numpy.searchsorted(orders, call.order)), call.stack) for call in data.backwards
        ]


def _order_of_saves(data: Data, writes: Array, saves: Array) -> Array:
    """For each save, the order of the last write or backward that came before it.

    The numbers of nodes say which writes of their thread came before them; a backward came before
    the nodes that are newer than all of its own, where no write says otherwise.
    """
    found = numpy.zeros(len(saves), dtype=numpy.int64)
    for thread in numpy.unique(saves[:, USES.thread]):
        mine = saves[:, USES.thread] == thread
        numbers = saves[mine, USES.sequence]
        rows = writes[writes[:, WRITES.thread] == thread]
        rows = rows[numpy.argsort(rows[:, WRITES.order], kind="stable")]
        order = numpy.concatenate([[0], rows[:, WRITES.order], [data.order + 1]])
        sequence = numpy.maximum.accumulate(rows[:, WRITES.sequence])
        index = numpy.searchsorted(sequence, numbers, side="right")
        last, following = order[index], order[index + 1]
        for call in data.backwards:
            of_thread = call.nodes[call.nodes[:, NODES.thread] == thread]
            if len(of_thread):
                newer = numbers > of_thread[:, NODES.sequence].max()
                fits = newer & (call.order > last) & (call.order < following)
                last = numpy.where(fits, call.order, last)
        found[mine] = last
    return found


def _window(count: int, bad: Array, most: int) -> tuple[int, int]:
    """The ticks to lay out."""
    if count <= most:
        return 0, count
    if not len(bad):
        return count - most, count
    end = min(count, int(bad[-1]) + AROUND)
    first = max(0, int(bad[0]) - AROUND)
    return max(first, end - most), end


# --- which ticks belong to a fault ----------------------------------------------------------------


# "Tensor `h` (float32 [2, 8]) was saved ..."
_NAME = re.compile(r"Tensor `([^`]+)`")


def _bad(events: _Events, data: Data, found: Sequence[Diagnosis]) -> tuple[Array, dict[int, str]]:
    """For each tick, whether it is the write, the save or the use that a diagnosis tells of.

    And the names that diagnoses give the saved tensors, by their version counters.
    """
    names: dict[int, str] = {}
    writes, saves, uses = events.table
    lines = _Lines(data)
    bad_writes = numpy.zeros(len(writes), dtype=bool)
    bad_saves = numpy.zeros(len(saves), dtype=bool)
    bad_uses = numpy.zeros(len(uses), dtype=bool)
    for diagnosis in found:
        now = numpy.zeros(len(writes), dtype=bool)
        for site in diagnosis.culprits[:1]:
            at = lines.stacks_at(writes[:, WRITES.stack], site.frame)
            if site.version_after is not None:
                at &= writes[:, WRITES.version_after] == site.version_after
            now |= at
        victims = numpy.zeros(len(saves), dtype=bool)
        for site in diagnosis.victims:
            victims |= lines.stacks_at(lines.of_nodes(saves), site.frame)
        if now.any():
            victims &= numpy.isin(saves[:, USES.counter], writes[now, WRITES.counter]) | (
                numpy.isin(saves[:, USES.storage], writes[now, WRITES.storage])
            )
            if victims.any():
                now &= numpy.isin(writes[:, WRITES.storage], saves[victims, USES.storage])
        if (said := _NAME.match(diagnosis.message)) is not None:
            for counter in numpy.unique(saves[victims, USES.counter]).tolist():
                names.setdefault(counter, said[1])
        bad_writes |= now
        bad_saves |= victims
        # The use that met the change: of the same node, in the last backward.
        for row in saves[victims][-50:]:
            same = (uses[:, USES.thread] == row[USES.thread]) & (
                uses[:, USES.sequence] == row[USES.sequence]
            )
            same &= uses[:, USES.attribute] == row[USES.attribute]
            if same.any():
                bad_uses[numpy.flatnonzero(same)[-1]] = True
    found_bad = (bad_writes, bad_saves, bad_uses)
    out = numpy.zeros(len(events.at), dtype=bool)
    for kind, bad in enumerate(found_bad):
        out[events.kind == kind] = bad[events.at[events.kind == kind]]
    return out, names


class _Lines:
    """The user's line of each stack, looked up once."""

    def __init__(self, data: Data) -> None:
        self._data = data
        self._known: dict[int, tuple[str, int] | None] = {}
        self._nodes: Array | None = None

    def at(self, stack: int) -> tuple[str, int] | None:
        if stack not in self._known:
            frame = sites.user_frame(self._data.frames(stack)) if stack else None
            self._known[stack] = None if frame is None else (frame.file, frame.line)
        return self._known[stack]

    def stacks_at(self, stacks: Array, frame: Frame) -> Any:
        wanted = [
            s for s in numpy.unique(stacks).tolist() if self.at(s) == (frame.file, frame.line)
        ]
        return numpy.isin(stacks, wanted)

    def of_nodes(self, saves: Array) -> Array:
        if self._nodes is None:
            self._nodes = _stacks_of_nodes(self._data, saves)
        return self._nodes


def _stacks_of_nodes(data: Data, rows: Array) -> Array:
    """Data.node_stack() of many at once."""
    found = numpy.zeros(len(rows), dtype=numpy.int64)
    for thread in numpy.unique(rows[:, USES.thread]):
        known = data.saves[data.saves[:, SAVES.thread] == thread]
        known = known[numpy.argsort(known[:, SAVES.sequence], kind="stable")]
        mine = rows[:, USES.thread] == thread
        index = numpy.searchsorted(known[:, SAVES.sequence], rows[mine, USES.sequence], "right") - 1
        if len(known):
            found[mine] = numpy.where(index >= 0, known[index, SAVES.stack], 0)
    return found


# --- lanes ----------------------------------------------------------------------------------------


def _lanes(
    events: _Events,
    data: Data,
    drawing: Drawing,
    bad: Array,
    told: dict[int, str],
    first: int,
    end: int,
) -> list[Lane]:
    from gradext.recording.drawing import use_key

    by_key: dict[tuple[int, ...], Lane] = {}
    names: dict[int, str] = {}  # by counter
    for position in range(first, end):
        kind = int(events.kind[position])
        row = events.table[kind][events.at[position]]
        columns: Any = WRITES if kind == WRITE else USES
        storage, counter = int(row[columns.storage]), int(row[columns.counter])
        key = (storage, counter, int(row[columns.begin]), int(row[columns.end]))
        if kind == WRITE:
            stack = int(row[WRITES.stack])
            versions = int(row[WRITES.version_before]), int(row[WRITES.version_after])
            attribute = ""
            name = drawing.writes.get(int(row[WRITES.order]))
        else:
            stack = data.node_stack(int(row[USES.thread]), int(row[USES.sequence]))[0]
            saved = int(row[USES.saved_version])
            versions = (saved, saved if kind == SAVE else int(row[USES.version]))
            attribute = data.ops.get(int(row[USES.attribute]), "")
            name = drawing.uses.get(use_key(row))
        if name is not None:
            names[counter] = name
        lane = by_key.setdefault(key, Lane("", "", 0))
        lane.ticks.append(
            Tick(
                at=position,
                kind=kind,
                op=data.ops.get(int(row[columns.op]), ""),
                attribute=attribute,
                before=versions[0],
                after=versions[1],
                frames=data.frames(stack),
                is_bad=bool(bad[position]),
            )
        )
    return _in_order(by_key, {**told, **names})


def _in_order(by_key: dict[tuple[int, ...], Lane], names: dict[int, str]) -> list[Lane]:
    """Faults first; a base above its views, and what shares its memory in another way."""
    groups: dict[tuple[int, int], list[tuple[tuple[int, ...], Lane]]] = {}
    for key, lane in by_key.items():
        # What has no storage of its own (or an unknown one) belongs to nobody.
        groups.setdefault((key[0], 0 if key[0] else key[1]), []).append((key, lane))
    ordered = sorted(
        groups.values(),
        key=lambda group: (
            not any(lane.is_bad for _, lane in group),
            min(lane.ticks[0].at for _, lane in group),
        ),
    )
    lanes = []
    for group in ordered:
        group.sort(key=lambda pair: (pair[0][2] - pair[0][3], pair[0][2], pair[1].ticks[0].at))
        (_, counter, begin, end), base = group[0]
        base.name = names.get(counter) or _first_line(base)
        base.note = f"{end - begin:,} bytes" if end > begin else ""
        lanes.append(base)
        for (_, other, start, stop), lane in group[1:]:
            lane.depth = 1
            lane.name = names.get(other, "") if other != counter else ""
            whole = (start, stop) == (begin, end)
            what = "the same memory" if whole else f"bytes {start - begin:,} to {stop - begin:,}"
            through = "" if other == counter else ", through another version counter"
            lane.name = lane.name or ("alias" if whole else "view")
            lane.note = what + through
            lanes.append(lane)
    return lanes


def _first_line(lane: Lane) -> str:
    for tick in lane.ticks:
        frame = sites.user_frame(tick.frames)
        if frame is not None:
            return f"{sites.where(frame)}: {frame.code}" if frame.code else sites.where(frame)
    return lane.ticks[0].op or "tensor"
