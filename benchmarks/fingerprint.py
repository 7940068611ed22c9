"""How fast a fingerprint reads: against sum(), torch.hash_tensor and xxh3; many small tensors.

    python benchmarks/fingerprint.py [--out DIR] [--quick] [--device cpu|cuda] [--check]

Needs the `bench` extra (xxhash). A ratio is the median over interleaved rounds of peer's time over
gradext's, with its 95 % interval: above 1, gradext is faster. `--check` exits 1 when a required
ratio is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import common
import torch

import gradext
from gradext import _C, timing

try:
    import xxhash
except ImportError:  # a GPU machine without network may lack it
    xxhash = None

Cases = dict[str, Callable[[], object]]
GRADEXT = "gradext.fingerprint"
OP = "torch.ops.gradext.fingerprint_list"
SUM, HASH, XXH3 = "float32.sum()", "torch.hash_tensor", "xxh3 (128 bits)"
LOOP = "a loop of torch.hash_tensor"

# (what is timed, its peer, threads) → the least ratio; threads None: any.
REQUIRED: dict[tuple[str, str, int | None], float] = {
    (GRADEXT, SUM, None): 0.9,
    (GRADEXT, HASH, 1): 2.0,
    (GRADEXT, XXH3, 1): 0.9,
    (GRADEXT, LOOP, None): 10.0,
    (OP, LOOP, None): 6.0,
}


def large(mebibytes: int, threads: int) -> Cases:
    t = torch.randn(mebibytes << 18)
    array = t.numpy()
    cases: Cases = {
        GRADEXT: lambda: gradext.fingerprint(t),
        SUM: lambda: t.sum(),
        HASH: lambda: torch.hash_tensor(t),
    }
    if threads == 1 and xxhash is not None:  # it has no threads
        cases[XXH3] = lambda: xxhash.xxh3_128_intdigest(array)
    return cases


def small(count: int) -> Cases:
    tensors = [torch.randn(1024) for _ in range(count)]
    return {
        GRADEXT: lambda: gradext.fingerprint(tensors),
        OP: lambda: torch.ops.gradext.fingerprint_list(tensors),
        LOOP: lambda: [torch.hash_tensor(t) for t in tensors],
    }


def on_gpu(mebibytes: int) -> Cases:
    t = torch.randn(mebibytes << 18, device="cuda")
    return {
        GRADEXT: lambda: torch.ops.gradext.fingerprint(t),
        SUM: lambda: t.sum(),
        HASH: lambda: torch.hash_tensor(t),
    }


def rows_of(
    what: str,
    cases: Cases,
    nbytes: int,
    threads: int,
    budget: float,
    synchronize: Callable[[], object] | None = None,
) -> list[dict[str, Any]]:
    measured = timing.compare(cases, budget_seconds=budget, synchronize=synchronize)
    peers = [name for name in cases if name not in (GRADEXT, OP)]
    rows = []
    for name in cases:
        if name in peers:
            continue
        for peer in peers:
            ratio = measured.ratio(peer, name)
            rows.append(
                {
                    "what": what,
                    "threads": threads,
                    "through": name,
                    "against": peer,
                    "times as fast": ratio.value,
                    "low": ratio.low,
                    "high": ratio.high,
                    "required": None if synchronize else required(name, peer, threads),
                    "GB/s": nbytes / measured.time(name).value / 1e9,
                    "peer's GB/s": nbytes / measured.time(peer).value / 1e9,
                    "rounds": measured.rounds,
                }
            )
    return rows


def required(name: str, peer: str, threads: int) -> float | None:
    return REQUIRED.get((name, peer, threads), REQUIRED.get((name, peer, None)))


def main() -> int:
    ask = common.parser(__doc__ or "", suite=True)
    ask.add_argument("--check", action="store_true", help="exit 1 when a requirement is missed")
    args = ask.parse_args()
    device = common.device(args)
    scale = 0.1 if args.quick else 1.0
    sizes = {"64 MiB": 64} if args.quick else {"64 MiB": 64, "1 GiB": 1024}
    rows: list[dict[str, Any]] = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for what, mebibytes in sizes.items():
            cases = large(mebibytes, threads)
            rows += rows_of(what, cases, mebibytes << 20, threads, 20 * scale)
        rows += rows_of("1,000 × 4 KiB", small(1000), 1000 << 12, threads, 15 * scale)
    if device == "cuda":
        for what, mebibytes in sizes.items():
            cases, wait = on_gpu(mebibytes), torch.cuda.synchronize
            rows += rows_of(f"{what}, CUDA", cases, mebibytes << 20, 0, 5 * scale, wait)
    print(f"variant {_C.fingerprint_variant()} of {', '.join(_C.fingerprint_variants())}\n")
    code = common.finish("fingerprint", rows, args)
    if xxhash is None:
        print("not compared with xxh3: the package xxhash is not installed", file=sys.stderr)
    missed = [
        f"{row['what']}, {row['threads']} thread(s), {row['through']} against {row['against']}: "
        f"{row['times as fast']:.3f} (at least {row['required']})"
        for row in rows
        if row["required"] is not None and row["times as fast"] < row["required"]
    ]
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return code or int(bool(missed) and args.check)


if __name__ == "__main__":
    sys.exit(main())
