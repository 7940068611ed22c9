"""benchmarks/layers.py: its arithmetic on times that are known, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import forks
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
BENCHMARKS = ROOT / "benchmarks"

sys.path.insert(0, str(BENCHMARKS))
import layers  # noqa: E402

sys.path.remove(str(BENCHMARKS))

# What each layer takes, in ns; the calls below are made of them.
KNOWN = {
    layers.BINDING: 900.0,
    layers.AUTOGRAD: 400.0,
    layers.ADINPLACEORVIEW: 30.0,
    layers.KERNEL_LAYER: 250.0,
    layers.LAUNCH: 2000.0,
    layers.DISPATCHER: 25.0,
}
LOOP, BARE_CALL, ROUNDS = 7.0, 2.0, 20


def synthetic(drift: float) -> dict[str, list[float]]:
    """Seconds of INNER calls, a number a round; each round `drift` ns slower than the last."""
    nothing = BARE_CALL + KNOWN[layers.DISPATCHER]
    empty = nothing + KNOWN[layers.LAUNCH]
    kernel = empty + KNOWN[layers.KERNEL_LAYER]
    no_autograd = kernel + KNOWN[layers.ADINPLACEORVIEW]
    full = no_autograd + KNOWN[layers.AUTOGRAD]
    calls = {
        # The loop in C++ is one call from Python too: its share is in BARE_CALL.
        layers.PYTHON: full - BARE_CALL + KNOWN[layers.BINDING] + LOOP,
        layers.PYTHON_LOOP: LOOP,
        layers.FULL: full,
        layers.NO_AUTOGRAD: no_autograd,
        layers.KERNEL: kernel,
        layers.EMPTY: empty,
        layers.NOTHING: nothing,
        layers.DIRECT: BARE_CALL,
    }
    return {
        name: [(ns + drift * k) * layers.INNER * 1e-9 for k in range(ROUNDS)]
        for name, ns in calls.items()
    }


@pytest.mark.parametrize("drift", [0.0, 50.0])
def test_known_differences_come_out(drift: float) -> None:
    found = layers.differences(synthetic(drift), layers.LAYERS)
    for layer, expected in {**KNOWN, layers.WHOLE: sum(KNOWN.values())}.items():
        # What slows every call of a round alike cancels: the interval is a point.
        for key in ("ns", "low", "high"):
            assert found[layer][key] == pytest.approx(expected), (layer, key)
        assert found[layer]["rounds"] == ROUNDS


@pytest.mark.parametrize("op", layers.OPS)
def test_the_layers_on_a_gpu_add_up_to_the_whole(op: str) -> None:
    found = layers.layers_of(op, "cuda")
    assert (layers.LAUNCH in found) == (op != "window")  # a view launches nothing
    total: dict[str, int] = {}
    for layer, signs in found.items():
        for name, sign in signs.items():
            total[name] = total.get(name, 0) + (-sign if layer == layers.WHOLE else sign)
    assert not any(total.values())


def process(shift: float, **fixed: float) -> list[dict[str, object]]:
    base = {"op": "axpby", "mode": "grad", "layer": layers.AUTOGRAD, "rounds": 10}
    return [{**base, "ns": 10 + shift, "low": 5 + shift, "high": 15 + shift, **fixed}]


def test_processes_are_combined() -> None:
    (row,) = layers.combine([process(0), process(4), process(1)], "cpu")
    assert row == {
        "op": "axpby",
        "mode": "grad",
        "device": "cpu",
        "layer": layers.AUTOGRAD,
        "ns": 11,
        "low": 5,
        "high": 19,
        "note": "",
        "rounds": 30,
        "processes": 3,
    }


@pytest.mark.parametrize(("low", "note"), [(-1.0, "none measurable"), (0.0, "none measurable")])
def test_an_interval_that_holds_zero_is_called_so(low: float, note: str) -> None:
    (row,) = layers.combine([process(0), process(0, low=low), process(0)], "cpu")
    assert row["note"] == note


def test_an_interval_below_zero_is_a_measurement() -> None:
    (row,) = layers.combine([process(-20)] * 3, "cpu")
    assert row["note"] == ""


def test_cuda_is_refused_in_one_line_where_there_is_none(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = forks.script(BENCHMARKS / "layers.py", "--device", "cuda", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "layers.py: --device cuda: torch finds no CUDA device here\n"
