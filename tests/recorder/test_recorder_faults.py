"""An error inside the recorder never reaches the program; it is counted and reported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from events import same_bits, shorts

import gradext
from gradext import _C
from gradext.recording import incidents, own_errors
from gradext.rules import judge


@pytest.fixture
def faulty() -> Iterator[None]:
    _C.testing.recorder_inject_fault(True)
    yield
    _C.testing.recorder_inject_fault(False)


def program() -> Any:
    """Writes, views, saves, a custom Function, a checkpoint, optimizers, backward."""
    from torch.utils.checkpoint import checkpoint

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            x.mul_(2)
            ctx.mark_dirty(x)
            return x

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return grad * 2

    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 3)
    facts: list[Any] = []
    for fused in (False, True):
        optimizer = torch.optim.Adam(layer.parameters(), fused=fused)
        x = torch.randn(2, 3)
        h = layer(x)
        h.unbind()
        with torch.no_grad():
            h[0]
        h = checkpoint(torch.nn.functional.relu, Double.apply(h * 1), use_reentrant=fused)
        h.sum().backward()
        optimizer.step()
        torch.autograd.graph.increment_version(x)
        x[0] = 1.0
        facts.append((x, x._version, [p.detach().clone() for p in layer.parameters()]))
    return facts


@pytest.mark.parametrize("saves", [True, False], ids=["full", "light"])
def test_results_are_unchanged_and_faults_counted(faulty: None, saves: bool) -> None:
    plain = program()
    before, _ = _C.recorder_faults()
    with gradext.record(saves=saves) as recording:
        found = program()
        assert same_bits(found, plain)
    after, text = _C.recorder_faults()
    assert after - before > 50
    assert text == "injected"
    assert shorts(recording) == []


def test_reported_in_one_line(faulty: None) -> None:
    with gradext.record():
        torch.ones(3).neg_()
    count, _ = _C.recorder_faults()
    assert count > 1
    assert f"recorder: injected ({count} times)" in own_errors.lines()
    assert all("\n" not in line for line in own_errors.lines())


def fails_by_size() -> None:
    torch.ones(3).add_(torch.ones(4))


def fails_by_leaf() -> None:
    torch.ones(3, requires_grad=True).add_(1)


def fails_in_backward() -> None:
    y = torch.ones(3, requires_grad=True).sigmoid()
    y.mul_(2)
    y.sum().backward()


def fails_in_a_python_kernel() -> None:
    x = torch.ones(3, requires_grad=True) * 1
    x.register_hook(lambda grad: {}["missing"])  # type: ignore[index]
    x.sum().backward()


@pytest.mark.parametrize("injected", [False, True], ids=["sound", "faulty"])
@pytest.mark.parametrize(
    "program", [fails_by_size, fails_by_leaf, fails_in_backward, fails_in_a_python_kernel]
)
def test_errors_are_torchs_own(program: Any, injected: bool) -> None:
    with pytest.raises((RuntimeError, KeyError)) as plain:
        program()
    _C.testing.recorder_inject_fault(injected)
    try:
        with gradext.record(), pytest.raises(type(plain.value)) as found:
            program()
    finally:
        _C.testing.recorder_inject_fault(False)
    assert str(found.value) == str(plain.value)
    assert found.value.__cause__ is None
    assert found.value.__context__ is None


def test_a_failing_diagnosis_leaves_torchs_error(monkeypatch: pytest.MonkeyPatch) -> None:

    def broken(*args: Any) -> Any:
        raise ZeroDivisionError("of gradext")

    monkeypatch.setattr(judge, "of_backward", broken)
    with (
        gradext.record(),
        pytest.raises(RuntimeError, match="modified by an inplace operation"),
    ):
        fails_in_backward()
    lines = [line for line in own_errors.lines() if "ZeroDivisionError: of gradext" in line]
    assert len(lines) == 1
    assert lines[0].startswith("diagnosis of a failed backward: ")


def test_a_failing_subscriber_is_counted() -> None:
    def broken(incident: object) -> None:
        raise ZeroDivisionError("of a subscriber")

    unsubscribe = incidents.subscribe(broken)
    try:
        with gradext.record(), pytest.raises(RuntimeError, match="inplace operation"):
            fails_in_backward()
    finally:
        unsubscribe()
        unsubscribe()  # twice does no harm
    assert any("ZeroDivisionError: of a subscriber" in line for line in own_errors.lines())
