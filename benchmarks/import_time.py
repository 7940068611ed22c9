"""What `import gradext` adds to `import torch`, in new processes.

    python benchmarks/import_time.py [--start] [--out DIR] [--quick]

Both are read from one process's own `-X importtime` account, so a slow moment of the machine slows
both; the number that counts is the ratio, and the bound (50 ms) is checked with `--check`.
`--start` measures instead what the line of gradext-autostart.pth adds to `python -c pass`, and
`--run` what `gradext run` adds to it, as processor time of processes with and without, in turns.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import common

import gradext
from gradext.mode_costs import timing

BOUND_MS = 50.0


def once() -> tuple[float, float]:
    """Milliseconds of `import torch` and of `import gradext` after it."""
    command = [sys.executable, "-X", "importtime", "-c", "import torch; import gradext"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.findall(r"\|\s+(\d+) \| (torch|gradext)$", done.stderr, re.M)
    times = {name: int(microseconds) / 1e3 for microseconds, name in found}
    return times["torch"], times["gradext"]


def start_seconds(folder: str, *words: str) -> float:
    """Processor time of `python … -c pass` with `folder` in front of the path."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("GRADEXT_")}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # who runs it once a day has it compiled
    command = [sys.executable, *words, "-c", "pass"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env={**env, "PYTHONPATH": folder}, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def added_row(
    what: str, plain_column: str, samples: list[list[float]], processes: int
) -> dict[str, object]:
    """One row of a result: `samples` are pairs of milliseconds, plain and with gradext."""
    plain, ours = (timing.median_interval(values) for values in zip(*samples, strict=True))
    added = timing.median_interval([b - a for a, b in samples])
    return {
        "what": what,
        "ms": ours.value,
        plain_column: plain.value,
        "added, ms": added.value,
        "low": added.low,
        "high": added.high,
        "processes": processes,
    }


def start(rounds: int, out: Path | None) -> None:
    # A checkout has no .pth file: sitecustomize, which site runs next, stands in for it.
    line = Path(__file__).parents[1] / "build_tools" / "gradext-autostart.pth"
    with tempfile.TemporaryDirectory() as without, tempfile.TemporaryDirectory() as having:
        Path(without, "sitecustomize.py").write_text("")
        Path(having, "sitecustomize.py").write_text(f"exec({line.read_text()!r})\n")
        per_sample = 10
        samples = []
        for _ in range(rounds):
            pair = [0.0, 0.0]
            for turn in range(2 * per_sample):
                which = (turn + turn // 2) % 2  # a b b a
                pair[which] += start_seconds(having if which else without)
            samples.append([1e3 * total / per_sample for total in pair])
    what = "python -c pass, with the line of the .pth file"
    rows = [added_row(what, "without it, ms", samples, 2 * per_sample * rounds)]
    common.record("start_up", rows, out)


def run(rounds: int, out: Path | None) -> None:
    package = str(Path(gradext.__file__).parents[1])
    ways: tuple[tuple[str, ...], ...] = ((), ("-m", "gradext", "run"))
    start_seconds(package, *ways[1])  # compiles, and reads the files from disk
    samples = []
    for number in range(rounds):
        pair = [0.0, 0.0]
        for turn in range(4):
            which = (number + turn + turn // 2) % 2  # a b b a
            pair[which] += 1e3 * start_seconds(package, *ways[which]) / 2
        samples.append(pair)
    rows = [added_row("gradext run -c pass", "python -c pass, ms", samples, 4 * rounds)]
    common.record("start_run", rows, out)


def main() -> int:
    ask = common.parser(__doc__ or "")
    ask.add_argument("--check", action="store_true", help="exit 1 when the bound is missed")
    ask.add_argument("--start", action="store_true", help="what the .pth file adds to a start")
    ask.add_argument("--run", action="store_true", help="what gradext run adds to a start")
    args = ask.parse_args()
    if args.run:
        run(5 if args.quick else 21, args.out)
        return 0
    if args.start:
        start(7 if args.quick else 21, args.out)
        return 0
    once()  # the first one also reads the files from disk
    samples = [once() for _ in range(7 if args.quick else 21)]
    theirs, ours = (timing.median_interval(values) for values in zip(*samples, strict=True))
    share = timing.median_interval([b / a for a, b in samples])
    rows = [
        {
            "what": "import gradext, after import torch",
            "ms": ours.value,
            "low": ours.low,
            "high": ours.high,
            "of import torch's": share.value,
            "import torch, ms": theirs.value,
            "processes": len(samples),
        }
    ]
    common.record("import_time", rows, args.out)
    return 1 if args.check and ours.value > BOUND_MS else 0


if __name__ == "__main__":
    sys.exit(main())
