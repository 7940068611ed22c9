"""What a guard costs: a training step under it, over the same step with nothing.

    python benchmarks/guard.py [--quick] [--out DIR]

`a recording` is what a guard switches on for itself. The model was there before `a guard`, which
reads parameters and inputs, once when they are saved and once when backward uses them; a guard from
the program's start, as `gradext run --guard` has one, reads what is exposed, here nothing; one of
all that is saved reads activations too. With one tensor's memory in the hands of numpy, the lines
of Python are traced as well.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import common
import peers
import torch

import gradext
from gradext.mode_costs import timing

NOTHING = "nothing"
SUBJECTS = ("differentiable", "mlp", "transformer-64", "transformer-256")


@contextlib.contextmanager
def exposed() -> Iterator[None]:
    """A guard that looks at each line: a tensor saved for a backward that is still to come."""
    with gradext.guard():
        x = torch.ones(1024, requires_grad=True)
        h = x.exp()
        memory = h.detach().numpy()
        yield
        del h, memory


def whole_program() -> gradext.guard:
    """As it begins under `gradext run --guard`."""
    guard = gradext.guard()
    guard.whole_program = True
    return guard


WAYS: dict[str, Any] = {
    NOTHING: contextlib.nullcontext,
    "a recording": lambda: gradext.record(births=False, cuts=False),
    "a guard": gradext.guard,
    "a guard from the program's start": whole_program,
    "a guard of all that is saved": lambda: gradext.guard(reads="all"),
    "a guard, 4 KiB in the hands of numpy": exposed,
}


def main() -> int:
    args = common.parser(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in SUBJECTS:
        subject = peers.SUBJECTS[name]
        step = subject.build()
        step()
        cases = {way: timing.Case(step, context) for way, context in WAYS.items()}
        seconds = (4 if subject.group == "large" else 1) * (3 if args.quick else 15)
        measured = timing.compare(
            cases,
            budget_seconds=seconds,
            block_seconds=subject.block_seconds,
            timer=time.process_time,
        )
        for way in WAYS:
            ratio = measured.ratio(way, NOTHING)
            rows.append(
                {
                    "what": subject.label,
                    "under": way,
                    "microseconds": measured.time(way).value * 1e6,
                    "times the step with nothing": ratio.value,
                    "low": ratio.low,
                    "high": ratio.high,
                    "rounds": measured.rounds,
                }
            )
    common.record("guard", rows, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
