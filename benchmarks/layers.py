"""What each layer of a custom op's call costs, from the Python binding to the kernel.

    python benchmarks/layers.py [--out DIR] [--quick] [--device cpu|cuda] [--check]

The three probe ops on 4 elements, in four modes. A layer (Python binding, dispatcher, Autograd,
ADInplaceOrView, kernel launch, kernel) is the difference of two calls that take turns within each
round: of the op, and of a variant that leaves the layer out (csrc/benchmarks/dispatch_layers.cpp).
Three processes measure all of it in turn; a number is the median of their medians, and its interval
holds all of their 95 % intervals. On CUDA also how fast axpby goes through memory, against copy_;
with `--check` the script exits 1 when that is below 0.9.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import torch

from gradext import _C
from gradext.mode_costs import timing

PROCESSES = 3
INNER = 16  # calls in one timed function, in a loop of Python or of C++
SECONDS, QUICK_SECONDS = 3.0, 0.12  # for one op in one mode, in one process
MEBIBYTES, REQUIRED_RATE = 64, 0.9

OPS = ("axpby", "axpby_", "window")
MODES = ("grad, requires grad", "grad", "no_grad", "inference_mode")

# The calls that are timed, from all layers to none.
PYTHON, PYTHON_LOOP = "from Python", "a loop of Python"
FULL, NO_AUTOGRAD, KERNEL, EMPTY, NOTHING = (
    "from C++",
    "no_autograd",
    "no_adinplaceorview",
    "empty",
    "nothing",
)
DIRECT = "past the dispatcher"

WHOLE = "the whole call"
BINDING, DISPATCHER, AUTOGRAD, ADINPLACEORVIEW, LAUNCH, KERNEL_LAYER = (
    "Python binding",
    "dispatcher",
    "Autograd",
    "ADInplaceOrView",
    "kernel launch",
    "kernel",
)
# A layer is the sum of the calls with +1 less that of those with -1. They add up to the whole.
LAYERS: dict[str, dict[str, int]] = {
    WHOLE: {PYTHON: 1, PYTHON_LOOP: -1},
    # The loops in C++ are called from Python as well, which the last two have alike.
    BINDING: {PYTHON: 1, PYTHON_LOOP: -1, FULL: -1, DIRECT: 1},
    DISPATCHER: {NOTHING: 1, DIRECT: -1},
    AUTOGRAD: {FULL: 1, NO_AUTOGRAD: -1},
    ADINPLACEORVIEW: {NO_AUTOGRAD: 1, KERNEL: -1},
    LAUNCH: {EMPTY: 1, NOTHING: -1},
    KERNEL_LAYER: {KERNEL: 1, EMPTY: -1},
}


def layers_of(op: str, device: str) -> dict[str, dict[str, int]]:
    """A CPU launches nothing, and a view launches nothing on a GPU either."""
    if device == "cuda" and op != "window":
        return LAYERS
    layers = {layer: signs for layer, signs in LAYERS.items() if layer != LAUNCH}
    if device == "cuda":
        layers[KERNEL_LAYER] = {KERNEL: 1, NOTHING: -1}  # the empty one is a launch there
    return layers


# --- one process ----------------------------------------------------------------------------------


class Subject:
    """An op in a mode: its calls, and the tensors that they are made with."""

    def __init__(self, op: str, mode: str, device: str) -> None:
        self.op, self.mode, self.device = op, mode, device
        self.x = self.y = torch.empty(0)

    @contextlib.contextmanager
    def entered(self, call: Callable[[], None]) -> Iterator[None]:
        """The mode, with tensors made inside it, new ones for each block of calls.

        `call` is made once before the clock runs: a block is short, and what its first call finds
        out of the caches, because another case came before, would look like a layer.

        In place on a tensor that requires grad each call adds a node to its graph; a new tensor
        lets the old graph go while no clock runs.
        """
        modes: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
            "no_grad": torch.no_grad,
            "inference_mode": torch.inference_mode,
        }
        with modes.get(self.mode, contextlib.nullcontext)():
            requires_grad = self.mode == MODES[0]
            self.x = torch.ones(4, device=self.device, requires_grad=requires_grad)
            self.y = torch.ones(4, device=self.device, requires_grad=requires_grad)
            if requires_grad and self.op == "axpby_":
                self.x = self.x.clone()  # a leaf may not be written
            call()
            yield

    def cases(self) -> dict[str, timing.Case]:
        full = getattr(torch.ops.gradext, self.op).default
        arguments: tuple[Any, ...] = (0, 1, 2) if self.op == "window" else (0.5, 0.5)
        second = self.op != "window"
        turns = range(INNER)

        def from_python() -> None:
            x, y = self.x, self.y
            if second:
                for _ in turns:
                    full(x, y, *arguments)
            else:
                for _ in turns:
                    full(x, *arguments)

        def loop() -> None:
            for _ in turns:
                pass

        def dispatched(stop: str) -> Callable[[], None]:
            base = "axpby_inplace" if self.op == "axpby_" else self.op
            name = f"{base}_{stop}" if stop else self.op
            return lambda: _C.testing.probe_dispatched(name, INNER, self.x, self.y)

        def direct(name: str) -> Callable[[], None]:
            return lambda: _C.testing.probe_direct(name, INNER, self.x, self.y)

        functions: dict[str, Callable[[], None]] = {
            PYTHON: from_python,
            PYTHON_LOOP: loop,
            FULL: dispatched(""),
            **{stop: dispatched(stop) for stop in (NO_AUTOGRAD, KERNEL, EMPTY, NOTHING)},
            DIRECT: direct("nothing"),
        }
        return {
            name: timing.Case(call, functools.partial(self.entered, call))
            for name, call in functions.items()
        }


def differences(
    seconds: Mapping[str, Sequence[float]], layers: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, float]]:
    """Per layer the median and interval, in ns of one call, of the rounds' own differences."""
    found = {}
    for layer, signs in layers.items():
        rounds = zip(*(seconds[name] for name in signs), strict=True)
        signed = [
            sum(sign * value for sign, value in zip(signs.values(), values, strict=True))
            for values in rounds
        ]
        estimate = timing.median_interval([each / INNER * 1e9 for each in signed])
        found[layer] = {
            "ns": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "rounds": estimate.samples,
        }
    return found


