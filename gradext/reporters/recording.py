"""How parts of a Recording look as text: the history of one tensor as a table.

Reads the plain data of gradext.recording.recording; touches no live recorder and no tensor.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradext.base.text import clean
from gradext.diagnosis.model import Frame

if TYPE_CHECKING:
    from gradext.recording.events import Write
    from gradext.recording.recording import Recording

_HEAD = ("version", "op", "where", "code", "")
_MOST_CODE = 48


def mutations(writes: Sequence[Write], sites: Sequence[Frame | None], note: str = "") -> str:
    """One line per write: the versions around it, the op, the user's line, what is odd about it."""
    if not writes:
        return "no recorded write" + (f" ({note})" if note else "")
    rows: list[tuple[str, ...]] = [_HEAD]
    for write, site in zip(writes, sites, strict=True):
        code = site.code if site else ""
        if len(code) > _MOST_CODE:
            code = code[: _MOST_CODE - 3].rstrip() + "..."
        row = (_versions(write), _op(write), _where(site), code, _remark(write))
        rows.append(tuple(map(clean, row)))
    widths = [max(len(row[k]) for row in rows) for k in range(len(_HEAD))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    if note:
        lines.append(f"({note})")
    return "\n".join(lines)


_KINDS = ("writes", "saves", "views", "births", "flows")


def summary(recording: Recording) -> str:
    """What a recording has: its first line, a line for each kind of event, the lines that wrote."""
    lines = [clean(repr(recording))]
    if not recording.has_data:
        return lines[0]
    data = recording.data
    for kind in _KINDS:
        rows, lost = data.tables.get(kind), data.dropped.get(kind, 0)
        if rows is not None and (len(rows) or lost):
            more = f"  ({lost} older ones were dropped)" if lost else ""
            lines.append(f"  {kind:<9}{len(rows):>9}{more}")
    held, limit = (recording.memory.get(name, 0) for name in ("held_bytes", "limit_bytes"))
    if limit:
        lines.append(f"  {'memory':<9}{held / 2**20:>9.1f} MiB of {limit / 2**20:.0f}")
    return "\n".join(lines)


def _versions(write: Write) -> str:
    if write.is_inference:
        return "none"
    return f"{write.version_before} -> {write.version_after}"


def _op(write: Write) -> str:
    name = write.op.removeprefix("aten::")
    inner = write.inner_op.removeprefix("aten::")
    return f"{name} ({inner})" if inner and inner != name else name


def _where(site: Frame | None) -> str:
    if site is None:
        return "(no Python frame)"
    file = site.file
    if not file.startswith("<"):
        try:
            relative = os.path.relpath(file)
        except ValueError:  # another drive
            relative = file
        file = file if relative.startswith("..") else relative
    return f"{file}:{site.line} in {site.function}"


def _remark(write: Write) -> str:
    if write.is_note:
        return "counts a write"
    if write.declared_only:
        return "not counted by the op"
    if write.shared_storage:
        return "through another counter (.data or the like)"
    return ""
