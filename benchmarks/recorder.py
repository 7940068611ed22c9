"""What recording costs, against nothing, anomaly mode, dispatch modes, DebugMode and the profiler.

    python benchmarks/recorder.py [--out DIR] [--quick] [--check] [--threads N]
                                  [--clock wall|cpu] [--device cpu|cuda]
                                  [--subjects A,B] [--ways A,B]
    python benchmarks/recorder.py --plot DIR/recorder.json

Single ops and whole train steps. All ways take turns in one process; a ratio is the median of the
rounds' own ratios to nothing, with its 95 % interval. Entering a way, some first calls in it and
leaving it (the profiler's stop, too) are not timed; on the large steps a block is one step and all
of it is timed. One thread unless --threads says otherwise: on a machine with other work several
threads wait for each other, and longer than most ways take. There, too, `--clock cpu` times by the
processor time of the process, which is the same as long as nothing waits. Freed memory stays in
the process: to give it back and fault it in again is a large part of a GPT-2 step and most of its
noise; the ratios come out larger without it.

The subject `idle` is the cost of gradext where nothing is recorded, over torch alone; `memory` is
what an event takes. `--check` exits 1 when a bar is missed; `--plot` draws recorder.png beside the
JSON and measures nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import common
import peers
import plot_recorder
import recorder_child
import torch
from peers import SUBJECTS, WAYS

from gradext.mode_costs import timing

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclasses.dataclass(frozen=True)
class Bar:
    """The most that a way may take on a subject, as a multiple of the time with nothing."""

    subject: str
    way: str
    most: float


# What is aimed at on Python 3.11; a cost that nobody notices.
BARS = (
    Bar("functional", "full", 1.10),
    Bar("mlp", "full", 1.15),
    Bar("mlp", "light", 1.10),
    Bar("transformer-64", "full", 1.10),
    Bar("transformer-64", "light", 1.05),
    Bar("transformer-64-adamw", "full", 1.10),
    Bar("transformer-64-adamw", "light", 1.05),
    # Forwards alone, where each op notes that its result has no gradient.
    Bar("evaluation", "full", 1.25),
    Bar("evaluation", "light", 1.25),
    Bar("prefill", "full", 1.06),
    Bar("prefill", "light", 1.06),
    Bar("decode", "full", 1.06),
    Bar("decode", "light", 1.06),
    Bar("transformer-256", "full", 1.03),
    Bar("transformer-256", "light", 1.03),
    Bar("vit", "full", 1.03),
    Bar("vit", "light", 1.03),
    Bar("gpt2", "full", 1.03),
    Bar("gpt2", "light", 1.03),
)
# On every subject where anomaly mode adds more than half, full recording adds at most this share of
# what anomaly mode adds. Its cheaper form is meant, the one that does not look for NaN.
ANOMALY_ADDS = 1.5
SHARE_OF_ANOMALY = 1 / 7
# Nothing measurable: no slowdown of 1 % is certain, and one of 3 % would have been seen.
IDLE_LOW, IDLE_HIGH = 1.01, 1.03

IDLE_SUBJECTS = ("in-place", "mlp")
QUICK_SUBJECTS = ("in-place", "mlp", "decode")  # the others take longer, or want a quiet machine
MEMORY_EVENTS = 1_000_000
KEYS = (
    *("group", "subject", "way", "us", "times nothing", "low", "high", "added us"),
    *("of anomaly's added", "share low", "share high"),
    *("bytes per event", "events", "rounds", "calls", "threads", "clock"),
)


def row(**values: Any) -> dict[str, Any]:
    """A row with every key; what does not apply is None."""
    given = {key.replace("_", " "): value for key, value in values.items()}
    given["of anomaly's added"] = given.pop("share", None)
    assert set(given) <= set(KEYS), set(given) - set(KEYS)
    return {key: given.get(key) for key in KEYS}


def keep_memory() -> None:
    """Let malloc neither map blocks of their own nor shrink the heap, where it is glibc's."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_max = -1, -4  # malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, -1)


