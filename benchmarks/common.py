"""What every benchmark script shares: the record of where it ran, the JSON, the table.

Owns no measuring (gradext.mode_costs.timing) and does not know where it runs (`machine` beside it).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import overlap
import torch

from gradext.mode_costs import machine

ROOT = Path(__file__).resolve().parent.parent


def parser(doc: str, *, suite: bool = False) -> argparse.ArgumentParser:
    """The options all benchmarks have, and those of the suites of `gradext bench`."""
    ask = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ask.add_argument("--out", type=Path, help="folder for the JSON (default: print the table only)")
    ask.add_argument("--quick", action="store_true", help="seconds instead of minutes; rough")
    if not suite:
        return ask
    ask.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
    ask.add_argument(
        "--against", type=Path, metavar="OLD.json", help="compare with this earlier result"
    )
    return ask


def refuse(what: str) -> NoReturn:
    """Ends the program with one line on standard error and the exit code of a wrong call, 2."""
    print(f"{Path(sys.argv[0]).name}: {what}", file=sys.stderr)
    raise SystemExit(2)


def device(args: argparse.Namespace) -> str:
    """The device that was asked for; ends the program in one line where there is none.

    Ends it, too, where --against names a result that this run cannot be compared with: now, so that
    nobody waits for the whole run to learn of it.
    """
    if args.device not in ("cpu", "cuda"):
        refuse(f"--device is cpu or cuda, not {args.device!r}")
    if args.device == "cuda" and not torch.cuda.is_available():
        refuse("--device cuda: torch finds no CUDA device here")
    if args.against is not None:
        try:
            suite = Path(sys.argv[0]).stem
            names = [suite, f"{suite}_cuda"]  # fingerprint.py makes two
            overlap.comparable(args.against, names, machine.record(ROOT))
        except overlap.NotComparable as error:
            refuse(f"--against: {error}")
    chosen: str = args.device
    return chosen


def budget(seconds: float) -> float:
    """Seconds for a comparison: `seconds`, or 0 where GRADEXT_BENCH_LEAST is set.

    With 0 a comparison takes the fewest rounds that give an interval. That is enough for the tests
    of the suites, which look at the rows and not at the figures in them.
    """
    return 0.0 if os.environ.get("GRADEXT_BENCH_LEAST") else seconds


INTERNAL = argparse.SUPPRESS  # the help of an option that only tests use


def finish(
    name: str, rows: list[dict[str, Any]], args: argparse.Namespace, shown: str | None = None
) -> int:
    """`record`, and the comparison with an earlier result where one was asked for; exit code."""
    record(name, rows, args.out, shown)
    if args.against is None:
        return 0
    try:
        print(f"\n{overlap.against(args.against, name, rows, machine.record(ROOT))}")
    except overlap.NotComparable as error:
        print(f"--against: {error}", file=sys.stderr)
        return 2
    return 0


def record(
    name: str, rows: list[dict[str, Any]], out: Path | None, shown: str | None = None
) -> None:
    """Print `rows` (or `shown`) and, with a folder, write `out/name.json` with the machine."""
    result = {"benchmark": name, "machine": machine.record(ROOT), "rows": rows}
    print(table(rows) if shown is None else shown)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(compact(result))
        print(f"\nwritten: {out / f'{name}.json'}")


def compact(result: dict[str, Any]) -> str:
    """The result as JSON with a line for each row: a new run's diff shows the rows that differ."""
    head = {key: value for key, value in result.items() if key != "rows"}
    opened = json.dumps(head, indent=1).removesuffix("\n}")
    rows = ",\n".join(f"  {json.dumps(row)}" for row in result["rows"])
    return f'{opened},\n "rows": [\n{rows}\n ]\n}}\n'


def ended(name: str, rows: list[dict[str, Any]], missed: list[str], args: Any) -> int:
    """Keep the rows, say which bars were missed, and give the exit code that `--check` asks for."""
    record(name, rows, args.out)
    for line in missed:
        print(f"{name}: {line}", file=sys.stderr)
    return int(args.check and bool(missed))


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table; the keys of the first row are the columns."""
    columns = list(rows[0])
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(_cell(row[column]) for column in columns) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def interval(row: dict[str, Any]) -> str:
    """ "1.12 [1.10, 1.15]", or with a "=" behind it: the sign says that it holds 1."""
    if row["low"] <= 1.0 <= row["high"]:
        return f"{row['ratio']:.3g} [{row['low']:.3g}, {row['high']:.3g}] ="
    return f"{row['ratio']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"


def microseconds(value: float) -> str:
    """ "12.3 µs", "4.56 ms", "1.23 s": three digits, in the unit that fits."""
    scale, unit = (1.0, "µs") if value < 1e3 else (1e-3, "ms") if value < 1e6 else (1e-6, "s")
    shown = value * scale
    return f"{shown:.0f} {unit}" if shown >= 100 else f"{shown:.3g} {unit}"
