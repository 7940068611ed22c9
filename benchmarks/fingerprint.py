"""How fast a fingerprint reads: against sum(), torch.hash_tensor and xxh3; many small tensors.

    python benchmarks/fingerprint.py [--out DIR] [--quick] [--device cpu|cuda] [--check]

Needs the `bench` extra (xxhash). A ratio is the median over interleaved rounds of peer's time over
gradext's, with its 95 % interval: above 1, gradext is faster. Many small tensors are measured
twice: called in a row, as a timer does, and called once between the others, when other work has
pushed them out of the caches. On CUDA one large tensor is measured against copy_() (of as many
bytes, read or written), sum() and torch.hash_tensor, and many small ones against a loop. `--check`
exits 1 when a required ratio is missed.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import common
import torch

import gradext
from gradext import _C
from gradext.mode_costs import timing

try:
    import xxhash
except ImportError:  # a GPU machine without network may lack it
    xxhash = None

Cases = dict[str, Callable[[], object]]
GRADEXT = "gradext.fingerprint"
OP = "torch.ops.gradext.fingerprint_list"
ONE = "torch.ops.gradext.fingerprint"
SUM, HASH, XXH3 = "float32.sum()", "torch.hash_tensor", "xxh3 (128 bits)"
LOOP = "a loop of torch.hash_tensor"
# Reads half as many bytes as a fingerprint and writes as many: the same traffic.
COPY = "copy_() of half"

# Long enough for some thirty fingerprints of a thousand tensors in a row.
IN_A_ROW = 5e-3

# (what is timed, its peer, threads) → the least ratio; threads None: any, 0: a GPU's.
REQUIRED: dict[tuple[str, str, int | None], float] = {
    (GRADEXT, SUM, None): 0.9,
    (GRADEXT, HASH, 1): 2.0,
    (GRADEXT, XXH3, 1): 0.9,
    (GRADEXT, LOOP, None): 10.0,
    (OP, LOOP, None): 6.0,
    (ONE, COPY, 0): 0.9,
    (GRADEXT, LOOP, 0): 20.0,
    (OP, LOOP, 0): 20.0,
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


def small(count: int, device: str = "cpu") -> Cases:
    tensors = [torch.randn(1024, device=device) for _ in range(count)]
    return {
        GRADEXT: lambda: gradext.fingerprint(tensors),
        OP: lambda: torch.ops.gradext.fingerprint_list(tensors),
        LOOP: lambda: [torch.hash_tensor(t) for t in tensors],
    }


def large_on_gpu(mebibytes: int) -> Cases:
    t = torch.randn(mebibytes << 18, device="cuda")
    half = t[: t.numel() // 2]
    room = torch.empty_like(half)
    return {
        ONE: lambda: torch.ops.gradext.fingerprint(t),
        COPY: lambda: room.copy_(half),
        SUM: lambda: t.sum(),
        HASH: lambda: torch.hash_tensor(t),
    }


@contextlib.contextmanager
def tidy() -> Iterator[None]:
    """A large allocation before the clock starts.

    glibc gathers small freed blocks (the thousand results of the loop) when memory is next asked
    for in one large piece. Without this, whoever is timed after the loop would pay for it.
    """
    bytearray(1 << 16)
    yield


def rows_of(
    what: str,
    cases: Cases,
    nbytes: int,
    threads: int,
    budget: float,
    synchronize: Callable[[], object] | None = None,
    block_seconds: float = timing.BLOCK_SECONDS,
    has_requirement: bool = True,
) -> list[dict[str, Any]]:
    settled = {name: timing.Case(function, context=tidy) for name, function in cases.items()}
    measured = timing.compare(
        settled,
        budget_seconds=common.budget(budget),
        block_seconds=block_seconds,
        synchronize=synchronize,
    )
    peers = [name for name in cases if name not in (GRADEXT, OP, ONE)]
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
                    "required": required(name, peer, threads) if has_requirement else None,
                    "GB/s": nbytes / measured.time(name).value / 1e9,
                    "peer's GB/s": nbytes / measured.time(peer).value / 1e9,
                    "rounds": measured.rounds,
                }
            )
    return rows


def required(name: str, peer: str, threads: int) -> float | None:
    return REQUIRED.get((name, peer, threads), REQUIRED.get((name, peer, None)))


def longest(mebibytes: int) -> int:
    """Seconds to measure so much; a round of 1 GiB takes most of one."""
    return 60 if mebibytes >= 1024 else 20


def on_cpu(sizes: dict[str, int], scale: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for what, mebibytes in sizes.items():
            cases = large(mebibytes, threads)
            rows += rows_of(what, cases, mebibytes << 20, threads, longest(mebibytes) * scale)
        cases, nbytes, budget = small(1000), 1000 << 12, 15 * scale
        what = "1,000 × 4 KiB"
        rows += rows_of(what, cases, nbytes, threads, budget, block_seconds=IN_A_ROW)
        rows += rows_of(f"{what}, seldom", cases, nbytes, threads, budget, has_requirement=False)
    return rows


def on_gpu(scale: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    budget, wait = 5 * scale, torch.cuda.synchronize
    for what, mebibytes in {"64 MiB": 64, "256 MiB": 256, "1 GiB": 1024}.items():
        cases = large_on_gpu(mebibytes)
        rows += rows_of(f"{what}, CUDA", cases, mebibytes << 20, 0, budget, wait, IN_A_ROW)
    cases = small(1000, "cuda")
    return rows + rows_of("1,000 × 4 KiB, CUDA", cases, 1000 << 12, 0, budget, wait, IN_A_ROW)


def main() -> int:
    ask = common.parser(__doc__ or "", suite=True)
    ask.add_argument("--check", action="store_true", help="exit 1 when a requirement is missed")
    args = ask.parse_args()
    device = common.device(args)
    scale = 0.1 if args.quick else 1.0
    sizes = {"64 MiB": 64} if args.quick else {"64 MiB": 64, "1 GiB": 1024}
    rows = on_gpu(scale) if device == "cuda" else on_cpu(sizes, scale)
    if device == "cpu":
        known = ", ".join(_C.testing.fingerprint_variants())
        print(f"variant {_C.testing.fingerprint_variant()} of {known}\n")
    # What this project requires of itself is no news to whoever measures their own machine.
    hidden = set() if args.check else {"required"}
    shown = [{k: v for k, v in row.items() if k not in hidden} for row in rows]
    name = f"fingerprint{'_cuda' if device == 'cuda' else ''}"
    code = common.finish(name, rows, args, common.table(shown))
    if xxhash is None and device == "cpu":
        print("not compared with xxh3: the package xxhash is not installed", file=sys.stderr)
    missed = [
        f"{row['what']}, {row['threads']} thread(s), {row['through']} against {row['against']}: "
        f"{row['times as fast']:.3f} (at least {row['required']})"
        for row in rows
        if row["required"] is not None and row["times as fast"] < row["required"]
    ]
    for line in missed if args.check else ():
        print(f"missed: {line}", file=sys.stderr)
    return code or int(bool(missed) and args.check)


if __name__ == "__main__":
    sys.exit(main())