def measure(
    subject: peers.Subject,
    names: Iterable[str],
    *,
    scale: float,
    threads: int,
    clock: str,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """The rows of one subject under the named ways, "nothing" first."""
    wanted = [name for name in names if subject.ways is None or name in subject.ways]
    with torch.device(device):
        step = subject.build()
    cases = {
        name: timing.Case(step, block(WAYS[name], step, subject.block_seconds)) for name in wanted
    }
    # Before the first clock: some ways import things on first use, and an import is kept for good.
    for case in cases.values():
        with case.context():
            step()
    gc.collect()
    gc.freeze()  # what lives now is passed over by the collection after each block
    try:
        rows = []
        together = [name for name in wanted if not WAYS[name].apart]
        for group in (together, *(["nothing", name] for name in wanted if WAYS[name].apart)):
            measured = timing.compare(
                {name: cases[name] for name in group},
                # Two ways need less time than many, and no bar hangs on those that are apart.
                budget_seconds=common.budget(
                    subject.seconds * scale * (1.0 if group is together else 0.25)
                ),
                block_seconds=subject.block_seconds,
                synchronize=torch.cuda.synchronize if device == "cuda" else None,
                timer=CLOCKS[clock],
            )
            shown = [name for name in group if name != "nothing" or group is together]
            rows += rows_of(subject, measured, shown, threads=threads, clock=clock)
        return rows
    finally:
        gc.unfreeze()


def block(
    way: peers.Way, step: peers.Step, warm_seconds: float
) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """The context of one block of `way`."""

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        with way.context():
            # What the first calls in a way set up, a long run pays for once; and what the way
            # before it has left in the caches must not show.
            deadline = time.perf_counter() + warm_seconds
            while time.perf_counter() < deadline:
                step()
            yield
        # compare() has switched the collector off; a way that leaves cycles must not pile them up.
        gc.collect()

    return context


def rows_of(
    subject: peers.Subject,
    measured: timing.Comparison,
    names: Iterable[str],
    *,
    threads: int,
    clock: str,
) -> list[dict[str, Any]]:
    nothing = measured.seconds["nothing"]
    added = {
        name: [seconds - base for seconds, base in zip(values, nothing, strict=True)]
        for name, values in measured.seconds.items()
    }
    slow = "anomaly" in added and measured.ratio("anomaly", "nothing").value > ANOMALY_ADDS
    rows = []
    for name in names:
        ratio = measured.ratio(name, "nothing")
        share = None
        if slow and name != "nothing":
            pairs = zip(added[name], added["anomaly"], strict=True)
            share = timing.median_interval([ours / theirs for ours, theirs in pairs])
        rows.append(
            row(
                group=subject.group,
                subject=subject.label,
                way=WAYS[name].label,
                us=measured.time(name).value * 1e6,
                times_nothing=ratio.value,
                low=ratio.low,
                high=ratio.high,
                added_us=timing.median_interval(added[name]).value * 1e6,
                share=share and share.value,
                share_low=share and share.low,
                share_high=share and share.high,
                rounds=measured.rounds,
                calls=measured.calls,
                threads=threads,
                clock=clock,
            )
        )
    return rows


def idle_rows(samples: int) -> list[dict[str, Any]]:
    """Torch alone, gradext imported, and after a recording, in forks that take turns."""
    rows = []
    for name in IDLE_SUBJECTS:
        found = child("idle", name, samples)
        for state in recorder_child.STATES:
            ratio = timing.median_interval(found["ratios"][state])
            seconds = timing.median_interval(found["seconds"][state])
            rows.append(
                row(
                    group="idle",
                    subject=f"no recording: {SUBJECTS[name].label}",
                    way=state,
                    us=seconds.value * 1e6,
                    times_nothing=ratio.value,
                    low=ratio.low,
                    high=ratio.high,
                    rounds=ratio.samples,
                    calls=found["calls"],
                    threads=1,
                    clock="wall",
                )
            )
    return rows


def memory_rows(events: int) -> list[dict[str, Any]]:
    """Bytes per event: by how much the process grew, and the recorder's own account."""
    rows = []
    for event in recorder_child.EVENTS:
        found = child("memory", event, events)
        sizes = {
            "resident memory": found["bytes"] / found["events"],
            "the recorder's own account": found["account"],
        }
        for way, size in sizes.items():
            rows.append(
                row(
                    group="memory",
                    subject=f"a {event}",
                    way=way,
                    bytes_per_event=size,
                    events=found["events"],
                )
            )
    return rows


def child(*words: object) -> dict[str, Any]:
    command = [sys.executable, recorder_child.__file__, *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def missed(rows: list[dict[str, Any]]) -> list[str]:
    """One line for each bar that `rows` miss. A subject without rows was not asked for."""
    found = {(each["subject"], each["way"]): each for each in rows}
    subjects = {each["subject"] for each in rows}
    lines = []
    for bar in BARS:
        subject, way = SUBJECTS[bar.subject].label, WAYS[bar.way].label
        if subject not in subjects:
            continue
        if (subject, way) not in found:
            lines.append(f"{subject}, {way}: not measured")
        elif found[subject, way]["times nothing"] > bar.most:
            lines.append(f"{subject}, {way}: {spread(found[subject, way])} (at most {bar.most})")
    full, anomaly = WAYS["full"].label, WAYS["anomaly"].label
    for subject in (each.label for each in SUBJECTS.values() if each.label in subjects):
        slow, ours = found.get((subject, anomaly)), found.get((subject, full))
        if slow is None or ours is None:
            lines.append(f"{subject}, {full} against {anomaly}: not measured")
        elif slow["times nothing"] > ANOMALY_ADDS and ours["of anomaly's added"] > SHARE_OF_ANOMALY:
            share = ours["of anomaly's added"]
            lines.append(
                f"{subject}, {full}: adds {share:.3f} of what {anomaly} adds "
                f"(at most 1/{1 / SHARE_OF_ANOMALY:.0f})"
            )
    for each in rows:
        if each["group"] == "idle" and (each["low"] > IDLE_LOW or each["high"] > IDLE_HIGH):
            lines.append(
                f"{each['subject']}, {each['way']}: {spread(each)} (low at most {IDLE_LOW}, "
                f"high at most {IDLE_HIGH})"
            )
    return lines


def spread(each: dict[str, Any]) -> str:
    return f"{each['times nothing']:.3f} [{each['low']:.3f}, {each['high']:.3f}] times nothing"


def names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """An argparse type: some of `known`, by commas, in the order of `known`."""
    known = list(known)

    def parse(text: str) -> list[str]:
        asked = text.split(",")
        for name in asked:
            if name not in known:
                raise argparse.ArgumentTypeError(f"no {name!r}; there are {', '.join(known)}")
        return [name for name in known if name in asked]

    return parse


def main() -> int:
    ask = common.parser(__doc__ or "", suite=True)
    ask.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    ask.add_argument("--plot", type=Path, metavar="JSON", help="draw an earlier result and stop")
    ask.add_argument("--threads", type=int, default=1, help="torch.set_num_threads (default: 1)")
    ask.add_argument("--clock", choices=CLOCKS, default="wall", help="what times (default: wall)")
    # The quick ones that can fail come first.
    all_subjects = ["idle", "memory", *SUBJECTS]
    ask.add_argument("--subjects", type=names(all_subjects))
    ask.add_argument("--ways", type=names(WAYS), default=list(WAYS))
    args = ask.parse_args()
    if args.plot is not None:
        draw(ask, args.plot)
        return 0
    if args.threads < 1:
        ask.error(f"--threads must be at least 1, got {args.threads}")
    device = common.device(args)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    keep_memory()
    ways = ["nothing", *(way for way in args.ways if way != "nothing")]
    # A quick run compares those that take seconds to start or to end with one subject only.
    together = [way for way in ways if not WAYS[way].apart]
    rows: list[dict[str, Any]] = []
    for name in args.subjects or (QUICK_SUBJECTS if args.quick else all_subjects):
        if name == "idle":
            found = idle_rows(6 if args.quick else 40)
        elif name == "memory":
            found = memory_rows(MEMORY_EVENTS)
        else:
            found = measure(
                SUBJECTS[name],
                ways if not args.quick or name == QUICK_SUBJECTS[0] else together,
                scale=0.05 if args.quick else 1.0,
                threads=args.threads,
                clock=args.clock,
                device=device,
            )
        print(f"{plot_recorder.summary(found)}\n", file=sys.stderr, flush=True)
        rows += found
    code = common.finish("recorder", rows, args)
    print(f"\n{plot_recorder.summary(rows)}")
    if args.out is not None:
        draw(ask, args.out / "recorder.json")
    lines = missed(rows) if args.check else []
    for line in lines:
        print(f"missed: {line}", file=sys.stderr)
    return code or int(bool(lines))


def draw(ask: argparse.ArgumentParser, path: Path) -> None:
    try:
        print(f"written: {plot_recorder.draw_file(path)}")
    except ImportError as error:
        ask.error(f"no picture: {error}; run: pip install 'gradext[bench]'")
    except (OSError, ValueError) as error:
        ask.error(f"no picture: {error}")


if __name__ == "__main__":
    sys.exit(main())
