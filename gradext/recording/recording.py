"""record() and what it leaves: a Recording of what a program did to its tensors.

Owns the switch of the C++ recorder, and save / load; the events themselves are in `events`. Does
not judge: the rules do, from Recordings. Holds ids of tensors, never tensors.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch

from gradext._version import __version__
from gradext.base import display
from gradext.diagnosis.model import Diagnoses, Diagnosis, Frame
from gradext.native import _C
from gradext.ops import graph_break
from gradext.recording import (
    awaited,
    entry_points,
    file_format,
    findings,
    incidents,
    judge,
    running,
)
from gradext.recording.drawing import Drawing
from gradext.recording.events import (
    TABLES,
    WRITES,
    Backward,
    Birth,
    Flow,
    Refused,
    View,
    Write,
)
from gradext.recording.options import RecordOptions, journal_bytes
from gradext.recording.overlap import extent
from gradext.recording.tables import Data
from gradext.state.inspect import state_of

if TYPE_CHECKING:
    from gradext.state.inspect import TensorState


class Mutations(display.Shown, list[Write]):
    """The writes to one tensor's memory, oldest first; prints as a table."""

    def __init__(self, writes: list[Write], data: Data, note: str = "") -> None:
        super().__init__(writes)
        self._data = data
        self._note = note

    def sites(self) -> list[Frame | None]:
        """The user's line of each write."""
        from gradext.source import sites

        return [sites.user_frame(self._data.frames(write.stack)) for write in self]

    def __str__(self) -> str:
        return display.show("recording.mutations", self, self.sites(), self._note)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        what = (self, self.sites(), self._note)
        return display.show("ansi_html.result", "recording.mutations", *what)


