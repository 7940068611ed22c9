"""Fingerprints as tables: a tree, what changed between two, what ranks hold.

Reads finished results and no tensor. rich is imported when something is printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradext.base.text import clean, counted
from gradext.reporters import state

if TYPE_CHECKING:
    from gradext.fingerprints.fingerprint import FingerprintChanges, Fingerprints
    from gradext.fingerprints.replicas import ReplicaReport

Rows = list[tuple[str, ...]]


def tree(found: Fingerprints) -> str:
    """One row a path."""
    rows: Rows = [(path, found.describe(path), str(value)) for path, value in found.items()]
    return _table(("tensor", "type", "fingerprint"), rows, counted(len(rows), "tensor"))


def changes(found: FingerprintChanges) -> str:
    """One row a change, and how many are the same."""
    rows: Rows = [
        (change.path, _WORDS[change.kind], change.before or "-", change.after or "-")
        for change in found.changes
    ]
    last = f"{counted(len(rows), 'change')}, {found.same} the same"
    return _table(("tensor", "change", "before", "after"), rows, last)


_WORDS = {
    "added": "added",
    "removed": "removed",
    "dtype": "dtype",
    "shape": "shape",
    "bytes": "bytes, same dtype and shape",
}


def replicas(report: ReplicaReport) -> str:
    """One row for each value that some ranks hold where others hold another."""
    rows: Rows = []
    for difference in report.differences:
        path = difference.path
        for holding in difference.holdings:
            value = "no such tensor" if holding.value is None else str(holding.value)
            rows.append((path, ranks(holding.ranks), holding.tensor or "-", value))
            path = ""
    among = f"among {counted(len(report.ranks), 'rank')}"
    differing = counted(len(report.differences), "difference")
    last = f"{differing} {among}, {report.same} the same"
    return _table(("tensor", "ranks", "type", "fingerprint"), rows, last)


def ranks(numbers: Sequence[int]) -> str:
    """ "0-2, 5"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _table(headings: Sequence[str], rows: Rows, last: str) -> str:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return state.render(Text(last))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    return state.render(Group(table, Text(""), Text(last, style="dim")))
