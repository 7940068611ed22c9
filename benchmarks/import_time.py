"""What `import gradext` adds to `import torch`, in new processes.

    python benchmarks/import_time.py [--out DIR] [--quick]

Both are read from one process's own `-X importtime` account, so a slow moment of the machine slows
both; the number that counts is the ratio, and the bound (50 ms) is checked with `--check`.
"""

from __future__ import annotations

import re
import subprocess
import sys

import common

from gradext import timing

BOUND_MS = 50.0


def once() -> tuple[float, float]:
    """Milliseconds of `import torch` and of `import gradext` after it."""
    command = [sys.executable, "-X", "importtime", "-c", "import torch; import gradext"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.findall(r"\|\s+(\d+) \| (torch|gradext)$", done.stderr, re.M)
    times = {name: int(microseconds) / 1e3 for microseconds, name in found}
    return times["torch"], times["gradext"]


def main() -> int:
    ask = common.parser(__doc__ or "")
    ask.add_argument("--check", action="store_true", help="exit 1 when the bound is missed")
    args = ask.parse_args()
    once()  # the first one also reads the files from disk
    samples = [once() for _ in range(7 if args.quick else 21)]
    torch, gradext = (timing.median_interval(values) for values in zip(*samples, strict=True))
    share = timing.median_interval([ours / theirs for theirs, ours in samples])
    rows = [
        {
            "what": "import gradext, after import torch",
            "ms": gradext.value,
            "low": gradext.low,
            "high": gradext.high,
            "of import torch's": share.value,
            "import torch, ms": torch.value,
            "processes": len(samples),
        }
    ]
    common.record("import_time", rows, args.out)
    return 1 if args.check and gradext.value > BOUND_MS else 0


if __name__ == "__main__":
    sys.exit(main())