class Recording(display.Shown):
    """What was recorded; while its `with` block runs, what has been recorded so far.

    Attributes:
        saves: False for the light mode, which knows culprits only.
        births: whether the births of inference tensors are noted.
        cuts: whether it is noted where values lose their gradient, and what is made of them.
    """

    def __init__(self, options: RecordOptions | None = None) -> None:
        self._options = RecordOptions() if options is None else options
        self.saves, self.births, self.cuts = self._options.wants
        self.since = 0
        self._running = self._stopping = False
        self._loaded = False
        self._data: Data | None = None
        self._memory_facts: dict[str, int] = {}
        self.known = findings.Known()
        self.waiting = awaited.Waiting()
        self.held = awaited.HeldLeaves()
        self.unstepped: dict[Any, awaited.Unstepped] = {}
        self.empty_grads: dict[Any, tuple[Diagnosis, ...]] = {}  # by the stack that read one
        self.drawing = Drawing() if self._options.uses else None

    @graph_break
    def start(self) -> Recording:
        """Begin; `with` does the same."""
        if self._running or self._data is not None:
            raise RuntimeError("a Recording starts once; make another one with gradext.record()")
        entry_points.install()
        try:
            self.since = _C.recorder_start(*self._options.wants, self._options.limit)
            self._want_more(1)
        except BaseException:
            entry_points.uninstall()
            raise
        self._running = True
        _C.recorder_wake_threads()
        running.recordings.append(self)
        return self

    @graph_break
    def stop(self) -> Recording:
        """End; the data stays. Calling it again does nothing."""
        if self._running and not self._stopping:
            self._stopping = True
            try:
                # Until the data is there the recording runs: another thread may be asking for it.
                self._data = self._snapshot()
                self._running = False
                self._memory_facts = _C.recorder_memory()
            finally:
                self._running = False
                running.recordings.remove(self)
                self._want_more(-1)
                _C.recorder_stop(*self._options.wants)
                entry_points.uninstall()
        return self

    def _want_more(self, step: int) -> None:
        """What takes room on top of the limit, for those who ask: each a half of it."""
        if self._options.uses:
            _C.recorder_want_uses(step, self._options.limit // 2)
        if self._options.times:
            _C.recorder_want_times(step, self._options.limit // 2)

    def __enter__(self) -> Recording:
        return self.start()

    def __exit__(self, *error: object) -> None:
        if self._running and error[:1] in ((), (None,)):
            incidents.settle(self)  # of a program that fails it is not known how it would go on
        self.stop()

    def _snapshot(self) -> Data:
        return Data(_C.recorder_snapshot(self.since), None)

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
    def has_data(self) -> bool:
        """Whether it has begun: only then it has events."""
        return self._running or self._data is not None

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

    def birth(self, tensor: torch.Tensor) -> Birth | None:
        """How an inference tensor came to be; None if it is none, or was made unrecorded.

        Raises:
            TypeError: `tensor` is no torch.Tensor.
            RuntimeError: the recording was loaded from a file, whose ids mean no living tensor.
        """
        state = self._living(tensor, "birth")
        if not state.is_inference:
            return None
        return self.data.birth_of(state.id if state.storage is None else state.storage)

    def flow(self, tensor: torch.Tensor) -> Flow | None:
        """How a tensor that requires no grad was made; None if nothing of it was noted.

        Raises:
            TypeError: `tensor` is no torch.Tensor.
            RuntimeError: the recording was loaded from a file, whose ids mean no living tensor.
        """
        return self.data.flow_of(self._living(tensor, "flow").id)

    def _living(self, tensor: torch.Tensor, asked: str) -> TensorState:
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"Recording.{asked}: expected a torch.Tensor, got "
                f"{type(tensor).__module__}.{type(tensor).__qualname__}"
            )
        if self._loaded:
            raise RuntimeError(
                f"Recording.{asked}: a loaded recording knows no living tensor; read its events"
            )
        return state_of(tensor)

    def frames(self, stack: int) -> tuple[Frame, ...]:
        """The Python frames of an event's `stack`, innermost first."""
        return self.data.frames(stack)

    def mutations(self, tensor: torch.Tensor) -> Mutations:
        """The history of one tensor: every recorded write to its memory, through any tensor.

        Raises:
            TypeError: `tensor` is no torch.Tensor.
            RuntimeError: the recording was loaded from a file, whose ids mean no living tensor.
        """
        state = self._living(tensor, "mutations")
        data = self.data
        writes = data.writes
        chosen = numpy.zeros(len(writes), dtype=bool)
        if state.version_counter is not None:
            chosen |= writes[:, WRITES.counter] == state.version_counter
        if state.storage is not None:
            begin, end = extent(tensor)
            overlapping = (writes[:, WRITES.begin] < end) & (writes[:, WRITES.end] > begin)
            chosen |= (writes[:, WRITES.storage] == state.storage) & overlapping
        rows = writes[chosen]
        note = ""
        if data.dropped["writes"]:
            note = f"{data.dropped['writes']} older writes of the process were dropped"
        return Mutations([data.write(row) for row in rows], data, note)

    def explain(self, error: BaseException) -> Diagnoses:
        """gradext.explain(error, recording=self)."""
        return Diagnoses(judge.the_judge().explain(error, self))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recording as JSON; gzipped if `path` ends in .gz."""
        data = self.data
        stacks = set(data.stacks())
        known: dict[Frame, int] = {}
        numbered = {
            str(stack): [known.setdefault(frame, len(known)) for frame in data.frames(stack)]
            for stack in sorted(stacks)
        }
        document = {
            "format": file_format.FORMAT,
            "version": file_format.FORMAT_VERSION,
            "gradext": __version__,
            "torch": torch.__version__,
            "saves": self.saves,
            "births": self.births,
            "cuts": self.cuts,
            "order": data.order,
            "dropped": data.dropped,
            "memory": self.memory,
            "ops": {str(number): name for number, name in data.ops.items()},
            "geometries": data.geometries,
            "columns": {columns.in_file: list(columns.names) for columns in TABLES.values()},
            **{TABLES[name].in_file: rows.tolist() for name, rows in data.tables.items()},
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
    def load(cls, path: str | os.PathLike[str], *, max_bytes: int | None = None) -> Recording:
        """Read what save() wrote, believing none of it unchecked: no code of the file's is run.

        Args:
            max_bytes: the most that its text may take, 1 GiB unless given. Reading takes about 10
                times as much memory; no file is read that makes more than 30 times of it.

        Raises:
            ValueError: the file is no recording, or of another format; one line that says which.
            OSError: it cannot be opened.
        """
        document = file_format.read(path, max_bytes)
        snapshot = {
            **{name: document[columns.in_file] for name, columns in TABLES.items()},
            **{name: document[name] for name in ("ops", "geometries", "dropped", "order")},
            "backwards": [],
            "refused": [],
        }
        recording = cls(RecordOptions(*(document[name] for name in ("saves", "births", "cuts"))))
        data = Data(snapshot, document["stacks"])
        data.backwards, data.refused = document["backwards"], document["refused"]
        recording._data = data
        recording._loaded = True
        recording._memory_facts = document["memory"]
        return recording

    def __repr__(self) -> str:
        state = "running" if self._running else "stopped" if self._data else "not started"
        mode = "" if self.saves else ", saves=False"
        count = ""
        if self._running or self._data:
            data = self.data
            count = f", {len(data.writes)} writes, {len(data.saves)} saves"
        return f"<gradext.Recording {state}{mode}{count}>"

    def _repr_html_(self) -> str:
        return display.show("ansi_html.result", "recording.summary", self)


def record(
    saves: bool = True,
    *,
    births: bool | None = None,
    cuts: bool | None = None,
    memory: int | None = None,
    uses: bool = False,
    times: bool = False,
) -> Recording:
    """Record what a program does to its tensors: ``with gradext.record() as recording:``.

    In-place writes, and what is saved for backward; how inference tensors come to be; where values
    lose their gradient.

    Nestable and thread-aware: Python threads and autograd's own are recorded, those started before
    the block from their next Python call on. Off at exit whatever happened.

    Args:
        saves: False for the light mode: writes only, so that diagnoses name culprits and no
            victims; the cost is then paid by writing ops alone.
        births: note which line made each inference tensor (GX201 to GX204). Default: as `saves`.
        cuts: note where values lose their gradient, and what is computed from them (GX301, GX304).
            Default: as `saves`.
        memory: MiB that the journal may take (default 64); the oldest events go first.
        uses: note at each backward which tensors the nodes below it had saved: a walk over the
            graph, and half as much memory again. A timeline (`run --html`) is drawn from it.
        times: note when each write happened, and when nodes were made and ran: an observer of
            every op, and half as much memory again. For `run --perfetto`.

    Raises:
        TypeError: `memory` is no int.
        ValueError: `memory` is below 1, or more than this machine has.
    """
    size = journal_bytes(memory, "gradext.record")
    return Recording(RecordOptions(saves, births, cuts, size, uses=uses, times=times))


def current() -> Recording | None:
    """The innermost recording that runs."""
    return running.innermost()
