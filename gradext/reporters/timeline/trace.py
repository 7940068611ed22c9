"""The events of a trace for Perfetto, made of a recording's tables.

Times are the profiler's: microseconds since its base time, which is the last whole multiple of
7,889,238 seconds (a quarter of a year) since 1970 in the system clock, as in torch's Kineto.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gradext.base.text import clean
from gradext.recording.events import MOMENTS, OF_NODE, OF_WRITE, USES, WRITES
from gradext.source import sites

if TYPE_CHECKING:
    from gradext.recording.drawing import Drawn

QUARTER = 7_889_238_000_000_000  # nanoseconds
CATEGORY = "gradext"


def base_of(drawn: Drawn) -> int:
    """The base time of the trace, in nanoseconds."""
    if not len(drawn.data.moments):
        return 0
    return int(drawn.data.moments[0, MOMENTS.time]) // QUARTER * QUARTER


def events(drawn: Drawn) -> Iterator[dict[str, Any]]:
    """Instant events of threads, in the Trace Event Format."""
    data = drawn.data
    base = base_of(drawn)
    writes = {int(row[WRITES.order]): row for row in data.writes}
    saved: dict[tuple[int, int], dict[int, Any]] = {}  # of a node, by attribute: its last use
    for row in data.uses:
        node = saved.setdefault((int(row[USES.thread]), int(row[USES.sequence])), {})
        node[int(row[USES.attribute])] = row
    for moment in data.moments:
        thread, sequence = int(moment[MOMENTS.thread]), int(moment[MOMENTS.sequence])
        kind = int(moment[MOMENTS.kind])
        facts: dict[str, Any]
        op = data.ops.get(int(moment[MOMENTS.op]), "")
        if kind == OF_WRITE:
            write = writes.get(int(moment[MOMENTS.order]))
            if write is None:
                continue
            name, facts = f"write: {op}", {**_of_write(write)}
            stack = int(write[WRITES.stack])
        else:
            kept = saved.get((thread, sequence))
            if kept is None:
                continue  # a node that saved nothing, or that no backward came to
            stack = data.node_stack(thread, sequence)[0]
            is_save = kind == OF_NODE
            maker = data.ops.get(int(next(iter(kept.values()))[USES.op]), "")
            name = f"save: {maker}" if is_save else f"use: {maker}"
            facts = {
                clean(data.ops.get(attribute, "")): _of_use(row, is_save)
                for attribute, row in kept.items()
            }
        frame = sites.user_frame(data.frames(stack)) if stack else None
        if frame is not None:
            facts["line"] = clean(f"{frame.file}:{frame.line}")
            facts["code"] = clean(frame.code)
        yield {
            "ph": "i",
            "s": "t",
            "cat": CATEGORY,
            "name": clean(name),
            "pid": os.getpid(),
            "tid": int(moment[MOMENTS.system_thread]),
            "ts": (int(moment[MOMENTS.time]) - base) / 1000,
            "args": facts,
        }


def _of_write(row: Any) -> dict[str, str]:
    return {
        "versions": f"{row[WRITES.version_before]} -> {row[WRITES.version_after]}",
        "memory": str(row[WRITES.storage]),
        "bytes": f"{row[WRITES.begin]} to {row[WRITES.end]}",
    }


def _of_use(row: Any, is_save: bool) -> str:
    """What a save, or a use, has of one tensor."""
    if is_save:
        return f"at version {row[USES.saved_version]}, memory {row[USES.storage]}"
    return (
        f"saved at version {row[USES.saved_version]}, at {row[USES.version]} as backward began, "
        f"memory {row[USES.storage]}"
    )
