"""What it costs that a program goes wrong: the first time, and each time after that.

    python benchmarks/findings.py [--quick] [--check] [--out DIR]

`again`: a step that goes wrong in the same place each time, under gradext, over the same step
without gradext; the difference is what one more occurrence of a known finding costs, recording
included. `first`: the step on which a finding is explained, in a process of its own with a million
objects and with a source of 13,000 lines, over the same step without gradext. Where nothing is
wrong but a check has to look each time, the same two numbers. `large graph`: a backward that fails
over 320,000 nodes that still hold all their saved tensors, in a process of its own. Processor time.
The faults, at least one for each code that a running program meets, are in findings_faults.py.
"""

from __future__ import annotations

import contextlib
import functools
import json
import linecache
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
from findings_faults import FAULTS, HEAD

import gradext
from gradext.mode_costs import timing
from gradext.recording import incidents

OBJECTS = 1_000_000
LINES = 13_000
AGAIN_BAR = 1e-4  # seconds: what one more occurrence of a known finding may cost
FIRST_BAR = 0.2
NODES = 320_000
LARGE_BAR = 2.0
PROCESSES, QUICK_PROCESSES = 5, 3


def source(fault: str, lines: int = 0) -> str:
    """A module with `step(x)`, in the middle of a class of other methods up to `lines` lines."""
    body = FAULTS[fault].text.splitlines()
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


def load(fault: str, folder: Path, told: Callable[[Any], object], lines: int = 0) -> Any:
    """`step` of a new module, made now: what its lines make is recorded if a recording runs."""
    path = folder / f"program_{lines}.py"
    text = source(fault, lines)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
        linecache.checkcache(str(path))
    space: dict[str, Any] = {"__name__": "program", "told": told}
    exec(_compiled(text, str(path)), space)
    return space["step"]


@functools.lru_cache(maxsize=4)
def _compiled(text: str, file: str) -> Any:
    return compile(text, file, "exec")


def nothing(error: Any) -> None:
    """What a program tells of an error without gradext."""


@contextlib.contextmanager
def switched_on(fault: str, folder: Path, lines: int = 0) -> Any:
    """(step, what is heard of it), as `gradext run` and `gradext run --guard` do it."""
    heard: list[tuple[Any, ...]] = []
    forget = incidents.subscribe(lambda incident: heard.append(incident.diagnoses))
    guard = gradext.guard() if FAULTS[fault].how == "guard" else contextlib.nullcontext()
    try:
        with gradext.record(), guard:
            step = load(fault, folder, lambda error: heard.append(gradext.explain(error)), lines)
            yield step, heard
    finally:
        forget()


def check(fault: str, heard: list[tuple[Any, ...]], steps: int) -> None:
    """Raises RuntimeError where not each step has told of its fault, and of nothing else."""
    code = FAULTS[fault].code
    wanted = [] if code is None else [code] * steps
    if (codes := [diagnoses[0].code for diagnoses in heard]) != wanted:
        raise RuntimeError(f"{fault}: {len(codes)} of {len(wanted)} were found, {set(codes)}")


def again(fault: str, folder: Path, seconds: float) -> dict[str, Any]:
    x = torch.linspace(0.0, 1.0, 8, requires_grad=True)
    without = load(fault, folder, nothing)

    def run(step: Callable[[Any], None], calls: int) -> float:
        start = 0.0
        for number in range(calls + 1):  # the first one, on the same line, is not timed
            if number == 1:
                start = time.process_time()
            step(x)
        return time.process_time() - start

    def watched(calls: int) -> float:
        with switched_on(fault, folder) as (step, heard):
            taken = run(step, calls)
        check(fault, heard, calls + 1)
        return taken

    cases = {
        "plain": timing.Case(lambda: without(x), block=lambda calls: run(without, calls)),
        "gradext": timing.Case(lambda: without(x), block=watched),
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
    """Seconds of the first finding in this process, which does nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        without = load(fault, Path(folder), nothing, lines)
        x = torch.linspace(0.0, 1.0, 8, requires_grad=True)
        kept = [[number] for number in range(objects)]
        plain = []
        for _ in range(20):
            start = time.process_time()
            without(x)
            plain.append(time.process_time() - start)
        with switched_on(fault, Path(folder), lines) as (step, heard):
            start = time.process_time()
            step(x)
            taken = time.process_time() - start
        check(fault, heard, 1)
        if len(kept) != objects:
            raise RuntimeError(f"{len(kept)} objects, not {objects}")
        return taken - statistics.median(plain)


def child(option: str, asked: Any) -> float:
    """The seconds that a process of its own prints."""
    done = subprocess.run(
        [sys.executable, __file__, option, json.dumps(asked)],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout)


def first(fault: str, processes: int, objects: int, lines: int) -> dict[str, Any]:
    seconds = [child("--first", [fault, objects, lines]) for _ in range(processes)]
    return row(fault, "first", timing.median_interval(seconds), FIRST_BAR)


SHAPES = ("one after another", "side by side")


def large_here(nodes: int, shape: str) -> float:
    """Seconds of an error over a large graph, in this process, which does nothing else."""

    def failing() -> float:
        x = torch.linspace(0.0, 1.0, 8, requires_grad=True)
        h, y = x, x.exp()
        if shape == SHAPES[0]:
            for _ in range(nodes // 4):
                h = ((h * x).sin() + x).tanh()
        else:
            h = torch.stack([((x * x).sin() + x).tanh() for _ in range(nodes // 4)])
        loss = (h * y).sum()
        y.add_(1)
        start = time.process_time()
        try:
            loss.backward()
        except RuntimeError:
            return time.process_time() - start
        raise RuntimeError("the backward did not fail")

    heard: list[Any] = []
    plain = failing()
    forget = incidents.subscribe(lambda incident: heard.append(incident.diagnoses))
    try:
        with gradext.record():
            taken = failing()
    finally:
        forget()
    if [found.code for (found,) in heard] != ["GX101"] or len(heard[0][0].culprits) != 1:
        raise RuntimeError(f"the error was not explained: {heard}")
    return taken - plain


def large(shape: str, processes: int, nodes: int) -> dict[str, Any]:
    seconds = [child("--large", [nodes, shape]) for _ in range(processes)]
    what = f"GX101, {nodes:,} nodes {shape}"
    return row(what, "first", timing.median_interval(seconds), LARGE_BAR)


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
    ask.add_argument("--large", help=common.INTERNAL)
    ask.add_argument("--nodes", type=int, default=NODES, help=common.INTERNAL)
    ask.add_argument("--objects", type=int, default=OBJECTS, help=common.INTERNAL)
    ask.add_argument("--lines", type=int, default=LINES, help=common.INTERNAL)
    args = ask.parse_args(argv)
    torch.set_num_threads(1)
    if args.first is not None:
        print(first_here(*json.loads(args.first)))
        return 0
    if args.large is not None:
        print(large_here(*json.loads(args.large)))
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for fault in FAULTS:
            rows.append(again(fault, Path(folder), 1.5 if args.quick else 5))
    processes = QUICK_PROCESSES if args.quick else PROCESSES
    for fault in FAULTS:
        rows.append(first(fault, processes, args.objects, args.lines))
    for shape in SHAPES:
        rows.append(large(shape, processes, args.nodes))
    return common.ended("findings", rows, over(rows), args)


if __name__ == "__main__":
    sys.exit(main())
