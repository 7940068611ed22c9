"""What reading autograd state costs, against torch's own Python attributes.

    python benchmarks/state.py [--out DIR] [--quick] [--device cpu|cuda] [--check]

One fact, all facts of one tensor, and the facts of 100,000 tensors in one call. Every number is the
median over interleaved rounds; a ratio is the median of the rounds' own ratios, with its 95 %
interval, by processor time on one thread. `--check` exits 1 when a required ratio or bound is
missed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import common
import torch

import gradext
from gradext import _C
from gradext.mode_costs import timing

MANY = 100_000
# What the batch must reach: at most so many ns a tensor, at least so many times as fast.
REQUIRED = {"gradext.states": (100.0, 5.0), "torch.ops.gradext.states": (250.0, 2.0)}
# And one fact: at most so many times the time of the attribute.
ONE_FACT = {"gradext.ops.version": 1.2}


def one_fact(t: torch.Tensor) -> dict[str, Callable[[], object]]:
    version = torch.ops.gradext.version.default
    return {
        "t._version": lambda: t._version,
        "torch.ops.gradext.version": lambda: version(t),
        "gradext.ops.version": lambda: gradext.ops.version(t),
        "gradext._C.version": lambda: _C.version(t),
    }


def all_facts(t: torch.Tensor) -> dict[str, Callable[[], object]]:
    def attributes() -> object:
        # What torch's Python attributes can say of a TensorState's fields.
        return (
            *(t.shape, t.dtype, t.device, t.requires_grad, t.is_leaf, t.grad_fn, t.output_nr),
            *(t._version, t._is_view(), t._base, t.is_inference()),
            *(t.untyped_storage()._cdata, t.storage_offset(), t.nbytes),
        )

    return {
        "14 Python attributes": attributes,
        "gradext._C.inspect": lambda: _C.inspect(t),
        "gradext.inspect": lambda: gradext.inspect(t),
    }


def many_facts(tensors: list[torch.Tensor]) -> dict[str, Callable[[], object]]:
    def attributes() -> None:
        # Not even kept: the least that a loop in Python can do.
        for t in tensors:
            t._version, t._is_view(), t._base, t.is_inference(), t.requires_grad, t.is_leaf

    return {
        "6 Python attributes": attributes,
        "gradext.states": lambda: gradext.states(tensors),
        "torch.ops.gradext.states": lambda: torch.ops.gradext.states(tensors),
    }


def rows_of(
    what: str, cases: dict[str, Callable[[], object]], tensors: int, budget: float
) -> list[dict[str, Any]]:
    measured = timing.compare(cases, budget_seconds=common.budget(budget), timer=time.process_time)
    peer = next(iter(cases))
    rows = []
    for name in cases:
        ratio = measured.ratio(peer, name)
        rows.append(
            {
                "what": what,
                "through": name,
                "ns per tensor": measured.time(name).value * 1e9 / tensors,
                "times as fast as the attributes": ratio.value,
                "low": ratio.low,
                "high": ratio.high,
                "rounds": measured.rounds,
            }
        )
    return rows


def main() -> int:
    ask = common.parser(__doc__ or "", suite=True)
    ask.add_argument("--check", action="store_true", help="exit 1 when a requirement is missed")
    args = ask.parse_args()
    device = common.device(args)
    torch.set_num_threads(1)
    scale = 0.1 if args.quick else 1.0
    plain = torch.zeros(4)
    view = (torch.zeros(8, requires_grad=True) * 2)[2:6]
    many = [torch.zeros(4) for _ in range(MANY)]
    views = list(torch.zeros(MANY, 4, requires_grad=True).unbind())
    rows = [
        *rows_of("one fact, a plain tensor", one_fact(plain), 1, 3 * scale),
        *rows_of("all facts, a plain tensor", all_facts(plain), 1, 3 * scale),
        *rows_of("all facts, a view in a graph", all_facts(view), 1, 3 * scale),
        *rows_of(f"{MANY:,} plain tensors", many_facts(many), MANY, 15 * scale),
        *rows_of(f"{MANY:,} views", many_facts(views), MANY, 15 * scale),
    ]
    if device == "cuda":
        on_gpu = torch.zeros(4, device="cuda")
        launch = {
            "null_launch, CPU": lambda: torch.ops.gradext.null_launch(plain),
            "null_launch, CUDA": lambda: torch.ops.gradext.null_launch(on_gpu),
        }
        rows += rows_of("an op that does nothing", launch, 1, 3 * scale)
    code = common.finish("state", rows, args)
    missed = [
        f"{row['what']} through {row['through']}: {row['ns per tensor']:.0f} ns "
        f"(at most {most:.0f}), {row['times as fast as the attributes']:.1f} times "
        f"as fast (at least {least:.0f})"
        for row in rows
        if row["what"].startswith(f"{MANY:,}") and row["through"] in REQUIRED
        for most, least in [REQUIRED[row["through"]]]
        if row["ns per tensor"] > most or row["times as fast as the attributes"] < least
    ]
    missed += [
        f"{row['what']} through {row['through']}: {1 / row['times as fast as the attributes']:.2f} "
        f"times the attribute's time (at most {most})"
        for row in rows
        if row["what"].startswith("one fact") and row["through"] in ONE_FACT
        for most in [ONE_FACT[row["through"]]]
        if row["times as fast as the attributes"] * most < 1
    ]
    for line in missed if args.check else ():
        print(f"missed: {line}", file=sys.stderr)
    return code or int(bool(missed) and args.check)


if __name__ == "__main__":
    sys.exit(main())
