"""record() and what it leaves: a Recording of writes, saves, views and backward calls.

Owns the switch of the C++ recorder and the Recording as plain data (save / load). It does not
judge: gradext.diagnosis does, from Recordings. A recording holds ids of tensors, never tensors.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import operator
import os
from pathlib import Path
from typing import Any, cast

import numpy
import torch

from gradext import _C, frames, watch
from gradext._version import __version__
from gradext.diagnosis.model import Diagnosis, Frame

MEMORY = 64 << 20  # bytes that the journal may take, unless told otherwise
FORMAT = "gradext-recording"
FORMAT_VERSION = 1

WRITE_COLUMNS = (
    *("order", "storage", "counter", "begin", "end", "sequence", "thread", "stack", "op"),
    *("inner_op", "version_before", "version_after", "geometry", "argument", "flags"),
)
VIEW_COLUMNS = (
    *("order", "storage", "begin", "end", "sequence", "tensor", "thread", "stack", "op"),
    "creation_meta",
)
SAVE_COLUMNS = ("thread", "sequence", "stack", "origin_thread", "origin_sequence")

DECLARED_ONLY, SHARED_STORAGE, INFERENCE, GRAD_MODE, NOTE = 1, 2, 4, 8, 16

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
    """An in-place write that torch refused, with what was known of the tensor at that moment."""

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
    grad_mode: bool
    chain: tuple[tuple[str, int, int], ...]


_CREATION_META = (
    *("default", "in_custom_function", "multi_output_node", "no_grad_mode", "inference_mode"),
)


def _meta(value: int) -> str | None:
    return _CREATION_META[value] if 0 <= value < len(_CREATION_META) else None


class Data:
    """The events of a recording as arrays, with the queries that diagnoses need. Immutable."""

    def __init__(
        self, snapshot: dict[str, Any], stacks: dict[int, tuple[Frame, ...]] | None
    ) -> None:
        self.writes: _Array = snapshot["writes"]
        self.views: _Array = snapshot["views"]
        self.saves: _Array = snapshot["saves"]
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

    def frames(self, stack: int) -> tuple[Frame, ...]:
        """The Python frames of a stack, innermost first; empty where there were none."""
        if stack not in self._stacks and self._live_stacks:
            self._stacks[stack] = frames.stack_of(_C.recorder_frames(stack))
        return self._stacks.get(stack, ())

    def write(self, row: Any) -> Write:
        facts = dict(zip(WRITE_COLUMNS, (int(value) for value in row), strict=True))
        flags = facts.pop("flags")
        shape = facts.pop("geometry")
        geometry = None
        if 0 < shape <= len(self.geometries):
            itemsize, *numbers = self.geometries[shape - 1]
            half = len(numbers) // 2
            geometry = (itemsize, tuple(numbers[:half]), tuple(numbers[half:]))
        facts["op"] = self.ops.get(facts["op"], "")  # type: ignore[assignment]
        facts["inner_op"] = self.ops.get(facts["inner_op"], "")  # type: ignore[assignment]
        return Write(
            **cast(Any, facts),
            geometry=geometry,
            declared_only=bool(flags & DECLARED_ONLY),
            shared_storage=bool(flags & SHARED_STORAGE),
            is_inference=bool(flags & INFERENCE),
            grad_mode=bool(flags & GRAD_MODE),
            is_note=bool(flags & NOTE),
        )

    def writes_of_counter(self, counter: int, after_version: int = -1) -> list[Write]:
        """Writes through one version counter, oldest first, that end above `after_version`."""
        table = self.writes
        rows = table[(table[:, 2] == counter) & (table[:, 11] > after_version)]
        return [self.write(row) for row in rows[numpy.argsort(rows[:, 0], kind="stable")]]

    def notes_of_counter(self, counter: int, from_version: int) -> list[Write]:
        """Python calls that were about to move the counter from `from_version` or later."""
        table = self.writes
        chosen = (table[:, 2] == counter) & ((table[:, 14] & NOTE) != 0)
        chosen &= table[:, 10] >= from_version
        return [self.write(row) for row in table[chosen]]

    def writes_of_storage(self, storage: int) -> list[Write]:
        """Writes to one storage through any counter, oldest first."""
        table = self.writes
        rows = table[(table[:, 1] == storage) & ((table[:, 14] & NOTE) == 0)]
        return [self.write(row) for row in rows[numpy.argsort(rows[:, 0], kind="stable")]]

    def view(self, row: Any) -> View:
        facts = dict(zip(VIEW_COLUMNS, (int(value) for value in row), strict=True))
        facts["op"] = self.ops.get(facts["op"], "")  # type: ignore[assignment]
        facts["creation_meta"] = _meta(facts["creation_meta"])  # type: ignore[assignment]
        return View(**cast(Any, facts))

    def views_of_storage(self, storage: int) -> list[View]:
        return [self.view(row) for row in self.views[self.views[:, 1] == storage]]

    def node_stack(self, thread: int, sequence: int) -> tuple[int, tuple[int, int] | None]:
        """(stack that made a node, (thread, sequence) of the forward node being differentiated).

        0 when the recording does not reach back so far, or noted no saves on that thread.
        """
        rows = self._by_thread.get(thread)
        if rows is None:
            rows = self.saves[self.saves[:, 0] == thread]
            rows = rows[numpy.argsort(rows[:, 1], kind="stable")]
            self._by_thread[thread] = rows
        at = int(numpy.searchsorted(rows[:, 1], sequence, side="right")) - 1
        if at < 0:
            return 0, None
        row = rows[at]
        origin = (int(row[3]), int(row[4])) if row[3] >= 0 else None
        return int(row[2]), origin


class Mutations(list[Write]):
    """The writes to one tensor's memory, oldest first; prints as a table."""

    def __init__(self, writes: list[Write], data: Data, note: str = "") -> None:
        super().__init__(writes)
        self._data = data
        self._note = note

    def sites(self) -> list[Frame | None]:
        """The user's line of each write."""
        from gradext.diagnosis import sites

        return [sites.user_frame(self._data.frames(write.stack)) for write in self]

    def __str__(self) -> str:
        from gradext.reporters import recording

        return recording.mutations(self, self.sites(), self._note)

    __repr__ = __str__