def measure(device: str, budget: float) -> list[dict[str, Any]]:
    """What one process finds: a dict for each op, mode and layer."""
    torch.set_num_threads(1)
    wait = torch.cuda.synchronize if device == "cuda" else None
    found = []
    for op, mode in itertools.product(OPS, MODES):
        measured = timing.compare(
            Subject(op, mode, device).cases(),
            budget_seconds=common.budget(budget),
            synchronize=wait,
        )
        for layer, numbers in differences(measured.seconds, layers_of(op, device)).items():
            found.append({"op": op, "mode": mode, "layer": layer, **numbers})
    return found


# --- all processes --------------------------------------------------------------------------------


def combine(processes: Sequence[Sequence[dict[str, Any]]], device: str) -> list[dict[str, Any]]:
    """The rows: the median of the processes' medians, the interval that holds all of theirs."""
    rows = []
    for same in zip(*processes, strict=True):
        first = same[0]
        pooled = timing.pool(
            [timing.Estimate(e["ns"], e["low"], e["high"], 0.95, e["rounds"]) for e in same]
        )
        rows.append(
            {
                "op": first["op"],
                "mode": first["mode"],
                "device": device,
                "layer": first["layer"],
                "ns": pooled.value,
                "low": pooled.low,
                "high": pooled.high,
                "note": "none measurable" if pooled.holds(0.0) else "",
                "rounds": pooled.samples,
                "processes": len(same),
            }
        )
    return rows


def in_a_process(device: str, budget: float) -> list[dict[str, Any]]:
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", str(budget)]
    done = subprocess.run(
        [*command, "--device", device], stdout=subprocess.PIPE, text=True, check=True
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def memory_rate(budget: float) -> dict[str, Any]:
    """How fast axpby goes through memory, over how fast copy_ does. Both need a GPU."""
    x, y, out = (torch.ones(MEBIBYTES << 18, device="cuda") for _ in range(3))
    axpby = torch.ops.gradext.axpby.default
    with torch.no_grad():
        measured = timing.compare(
            {"axpby": lambda: axpby(x, y, 0.5, 0.5), "copy_": lambda: out.copy_(x)},
            budget_seconds=common.budget(budget),
            block_seconds=5e-3,
            synchronize=torch.cuda.synchronize,
        )
    nbytes = MEBIBYTES << 20
    pairs = zip(measured.seconds["axpby"], measured.seconds["copy_"], strict=True)
    # axpby moves three times the tensor's bytes, copy_ twice.
    ratio = timing.median_interval([(3 / ours) / (2 / theirs) for ours, theirs in pairs])
    return {
        "what": f"axpby, float32, {MEBIBYTES} MiB",
        "against": "copy_",
        "GB/s": 3 * nbytes / measured.time("axpby").value / 1e9,
        "GB/s of copy_": 2 * nbytes / measured.time("copy_").value / 1e9,
        "of the rate of copy_": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "required": REQUIRED_RATE,
        "rounds": measured.rounds,
    }


def main() -> int:
    ask = common.parser(__doc__ or "", suite=True)
    ask.add_argument("--check", action="store_true", help="exit 1 when a requirement is missed")
    ask.add_argument("--worker", type=float, metavar="SECONDS", help=common.INTERNAL)
    args = ask.parse_args()
    if common.device(args) == "cuda" and not _C.WITH_CUDA:
        common.refuse("--device cuda: gradext is built without CUDA")
    if args.worker is not None:
        json.dump(measure(args.device, args.worker), sys.stdout)
        return 0
    budget = QUICK_SECONDS if args.quick else SECONDS
    processes = [in_a_process(args.device, budget) for _ in range(PROCESSES)]
    suffix = "" if args.device == "cpu" else "_cuda"
    code = common.finish(f"layers{suffix}", combine(processes, args.device), args)
    if args.device == "cpu":
        return code
    rate = memory_rate(2 if args.quick else 10)
    common.record("axpby_rate", [rate], args.out)
    if args.check and rate["of the rate of copy_"] < REQUIRED_RATE:
        print(
            f"missed: {rate['what']}: {rate['of the rate of copy_']:.3f} of the rate of "
            f"copy_ (at least {REQUIRED_RATE})",
            file=sys.stderr,
        )
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
