"""What a timeline needs beyond the events: names of tensors, and the graph around a fault.

Both are known only while the fault happens, so they are noted then, by the numbers of events and
nodes: nothing of the program's is kept alive. Made for recordings that are to be drawn alone.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy

from gradext.diagnosis.model import Diagnosis, Frame
from gradext.native import _C
from gradext.objects import graph_rows, naming
from gradext.recording.arrays import Array
from gradext.recording.events import USES, WRITES
from gradext.source import sites

if TYPE_CHECKING:
    from gradext.recording.tables import Data

MOST_STEPS = 40
MOST_NODES = 1 << 14
MOST_FAULTS = 50
MOST_NAMED = 50_000  # events


class Step(NamedTuple):
    """A node on the way from what backward was called on to the node that a fault is about."""

    node: str
    frame: Frame | None


class Drawn(NamedTuple):
    """A recording as pages and traces draw it: its events, and what was noted at its faults."""

    data: Data
    drawing: Drawing


# A write by its order, a use by the order of its backward, its node and the attribute.
WriteKey = int
UseKey = tuple[int, int, int, int]


class Drawing:
    """What was noted at the faults of one recording.

    Attributes:
        ways: for a diagnosis, by its key(): the nodes from backward's root to the victim's.
        writes, uses: names of the tensors of events.
    """

    def __init__(self) -> None:
        self.ways: dict[tuple[object, ...], tuple[Step, ...]] = {}
        self.writes: dict[WriteKey, str] = {}
        self.uses: dict[UseKey, str] = {}

    def note_fault(
        self, data: Data, outputs: Any, found: Sequence[Diagnosis], live: Sequence[Any]
    ) -> None:
        """Note names and the way to the victim; called while a backward on `outputs` goes wrong."""
        new = [diagnosis for diagnosis in found if diagnosis.key() not in self.ways]
        if not new or len(self.ways) >= MOST_FAULTS:
            return
        self._name(data, _named(frame_items(live)))
        rows, _ = _C.graph(outputs, MOST_NODES)
        for diagnosis in new:
            self.ways[diagnosis.key()] = _way(rows, data, diagnosis)

    def note_end(self, data: Data) -> None:
        """Note the names of what modules and the main module hold; called when the program ends."""
        main = sys.modules.get("__main__")
        scopes = [naming.items_in(vars(main))] if main is not None else []
        self._name(data, _named(pair for scope in scopes for pair in scope))

    def _name(self, data: Data, names: dict[int, str]) -> None:
        known = numpy.array(sorted(names), dtype=numpy.int64)
        for row in _latest(data.writes, WRITES.counter, known):
            self.writes.setdefault(int(row[WRITES.order]), names[int(row[WRITES.counter])])
        for row in _latest(data.uses, USES.counter, known):
            self.uses.setdefault(use_key(row), names[int(row[USES.counter])])


def _latest(rows: Array, counter: int, known: Array) -> Array:
    """Of the latest MOST_NAMED rows, those whose version counter is known."""
    return rows[-MOST_NAMED:][numpy.isin(rows[-MOST_NAMED:, counter], known)]


def use_key(row: Any) -> UseKey:
    """What tells one use from another."""
    return (
        int(row[USES.order]),
        int(row[USES.thread]),
        int(row[USES.sequence]),
        int(row[USES.attribute]),
    )


def frame_items(live: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Variables of the running frames that are the user's, the innermost first."""
    from gradext.base import package

    user = [frame for frame in live if package.is_user_file(frame.f_code.co_filename)]
    for frame in user:
        yield from naming.locals_of(frame)
    for space in {id(frame.f_globals): frame.f_globals for frame in user}.values():
        yield from naming.items_in(space)


def _named(pairs: Iterable[tuple[str, Any]]) -> dict[int, str]:
    """By the id of a version counter, the shortest name of a tensor that has it."""
    names: dict[int, str] = {}
    for root, value in pairs:
        if issubclass(type(value), _module_class()):
            found = _of_module(value, root)
        else:
            found = naming.tensors_in([(root, value)], depth=2)
        for name, tensor in found:
            who = naming.identity_of(tensor)
            if who is not None and who.counter:
                known = names.get(who.counter)
                if known is None or len(name) < len(known):
                    names[who.counter] = name
    return names


def _module_class() -> type:
    import torch

    return torch.nn.Module


def _of_module(module: Any, name: str) -> Iterator[tuple[str, Any]]:
    """All parameters and buffers below a module; reads its dictionaries only."""
    found = naming.submodules(
        module, name, joined=lambda path, key: f"{path}.{key}", last_first=True
    )
    for path, at in itertools.islice(found, 10_000):
        yield from naming.tensors_in([(path, at)], depth=1)


def _way(rows: Sequence[Any], data: Data, diagnosis: Diagnosis) -> tuple[Step, ...]:
    """The shortest way from a root to the first node that the diagnosis' victim made."""
    wanted = {(site.frame.file, site.frame.line) for site in diagnosis.victims}
    came_from: dict[int, int] = {}
    roots = _roots(rows)
    queue, seen = list(roots), set(roots)
    frames: dict[int, Frame | None] = {}

    def frame_of(index: int) -> Frame | None:
        if index not in frames:
            key = graph_rows.key(rows[index])
            stack = data.node_stack(*key)[0] if key is not None else 0
            frames[index] = sites.user_frame(data.frames(stack)) if stack else None
        return frames[index]

    target = None
    for index in queue:
        frame = frame_of(index)
        if frame is not None and (frame.file, frame.line) in wanted:
            target = index
            is_named = re.search(
                rf"\bby {re.escape(rows[index][graph_rows.NAME])}\b", diagnosis.message
            )
            if is_named or _is_stale(rows[index][graph_rows.NODE]):
                break
        for after in rows[index][graph_rows.FOLLOWING]:
            if after >= 0 and after not in seen:
                seen.add(after)
                came_from[after] = index
                queue.append(after)
    if target is None:
        return ()
    way = [target]
    while way[-1] in came_from:
        way.append(came_from[way[-1]])
    way.reverse()
    steps = [Step(rows[index][graph_rows.NAME], frame_of(index)) for index in way]
    if len(steps) > MOST_STEPS:
        half = MOST_STEPS // 2
        left_out = Step(f"… {len(steps) - 2 * half} nodes …", None)
        steps = [*steps[:half], left_out, *steps[-half:]]
    return tuple(steps)


def _roots(rows: Sequence[Any]) -> list[int]:
    """walk_graph lists the roots first; a root that another node leads to is found from there."""
    below = {after for row in rows for after in row[graph_rows.FOLLOWING]}
    return [index for index in range(len(rows)) if index not in below][:16] or [0][: len(rows)]


def _is_stale(node: Any) -> bool:
    items, _, _ = _C.saved_of(node)
    return any(
        facts["kind"] == "tensor"
        and facts["version"] is not None
        and facts["version"] != facts["saved_version"]
        for _, facts in items
    )
