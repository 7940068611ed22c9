"""What `gradext run` costs a program of many tiny ops, and a Python thread beside it.

    python benchmarks/rollout.py [--quick] [--check] [--out DIR]

`rollout` and `numbers` are reinforcement learning (rollout_child.py), written in two ways: tiny
tensors without grad mode, and values that go to numpy and come back. Measured is processor time
under `gradext run` over that under `python`, in processes in turns: of the whole process with the
imports, and of the program's own steps. `thread` is a Python thread that counts while another one
writes tensors in place: what a count takes of its processor time, and how much of both threads'
time it gets, each under `run` over plain. `older thread` is the same beside `gradext.record()`,
with a thread that was there before the recording: it is slower until it calls something
(docs/recorder.md says why).

`--check` exits with 1 where the whole process takes more than 1.25 times under `run`.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import common
import torch

import gradext
from gradext.mode_costs import timing

CHILD = Path(__file__).with_name("rollout_child.py")
BAR = 1.25  # what the whole program may take, over plain
SIZES = {"rollout": (1024, 8192), "numbers": (1024, 8192)}
THREAD_SECONDS = 2
PROCESSES, QUICK_PROCESSES = 9, 3


def once(subject: str, size: int, recorded: bool) -> dict[str, Any]:
    """One process: what it printed, and its whole processor time."""
    command = [sys.executable, *(("-m", "gradext", "run") if recorded else ())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*command, str(CHILD), subject, str(size)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.stderr:
        raise RuntimeError(f"{subject}: gradext has something to say: {done.stderr[:500]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found["whole"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return found


def in_turns(subject: str, size: int, processes: int) -> list[tuple[dict[str, Any], ...]]:
    """(plain, recorded) of so many pairs of processes."""
    pairs = []
    for turn in range(processes):
        order = (False, True) if turn % 2 else (True, False)
        found = {recorded: once(subject, size, recorded) for recorded in order}
        pairs.append((found[False], found[True]))
    return pairs


def row(what: str, size: int, of: str, ratios: list[float], plain: list[float]) -> dict[str, Any]:
    ratio, base = timing.median_interval(ratios), timing.median_interval(plain)
    return {
        "what": what,
        "size": size,
        "of": of,
        "ratio": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "plain": base.value,
        "bar": BAR if of == "whole process" else None,
        "processes": 2 * len(ratios),
    }


def program(subject: str, size: int, processes: int) -> list[dict[str, Any]]:
    pairs = in_turns(subject, size, processes)
    if any(plain["loss"] != recorded["loss"] for plain, recorded in pairs):
        raise RuntimeError(f"{subject}: the two did not compute the same")
    rows = []
    parts = {"whole": "whole process", "seconds": "steps", "playing": "playing"}
    for key, of in {**parts, "learning": "learning"}.items():
        ratios = [recorded[key] / plain[key] for plain, recorded in pairs]
        rows.append(row(subject, size, of, ratios, [plain[key] for plain, _ in pairs]))
    return rows


def thread(processes: int) -> list[dict[str, Any]]:
    pairs = in_turns("thread", THREAD_SECONDS, processes)
    rows = []
    for key, of in (
        ("count_seconds", "processor time of one count"),
        ("share", "share of the counting thread"),
        ("write_seconds", "processor time of one write"),
    ):
        ratios = [recorded[key] / plain[key] for plain, recorded in pairs]
        rows.append(row("thread", THREAD_SECONDS, of, ratios, [plain[key] for plain, _ in pairs]))
    return rows


def count_beside(seconds: float, recorded: bool) -> float:
    """Processor seconds of one count, by a thread that is older than the recording."""
    is_over = False
    found = 0.0

    def count() -> None:
        nonlocal found
        began, at = time.thread_time(), 0
        while not is_over:
            for _ in range(1000):
                at += 1
        found = (time.thread_time() - began) / at

    counting = threading.Thread(target=count)
    values, step = torch.zeros(64), torch.ones(64)
    counting.start()
    try:
        with gradext.record() if recorded else contextlib.nullcontext():
            ends = time.perf_counter() + seconds
            while time.perf_counter() < ends:
                values.add_(step)
            is_over = True
            counting.join()
    finally:
        is_over = True
    return found


def older_thread(samples: int) -> list[dict[str, Any]]:
    pairs = [(count_beside(0.5, False), count_beside(0.5, True)) for _ in range(samples)]
    ratios, plain = [b / a for a, b in pairs], [a for a, _ in pairs]
    return [
        {
            **row("older thread", 0, "processor time of one count", ratios, plain),
            "processes": 1,
        }
    ]


def over(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each row that is over its bar."""
    return [
        f"{each['what']} {each['size']}: {each['ratio']:.2f} times the processor time of plain, "
        f"not {each['bar']}"
        for each in rows
        if each["bar"] is not None and each["ratio"] > each["bar"]
    ]


def main() -> int:
    ask = common.parser(__doc__ or "")
    ask.add_argument("--check", action="store_true", help="exit 1 when the bar is missed")
    args = ask.parse_args()
    processes = QUICK_PROCESSES if args.quick else PROCESSES
    rows: list[dict[str, Any]] = []
    for subject, sizes in SIZES.items():
        for size in sizes[:1] if args.quick else sizes:
            rows += program(subject, size, processes)
    rows += thread(processes)
    rows += older_thread(processes)
    common.record("rollout", rows, args.out)
    missed = over(rows)
    for line in missed if args.check else ():
        print(line, file=sys.stderr)
    return 1 if args.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
