"""Is the fingerprint a good hash? Collisions among 10^7 structured inputs, and avalanche.

    python benchmarks/fingerprint_quality.py [--out DIR] [--quick] [--check]

The inputs are what tests/fingerprint/test_fingerprint_quality.py makes, ten times as many. For each
half of the value: equal pairs among all 64 bits (none is expected) and among windows of 32 of them,
next to what a random function would give and how many standard deviations lie between. `--check`
exits 1 when a deviation is above 6.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import common
import numpy
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "fingerprint"))

from contents import random_bytes, rows
from test_fingerprint_quality import STRUCTURED, flipped, structured_rows

LIMIT = 6.0


def birthdays(count: int) -> list[dict[str, Any]]:
    """`count` inputs of each kind, all kinds in one pool."""
    values = structured_rows(count)
    n = len(values)
    result = []
    for half, name in enumerate(("low", "high")):
        for width, shift in ((64, 0), *((32, s) for s in (0, 8, 16, 24, 32))):
            window = values[:, half]
            if width == 32:
                window = (window >> numpy.uint64(shift)).astype(numpy.uint32)
            # A random function on n inputs has this many values fewer than inputs, and this spread.
            expected = n * (n - 1) / 2 / 2**width
            missing = n - len(numpy.unique(window))
            exact = n + 2.0**width * math.expm1(n * math.log1p(-(2.0**-width)))
            expected = exact if width == 32 else expected
            result.append(
                row(f"equal, bits {shift}-{shift + width - 1}", name, n, missing, expected)
            )
        bits = [
            int(((values[:, half] >> numpy.uint64(bit)) & numpy.uint64(1)).sum())
            for bit in range(64)
        ]
        worst = max(bits, key=lambda ones: abs(ones - n / 2))
        result.append(row("ones in the worst bit", name, n, worst, n / 2, math.sqrt(n) / 2))
    return result


def avalanche(trials: int) -> list[dict[str, Any]]:
    """How often a flipped input bit flips an output bit, for the output bit furthest from half."""
    result = []
    for size in (1, 8, 24, 128, 200, 4096, 5000):
        flips, total = numpy.zeros((2, 64)), 0
        for seed in range(trials):
            t = random_bytes(size, seed)
            bits = torch.randperm(8 * size)[:1024]
            changed = rows(flipped(t, bits)) ^ rows(t[None])
            for bit in range(64):
                flips[:, bit] += ((changed >> numpy.uint64(bit)) & numpy.uint64(1)).sum(0)
            total += len(bits)
        for half, name in enumerate(("low", "high")):
            worst = max(flips[half], key=lambda count: abs(count - total / 2))
            what = f"flips of the worst bit, {size} bytes"
            result.append(row(what, name, total, int(worst), total / 2, math.sqrt(total) / 2))
    return result


def row(
    what: str, half: str, inputs: int, found: int, expected: float, spread: float | None = None
) -> dict[str, Any]:
    deviation = (found - expected) / max(spread or math.sqrt(expected), 1e-9)
    return {
        "what": what,
        "half": half,
        "inputs": inputs,
        "found": found,
        "expected": expected,
        # With next to nothing expected, the number found says it all.
        "deviations": deviation if expected > 1 else float(found),
    }


def main() -> int:
    ask = common.parser(__doc__ or "")
    ask.add_argument("--check", action="store_true", help="exit 1 when a deviation is above 6")
    args = ask.parse_args()
    torch.manual_seed(0)
    kinds = len(STRUCTURED)
    found = birthdays((1_000_000 if args.quick else 10_000_000) // kinds)
    found += avalanche(30 if args.quick else 300)
    common.record("fingerprint_quality", found, args.out)
    missed = [line for line in found if abs(line["deviations"]) > LIMIT]
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