class Recording:
    """What was recorded; while its `with` block runs, what has been recorded so far.

    Attributes:
        saves: False for the light mode, which knows culprits only.
    """

    def __init__(self, saves: bool = True, memory: int | None = None) -> None:
        self.saves = saves
        self._memory = MEMORY if memory is None else _checked_memory(memory)
        self._since = 0
        self._running = False
        self._loaded = False
        self._data: Data | None = None
        self._memory_facts: dict[str, int] = {}

    def start(self) -> Recording:
        """Begin; `with` does the same."""
        if self._running or self._data is not None:
            raise RuntimeError("a Recording starts once; make another one with gradext.record()")
        watch.install()
        try:
            self._since = _C.recorder_start(self.saves, self._memory)
        except BaseException:
            watch.uninstall()
            raise
        self._running = True
        _C.recorder_wake_threads()
        watch.recordings.append(self)
        return self

    def stop(self) -> Recording:
        """End; the data stays. Calling it again does nothing."""
        if self._running:
            self._running = False
            try:
                self._data = self._snapshot()
                self._memory_facts = _C.recorder_memory()
            finally:
                watch.recordings.remove(self)
                _C.recorder_stop(self.saves)
                watch.uninstall()
        return self

    def __enter__(self) -> Recording:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _snapshot(self) -> Data:
        return Data(_C.recorder_snapshot(self._since), None)

    @property
    def data(self) -> Data:
        """The events as they are now."""
        if self._running:
            return self._snapshot()
        if self._data is None:
            raise RuntimeError("this Recording has not been started; use it in a `with` block")
        return self._data

    @property
    def is_running(self) -> bool:
        return self._running

    @property
    def memory(self) -> dict[str, int]:
        """Bytes: per event (`write_bytes` ...), `held_bytes` of `limit_bytes`; and event counts."""
        return dict(_C.recorder_memory() if self._running else self._memory_facts)

    @property
    def dropped(self) -> dict[str, int]:
        """How many events of each kind were dropped because the memory limit was reached."""
        return dict(self.data.dropped)

    @property
    def writes(self) -> list[Write]:
        """All writes, oldest first."""
        data = self.data
        return [data.write(row) for row in data.writes]

    @property
    def views(self) -> list[View]:
        data = self.data
        return [data.view(row) for row in data.views]

    @property
    def backwards(self) -> list[Backward]:
        return self.data.backwards

    @property
    def refused(self) -> list[Refused]:
        return self.data.refused

    def frames(self, stack: int) -> tuple[Frame, ...]:
        """The Python frames of an event's `stack`, innermost first."""
        return self.data.frames(stack)

    def mutations(self, tensor: torch.Tensor) -> Mutations:
        """The history of one tensor: every recorded write to its memory, through any tensor.

        Raises:
            TypeError: `tensor` is no torch.Tensor.
            RuntimeError: the recording was loaded from a file, whose ids mean no living tensor.
        """
        from gradext.state import _state

        if not isinstance(tensor, torch.Tensor):
            raise TypeError(
                "Recording.mutations: expected a torch.Tensor, got "
                f"{type(tensor).__module__}.{type(tensor).__qualname__}"
            )
        if self._loaded:
            raise RuntimeError(
                "Recording.mutations: a loaded recording knows no living tensor; read its writes"
            )
        state = _state(tensor)
        data = self.data
        table = data.writes
        chosen = numpy.zeros(len(table), dtype=bool)
        if state.version_counter is not None:
            chosen |= table[:, 2] == state.version_counter
        if state.storage is not None:
            begin, end = _extent(tensor)
            overlapping = (table[:, 3] < end) & (table[:, 4] > begin)
            chosen |= (table[:, 1] == state.storage) & overlapping
        rows = table[chosen]
        note = ""
        if data.dropped["writes"]:
            note = f"{data.dropped['writes']} older writes of the process were dropped"
        return Mutations([data.write(row) for row in rows], data, note)

    def explain(self, error: BaseException) -> list[Diagnosis]:
        """gradext.explain(error, recording=self)."""
        from gradext import diagnosis

        return diagnosis.explain(error, self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recording as JSON (docs/recording-format.md); gzipped if `path` ends in .gz."""
        data = self.data
        stacks = {int(s) for s in data.writes[:, 7]} | {int(s) for s in data.views[:, 7]}
        stacks |= {int(s) for s in data.saves[:, 2]} | {b.stack for b in data.backwards}
        stacks |= {r.stack for r in data.refused}
        known: dict[Frame, int] = {}
        numbered = {
            str(stack): [known.setdefault(frame, len(known)) for frame in data.frames(stack)]
            for stack in sorted(stacks)
        }
        document = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "gradext": __version__,
            "torch": torch.__version__,
            "saves": self.saves,
            "order": data.order,
            "dropped": data.dropped,
            "memory": self.memory,
            "ops": {str(number): name for number, name in data.ops.items()},
            "geometries": data.geometries,
            "columns": {
                "writes": list(WRITE_COLUMNS),
                "views": list(VIEW_COLUMNS),
                "saved": list(SAVE_COLUMNS),
            },
            "writes": data.writes.tolist(),
            "views": data.views.tolist(),
            "saved": data.saves.tolist(),
            "backwards": [
                {**dataclasses.asdict(b), "nodes": b.nodes.tolist()} for b in data.backwards
            ],
            "refused": [dataclasses.asdict(r) for r in data.refused],
            "frames": [dataclasses.asdict(frame) for frame in known],
            "stacks": numbered,
        }
        text = json.dumps(document)
        target = Path(path)
        if target.name.endswith(".gz"):
            with gzip.open(target, "wt", encoding="utf-8") as file:
                file.write(text)
        else:
            target.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recording:
        """Read what save() wrote.

        Raises:
            ValueError: the file is no recording, or of a newer format; one line that says which.
        """
        target = Path(path)
        try:
            if target.name.endswith(".gz"):
                with gzip.open(target, "rt", encoding="utf-8") as file:
                    document = json.load(file)
            else:
                document = json.loads(target.read_text(encoding="utf-8"))
        except (ValueError, gzip.BadGzipFile, EOFError) as error:
            raise ValueError(f"{target} is no gradext recording ({error})") from None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f'{target} is no gradext recording (no "format": "{FORMAT}" in it)')
        version = document.get("version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ValueError(
                f"{target} has recording format {version}, this gradext reads {FORMAT_VERSION}; "
                f"open it with gradext {document.get('gradext')}"
            )
        try:
            return cls._from_document(document)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"{target} is no gradext recording (damaged: {watch.describe(error)})"
            ) from None

    @classmethod
    def _from_document(cls, document: dict[str, Any]) -> Recording:
        if document["version"] != FORMAT_VERSION:
            raise ValueError(f"format version {document['version']!r}")
        known = [Frame(**facts) for facts in document["frames"]]
        stacks = {
            int(stack): tuple(known[index] for index in numbers)
            for stack, numbers in document["stacks"].items()
        }
        snapshot = {
            "writes": _table(document["writes"], len(WRITE_COLUMNS)),
            "views": _table(document["views"], len(VIEW_COLUMNS)),
            "saves": _table(document["saved"], len(SAVE_COLUMNS)),
            "ops": {int(number): name for number, name in document["ops"].items()},
            "geometries": document["geometries"],
            "dropped": dict(document["dropped"]),
            "order": document["order"],
            "backwards": [],
            "refused": [],
        }
        recording = cls(saves=document["saves"])
        data = Data(snapshot, stacks)
        data.backwards = [
            Backward(**{**facts, "nodes": _table(facts["nodes"], 2)})
            for facts in document["backwards"]
        ]
        data.refused = [
            Refused(**{**facts, "chain": tuple(tuple(node) for node in facts["chain"])})
            for facts in document["refused"]
        ]
        recording._data = data
        recording._loaded = True
        recording._memory_facts = dict(document["memory"])
        return recording

    def __repr__(self) -> str:
        state = "running" if self._running else "stopped" if self._data else "not started"
        mode = "" if self.saves else ", saves=False"
        count = ""
        if self._running or self._data:
            data = self.data
            count = f", {len(data.writes)} writes, {len(data.saves)} saves"
        return f"<gradext.Recording {state}{mode}{count}>"


def record(saves: bool = True, *, memory: int | None = None) -> Recording:
    """Record in-place writes and saves for backward: ``with gradext.record() as recording:``.

    Nestable and thread-aware: Python threads and autograd's own are recorded, those started before
    the block from their next Python call on. Off at exit whatever happened.

    Args:
        saves: False for the light mode: writes only, so that diagnoses name culprits and no
            victims; the cost is then paid by writing ops alone.
        memory: bytes that the journal may take (default 64 MiB); the oldest events go first.

    Raises:
        TypeError: `memory` is no int.
        ValueError: `memory` is below 1 MiB.
    """
    return Recording(saves, memory)


def start(saves: bool = True, memory: int | None = None) -> Recording:
    """record(...).start(), for callers without a `with` block."""
    return Recording(saves, memory).start()


def current() -> Recording | None:
    """The innermost recording that runs."""
    return watch.recordings[-1] if watch.recordings else None


def _checked_memory(memory: int) -> int:
    try:
        size = operator.index(memory)
    except TypeError:
        raise TypeError(
            f"gradext.record: memory is in bytes, an int; got {type(memory).__name__}"
        ) from None
    if size < 1 << 20:
        raise ValueError(
            f"gradext.record: memory is in bytes, at least 1 MiB (1048576); got {size}"
        )
    return size


def _table(rows: list[list[int]], columns: int) -> _Array:
    return numpy.array(rows, dtype=numpy.int64).reshape(len(rows), columns)


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """First byte and one past the last byte of a strided tensor within its storage."""
    if tensor.layout != torch.strided or tensor.is_nested or tensor.numel() == 0:
        return 0, 0
    size = tensor.element_size()
    begin = int(tensor.storage_offset()) * size
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return begin, begin + (int(reach) + 1) * size


def overlap(first: Write, offset: int, itemsize: int, sizes: Any, strides: Any) -> bool | None:
    """Whether a write touched an element of a saved tensor; None if that is too large to decide.

    The tensor lies in the same storage at `offset` (elements) with `sizes` and `strides`.
    """
    begin = offset * itemsize
    end = begin + (sum((n - 1) * s for n, s in zip(sizes, strides, strict=True)) + 1) * itemsize
    if 0 in sizes or first.begin >= end or first.end <= begin:
        return False
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
        "writes": _table([], len(WRITE_COLUMNS)),
        "views": _table([], len(VIEW_COLUMNS)),
        "saves": _table([], len(SAVE_COLUMNS)),
        "ops": {},
        "geometries": [],
        "dropped": {"writes": 0, "views": 0, "saves": 0, "backwards": 0},
        "order": 0,
        "backwards": [],
        "refused": [],
    }
