"""gradext called from within a function that torch.compile compiles: Dynamo calls it, and traces
none of it."""

from __future__ import annotations

import pytest
import torch

import gradext


def recorded(x):
    with gradext.record() as recording:
        y = x * 2
        y.add_(1)
    return y, len(recording.writes)


def started(x):
    recording = gradext.record().start()
    y = x * 2
    unsound = len(gradext.check_backward(y.sum()))
    recording.stop()
    return y, unsound


def guarded(x):
    with gradext.guard() as on:
        y = (x.exp() * 2).sum()
        y.backward()
    return x.grad, len(on.diagnoses)


def explained(x):
    y = x.exp()
    y.add_(1)
    try:
        y.sum().backward()
    except RuntimeError as error:
        return y, [found.code for found in gradext.explain(error)]
    return y, None


def inspected(x):
    y = x * 2
    y.add_(1)
    return y, gradext.inspect(y).version


@pytest.mark.parametrize("function", [recorded, started, guarded, explained, inspected])
def test_it_does_what_it_does_uncompiled(function):
    torch._dynamo.reset()
    inputs = [torch.ones(3, requires_grad=True) for _ in range(2)]
    plain, told = function(inputs[0])
    compiled, also_told = torch.compile(function, backend="eager")(inputs[1])
    assert torch.equal(plain, compiled)
    assert also_told == told
