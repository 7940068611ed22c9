"""What a full journal costs: ten million events in 32 MiB, the first tenth beside the last.

    python benchmarks/load.py [--quick] [--check] [--out DIR]

For each kind of event, and for what grows beside events (tensors, stacks, code, shapes), a process
of its own: processor time of an event in the first and in the last tenth, how far the resident
memory has grown since the first 300,000 events, beyond what the same program grows without gradext,
what the journal and the table of stacks hold at the end, and what was dropped. A fault that is made
then must be explained.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch

import gradext

MIB = 1 << 20
MEMORY = 32
EVENTS, QUICK_EVENTS = 10_000_000, 500_000
COST_BAR = 1.5  # the last tenth over the first
GROWN_BAR = 8  # MiB: what is full grows no more, but for the allocator's slack
TENTHS = 10

x = torch.zeros(4)
weight = torch.ones(1, requires_grad=True)
leaf = torch.zeros(3, requires_grad=True)
matrix = torch.zeros(2000, 50)
many = [torch.zeros(1) for _ in range(300_000)]
position = 0


def write(tensor: torch.Tensor) -> None:
    tensor.neg_()


def writes(count: int) -> None:
    for _ in range(count):
        x.neg_()


def writes_to_many_tensors(count: int) -> None:
    for number in range(position, position + count):
        many[number % len(many)].neg_()


def writes_to_new_tensors(count: int) -> None:
    for _ in range(count):
        torch.zeros(1).neg_()


def writes_of_many_shapes(count: int) -> None:
    for number in range(position, position + count):
        matrix.as_strided((1 + number % 1000, 1 + number // 1000 % 49), (50, 1)).neg_()


def saves(count: int) -> None:
    for _ in range(count // 2):
        weight.sin()
        weight.cos()


def views(count: int) -> None:
    with torch.no_grad():
        for _ in range(count):
            leaf[0]


def births(count: int) -> None:
    with torch.inference_mode():
        for number in range(position, position + count):
            many[number % len(many)] = torch.ones(1)


def cuts(count: int) -> None:
    for _ in range(count):
        weight.detach()


def cuts_that_live(count: int) -> None:
    for number in range(position, position + count):
        many[number % len(many)] = weight.detach()


def crossings(count: int) -> None:
    scaled = weight * 1.37
    for _ in range(count // 2):
        torch.tensor(scaled.item())


def backwards(count: int) -> None:
    for _ in range(count):
        weight.sin().backward()


def new_code(count: int) -> None:
    for number in range(position, position + count):
        code = write.__code__.replace(co_firstlineno=number + 1)
        types.FunctionType(code, globals())(x)


def descend(depth: int, path: int) -> None:
    if depth == 0:
        x.neg_()
    elif path & 1:
        descend(depth - 1, path >> 1)
    else:
        descend(depth - 1, path >> 1)


def new_stacks(count: int) -> None:
    for number in range(position, position + count):
        descend(20, number * 7919)


# How many times fewer events than of the cheapest kind: these take that much longer.
KINDS: dict[Callable[[int], None], int] = {
    writes: 1,
    writes_to_many_tensors: 1,
    writes_to_new_tensors: 2,
    writes_of_many_shapes: 4,
    saves: 1,
    views: 1,
    births: 1,
    cuts: 1,
    cuts_that_live: 1,
    crossings: 1,
    backwards: 10,
    new_code: 2,
    new_stacks: 10,
}


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(kind: Callable[[int], None], count: int) -> tuple[list[float], int]:
    """Seconds of each tenth, and how far the memory has grown at most."""
    global position
    kind(max(count // 100, len(many) if count > len(many) else 100))
    seconds, before, most = [], resident(), 0
    for _ in range(TENTHS):
        start = time.process_time()
        kind(count // TENTHS)
        seconds.append(time.process_time() - start)
        position += count // TENTHS
        most = max(most, resident() - before)
    return seconds, most


def is_explained(recording: Any) -> bool:
    """Whether a fault that is made now is told with both of its lines."""
    hidden = torch.ones(3, requires_grad=True).exp()
    hidden.mul_(2)
    try:
        hidden.sum().backward()
    except RuntimeError as error:
        (found,) = gradext.explain(error, recording)
        sites = (*found.culprits, *found.victims)
        return [site.frame.code for site in sites] == [
            "hidden.mul_(2)",
            "hidden = torch.ones(3, requires_grad=True).exp()",
        ]
    return False


def here(name: str, count: int, is_recorded: bool) -> dict[str, Any]:
    """In this process, which is there for nothing else."""
    kind = globals()[name]
    if not is_recorded:
        return {"grown": run(kind, count)[1]}
    with gradext.record(memory=MEMORY) as recording:
        seconds, grown = run(kind, count)
        memory = recording.memory
        return {
            "seconds": seconds,
            "grown": grown,
            "held": memory["held_bytes"],
            "stacks": memory["stack_bytes"],
            "dropped": sum(recording.dropped.values()),
            "explained": is_explained(recording),
        }


def measure(kind: Callable[[int], None], count: int) -> dict[str, Any]:
    found: dict[bool, dict[str, Any]] = {}
    for is_recorded in (False, True):
        asked = json.dumps([kind.__name__, count, is_recorded])
        done = subprocess.run(
            [sys.executable, __file__, "--here", asked], check=True, capture_output=True, text=True
        )
        found[is_recorded] = json.loads(done.stdout)
    recorded = found[True]
    each = [taken / (count / TENTHS) * 1e6 for taken in recorded["seconds"]]
    return {
        "events": kind.__name__.replace("_", " "),
        "count": count,
        "first": each[0],
        "last": each[-1],
        "ratio": each[-1] / each[0],
        "grown": max(recorded["grown"] - max(found[False]["grown"], 0), 0) / MIB,
        "held": recorded["held"] / MIB,
        "stacks": recorded["stacks"] / MIB,
        "dropped": recorded["dropped"],
        "explained": recorded["explained"],
    }


def over(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each bar that a row misses."""
    missed = []
    for row in rows:
        if row["ratio"] > COST_BAR:
            missed.append(f"{row['events']}: the last tenth takes {row['ratio']:.2f} of the first")
        if row["held"] > MEMORY or row["stacks"] > MEMORY or row["grown"] > GROWN_BAR:
            missed.append(f"{row['events']}: {row['held']:.0f} MiB held, {row['grown']:.0f} grown")
        if not row["explained"]:
            missed.append(f"{row['events']}: the fault at the end is not explained")
    return missed


def main(argv: list[str] | None = None) -> int:
    ask = common.parser(__doc__ or "")
    ask.add_argument("--check", action="store_true", help="exit code 1 where a bar is not kept")
    ask.add_argument("--here", help=common.INTERNAL)
    ask.add_argument("--events", type=int, help=common.INTERNAL)
    args = ask.parse_args(argv)
    torch.set_num_threads(1)
    if args.here is not None:
        print(json.dumps(here(*json.loads(args.here))))
        return 0
    if not Path("/proc/self/statm").exists():
        common.refuse("reads /proc/self/statm, which this system does not have")
    events = args.events or (QUICK_EVENTS if args.quick else EVENTS)
    rows = [measure(kind, events // fewer) for kind, fewer in KINDS.items()]
    return common.ended("load", rows, over(rows), args)


if __name__ == "__main__":
    sys.exit(main())
