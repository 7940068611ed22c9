"""What it costs that a program goes wrong: the first time, and each time after that.

    python benchmarks/findings.py [--quick] [--check] [--out DIR]

`again`: a step that goes wrong in the same place each time, under gradext, over the same step
without gradext; the difference is what one more occurrence of a known finding costs, recording
included. `first`: the step on which a finding is explained, in a process of its own with a million
objects and with a source of 13,000 lines, over the same step without gradext. Processor time.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch

import gradext
from gradext import timing, watch

OBJECTS = 1_000_000
LINES = 13_000
AGAIN_BAR = 1e-4  # seconds: what one more occurrence of a known finding may cost
FIRST_BAR = 0.2
PROCESSES, QUICK_PROCESSES = 7, 3
BLOCK = 50  # steps

# What goes wrong: a step as source, and what gradext is switched on with. `x` is the program's.
HEAD = "import torch\n\n\ndef layers(x):\n    return x.exp() * 2.0\n\n\n"
FAULTS: dict[str, tuple[str, str]] = {
    "a caught error (GX101)": (
        "record",
        """
        hidden = x.exp()
        loss = hidden.sum()
        hidden.add_(1.0)
        try:
            loss.backward()
        except RuntimeError:
            pass
        """,
    ),
    "a caught error on what no variable holds (GX101)": (
        "record",
        """
        parts = [x.exp()]
        loss = parts[0].sum()
        parts.pop().add_(1.0)
        try:
            loss.backward()
        except RuntimeError:
            pass
        """,
    ),
    "a graph that is used twice (GX302)": (
        "record",
        """
        loss = (x.exp() * x).sum()
        loss.backward()
        try:
            loss.backward()
        except RuntimeError:
            pass
        """,
    ),
    "a silent write through .data (GX401)": (
        "record",
        """
        hidden = x.exp()
        loss = hidden.sum()
        hidden.data.add_(1.0)
        loss.backward()
        """,
    ),
    "a write by numpy, under a guard (GX401)": (
        "guard",
        """
        hidden = x.exp()
        loss = hidden.sum()
        hidden.detach().numpy()[0] = 2.0
        loss.backward()
        """,
    ),
}


def source(fault: str, lines: int = 0) -> str:
    """A module with `step(x)`, in the middle of a class of other methods up to `lines` lines."""
    body = [line[8:] for line in FAULTS[fault][1].strip("\n").splitlines()]
    if not lines:
        return HEAD + "def step(x):\n" + "".join(f"    {line}\n" for line in body)
    text = [HEAD, "class Program:\n"]
    filler = (
        "    def method_{n}(self, a, b):\n        c = [a, b, {n}]\n        return c[0] + c[1]\n\n"
    )
    count = (lines - len(body)) // 4
    for number in range(count):
        if number == count // 2:
            text += ["    def step(self, x):\n", *(f"        {line}\n" for line in body), "\n"]
        text.append(filler.format(n=number))
    return "".join([*text, "\ndef step(x):\n    Program().step(x)\n"])


def load(fault: str, folder: Path, lines: int = 0) -> Callable[[Any], None]:
    path = folder / "program.py"
    path.write_text(source(fault, lines))
    space: dict[str, Any] = {"__name__": "program"}
    exec(compile(path.read_text(), str(path), "exec"), space)
    step: Callable[[Any], None] = space["step"]
    return step


@contextlib.contextmanager
def switched_on(how: str) -> Any:
    """As `gradext run` and `gradext run --guard` do it: somebody hears of what is found."""
    heard: list[Any] = []
    forget = watch.subscribe(heard.append)
    with gradext.record(), gradext.guard() if how == "guard" else contextlib.nullcontext():
        yield heard
    forget()


def again(fault: str, folder: Path, seconds: float) -> dict[str, Any]:
    step = load(fault, folder)
    x = torch.linspace(0.0, 1.0, 8, requires_grad=True)

    def plain(calls: int) -> float:
        start = 0.0
        for number in range(calls + 1):  # the first one, on the same line, is not timed
            if number == 1:
                start = time.process_time()
            step(x)
        return time.process_time() - start

    def watched(calls: int) -> float:
        with switched_on(FAULTS[fault][0]) as heard:
            taken = plain(calls)
        if len(heard) != calls + 1:
            raise RuntimeError(f"{fault}: {len(heard)} of {calls + 1} were found")
        return taken

    cases = {
        "plain": timing.Case(lambda: step(x), block=plain),
        "gradext": timing.Case(lambda: step(x), block=watched),
    }
    measured = timing.compare(cases, budget_seconds=seconds, block_seconds=0.002)
    pairs = zip(measured.seconds["gradext"], measured.seconds["plain"], strict=True)
    return row(fault, "again", timing.median_interval([a - b for a, b in pairs]), AGAIN_BAR)


def row(fault: str, which: str, cost: timing.Estimate, bar: float) -> dict[str, Any]:
    return {
        "what": fault,
        "time": which,
        "milliseconds": cost.value * 1e3,
        "low": cost.low * 1e3,
        "high": cost.high * 1e3,
        "bar": bar * 1e3,
        "samples": cost.samples,
    }


def first_here(fault: str, objects: int, lines: int) -> float:
    """In this process, which is there for nothing else: seconds of the first finding."""
    with tempfile.TemporaryDirectory() as folder:
        step = load(fault, Path(folder), lines)
        x = torch.linspace(0.0, 1.0, 8, requires_grad=True)
        kept = [[number] for number in range(objects)]
        plain = []
        for _ in range(20):
            start = time.process_time()
            step(x)
            plain.append(time.process_time() - start)
        with switched_on(FAULTS[fault][0]) as heard:
            start = time.process_time()
            step(x)
            taken = time.process_time() - start
        if len(heard) != 1 or len(kept) != objects:
            raise RuntimeError(f"{fault}: {len(heard)} found, not 1")
        return taken - statistics.median(plain)


def first(fault: str, processes: int, objects: int, lines: int) -> dict[str, Any]:
    seconds = []
    for _ in range(processes):
        asked = json.dumps([fault, objects, lines])
        done = subprocess.run(
            [sys.executable, __file__, "--first", asked],
            check=True,
            capture_output=True,
            text=True,
        )
        seconds.append(float(done.stdout))
    return row(fault, "first", timing.median_interval(seconds), FIRST_BAR)


def over(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each row that is over its bar."""
    return [
        f"{r['what']}, {r['time']}: {r['milliseconds']:.3g} ms, and {r['bar']:.3g} ms are allowed"
        for r in rows
        if r["milliseconds"] > r["bar"]
    ]


def main(argv: list[str] | None = None) -> int:
    ask = common.parser(__doc__ or "")
    ask.add_argument("--check", action="store_true", help="exit code 1 where a bar is not kept")
    ask.add_argument("--first", help=common.INTERNAL)
    ask.add_argument("--objects", type=int, default=OBJECTS, help=common.INTERNAL)
    ask.add_argument("--lines", type=int, default=LINES, help=common.INTERNAL)
    args = ask.parse_args(argv)
    torch.set_num_threads(1)
    if args.first is not None:
        print(first_here(*json.loads(args.first)))
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for fault in FAULTS:
            rows.append(again(fault, Path(folder), 2 if args.quick else 10))
    processes = QUICK_PROCESSES if args.quick else PROCESSES
    for fault in FAULTS:
        rows.append(first(fault, processes, args.objects, args.lines))
    common.record("findings", rows, args.out)
    missed = over(rows)
    for line in missed:
        print(f"findings: {line}", file=sys.stderr)
    return int(args.check and bool(missed))


if __name__ == "__main__":
    sys.exit(main())
