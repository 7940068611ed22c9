"""Two results of one benchmark: do the intervals of their rows overlap?

    python benchmarks/overlap.py OLD.json NEW.json [--least 0.95]

Exits 1 when fewer rows than `--least` overlap, 2 when the two cannot be compared: results of
different machines are never put in one ratio. Owns the comparison of finished results.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from gradext.mode_costs import machine

Row = dict[str, Any]
LEAST = 0.95
FOUND = ("skipped", "waits for", "note")  # texts that say what was found


class NotComparable(Exception):
    """The two results have no ratio."""


def key_of(row: Row) -> tuple[str, ...]:
    """What a row is about: its texts and threads, not what was measured or why it was skipped."""
    named = {k: v for k, v in row.items() if isinstance(v, str) or k == "threads"}
    return tuple(f"{k}={v}" for k, v in named.items() if k not in FOUND)


def value_column(row: Row) -> str:
    """The column whose interval "low" and "high" are: the one before them."""
    columns = list(row)
    return columns[columns.index("low") - 1]


def pairs(old: list[Row], new: list[Row]) -> list[tuple[Row, Row]]:
    """The rows that both have, with an interval that is not that of a thing over itself."""
    known = {key_of(row): row for row in old}
    found = [(known[key_of(row)], row) for row in new if key_of(row) in known]
    return [
        (a, b)
        for a, b in found
        if None not in (a.get("low"), a.get("high"), b.get("low"), b.get("high"))
        and not (a["low"] == a["high"] == 1.0)
    ]


def overlaps(a: Row, b: Row) -> bool:
    return bool(a["low"] <= b["high"] and b["low"] <= a["high"])


def check_machines(old: Row, new: Row) -> None:
    """Raises NotComparable, naming what differs."""
    apart = machine.differences(old, new)
    if apart:
        raise NotComparable(f"different machines: {'; '.join(apart)}")


def read(path: Path) -> dict[str, Any]:
    """A result file. NotComparable: there is none, or it is something else."""
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        if not {"benchmark", "machine", "rows"} <= result.keys():
            raise NotComparable(f"{path} is no result of a benchmark")
    except OSError as error:
        raise NotComparable(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, AttributeError):
        raise NotComparable(f"{path} is no JSON of a benchmark") from None
    return result


def comparable(path: Path, names: Collection[str], here: Row) -> dict[str, Any]:
    """The result in `path`. NotComparable: it is of another benchmark, or of another machine."""
    old = read(path)
    if old["benchmark"] not in names:
        raise NotComparable(f"{path} is a result of {old['benchmark']}, not of {min(names)}")
    check_machines(old["machine"], here)
    return old


def against(path: Path, name: str, rows: list[Row], here: Row) -> str:
    """What changed since the result in `path`: the rows whose intervals lie apart."""
    old = comparable(path, [name], here)
    both = pairs(old["rows"], rows)
    if not both:
        raise NotComparable(f"{path} has no row of this run")
    moved = [(a, b) for a, b in both if not overlaps(a, b)]
    then = old["machine"]
    lines = [
        f"against {then['date']}, torch {then['torch']}, commit {then['commit']}: "
        f"{len(both) - len(moved)} of {len(both)} rows overlap"
    ]
    for a, b in moved:
        column = value_column(b)
        about = ", ".join(part.partition("=")[2] for part in key_of(b))
        lines.append(f"  {about}: {_shown(a, column)} then, {_shown(b, column)} now")
    return "\n".join(lines)


def _shown(row: Row, column: str) -> str:
    return f"{row[column]:.3g} [{row['low']:.3g}, {row['high']:.3g}]"


def main() -> int:
    ask = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ask.add_argument("old", type=Path)
    ask.add_argument("new", type=Path)
    ask.add_argument("--least", type=float, default=LEAST, help="the share that must overlap")
    args = ask.parse_args()
    try:
        new = read(args.new)
        print(against(args.old, new["benchmark"], new["rows"], new["machine"]))
        both = pairs(read(args.old)["rows"], new["rows"])
    except NotComparable as error:
        print(f"overlap: {error}", file=sys.stderr)
        return 2
    share = sum(overlaps(a, b) for a, b in both) / len(both)
    print(f"{100 * share:.1f} % overlap; at least {100 * args.least:.0f} % must")
    return 0 if share >= args.least else 1


if __name__ == "__main__":
    sys.exit(main())
