"""What `gradext fix` is worth: how many programs it mends, none of them wrongly, and its time.

    python benchmarks/fix.py [--quick] [--check] [--out DIR]

Each program of fix_programs.py fails, and has a twin: what its author would write. `gradext fix`
is run on it, and each of its first two patches is run again, with the gradients of every backward
pass held against the twin's. Processor time, of all processes; the bar is that of the plain run
and 3 s, which is what it takes to import torch, for each patch that was tried and two runs more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import torch
from fix_programs import PROGRAMS, Program

from gradext.fix import trial

EACH = 3.0  # seconds for each run, on top of the plain one
SHARE_GX101, SHARE = 0.8, 0.6  # of programs that the first two patches mend


def run(words: Sequence[str], folder: Path) -> float:
    """Processor time of a program, and of the processes that it waited for."""
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return used.ru_utime + used.ru_stime


def gradients(path: Path) -> list[list[float]] | None:
    """Of each backward pass, the sums of its gradients; None of a program that fails."""
    ran = trial.run(trial.Program((str(path),)), limit=300)
    if ran.exit_code != 0:
        return None
    return [sorted(_size(g) for g in kept if g is not None) for kept in ran.values]


def _size(gradient: torch.Tensor) -> float:
    return float(f"{gradient.double().abs().sum().item():.4e}")


def measure(program: Program, folder: Path) -> dict[str, Any]:
    """The row of one program."""
    script, twin, patched = (folder / name for name in ("train.py", "twin.py", "patched.py"))
    script.write_text(program.broken)
    twin.write_text(program.twin)
    plain = run(["train.py"], folder)
    seconds = run(["-m", "gradext", "fix", "--json", "out.json", "train.py"], folder)
    found = json.loads((folder / "out.json").read_text())["candidates"]
    wanted = gradients(twin)
    assert wanted, f"the twin of {program.name!r} fails"
    place, is_wrong = None, False
    for number, one in enumerate([one for one in found if one["level"] != "fails"][:2], 1):
        (text,) = one["files"].values()
        patched.write_text(text)
        same = gradients(patched) == wanted
        place = place or (number if same else None)
        is_wrong |= one["level"] == "verified" and not same
    return {
        "program": program.name,
        "code": program.code,
        "answer": found[0]["level"] if found else "none",
        "patch like the twin": place,
        "verified and wrong": is_wrong,
        "tried": len(found),
        "plain run, s": plain,
        "gradext fix, s": seconds,
        "bar, s": (len(found) + 2) * (plain + EACH),
    }


def missed(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each bar that is not reached."""
    lines = [f"{row['program']}: verified, and wrong" for row in rows if row["verified and wrong"]]
    for row in rows:
        if row["gradext fix, s"] > row["bar, s"]:
            lines.append(f"{row['program']}: {row['gradext fix, s']:.1f} s of {row['bar, s']:.1f}")
    for what, least, some in (
        ("GX101", SHARE_GX101, [row for row in rows if row["code"] == "GX101"]),
        ("all kinds", SHARE, rows),
    ):
        mended = sum(row["patch like the twin"] is not None for row in some)
        if mended < least * len(some):
            lines.append(f"{what}: {mended} of {len(some)} are mended")
    return lines


def main() -> int:
    ask = common.parser(__doc__ or "")
    ask.add_argument("--check", action="store_true", help="exit 1 where a bar is missed")
    args = ask.parse_args()
    rows = []
    for program in PROGRAMS[:3] if args.quick else PROGRAMS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(program, Path(folder).resolve()))
    return common.ended("fix", rows, missed(rows), args)


if __name__ == "__main__":
    sys.exit(main())
