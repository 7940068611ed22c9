"""Where nodes save, views that no node remembers, and calls of backward, as events."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from events import recorded, user_line

import gradext


@pytest.mark.parametrize("saves", [True, False], ids=["full", "light"])
def test_saves_name_the_line_of_each_node(saves: bool) -> None:
    from gradext import _C

    x = torch.ones(3, requires_grad=True)
    made: list[torch.Tensor] = []

    def program() -> None:
        y = x * x
        z = y.sin()
        made.append(z.exp())

    recording = recorded(program, saves=saves)
    nodes, whole = _C.graph(made)
    assert whole
    found = {}
    for _, name, thread, sequence, _, _ in nodes:
        if sequence is not None:
            stack, origin = recording.data.node_stack(thread, sequence)
            frames = recording.frames(stack)
            found[name] = (frames[0].code if frames else None, origin)
    lines = ["y = x * x", "z = y.sin()", "made.append(z.exp())"]
    names = ["MulBackward0", "SinBackward0", "ExpBackward0"]
    expected = {n: (line if saves else None, None) for n, line in zip(names, lines, strict=True)}
    assert found == expected


def test_saves_of_a_double_backward_know_the_forward_node() -> None:
    from gradext import _C

    x = torch.ones(3, requires_grad=True)
    made: list[torch.Tensor] = []

    def program() -> None:
        y = x.sin().sum()
        (g,) = torch.autograd.grad(y, x, create_graph=True)
        made.extend((y, g))

    recording = recorded(program)
    forward = {name: (t, s) for _, name, t, s, _, _ in _C.graph(made[:1])[0]}
    backward = {name: (t, s) for _, name, t, s, _, _ in _C.graph(made[1:])[0]}
    stack, origin = recording.data.node_stack(*backward["MulBackward0"])
    assert origin == forward["SinBackward0"]
    frames = recording.frames(stack)
    assert next(f.code for f in frames if f.is_user).startswith("(g,) = torch.autograd.grad(")


def test_views_that_no_node_remembers() -> None:
    x = torch.ones(4, 2, requires_grad=True)
    kept: list[Any] = []

    def program() -> None:
        kept.append(x[0])  # a node remembers it
        kept.append(x.unbind())
        with torch.no_grad():
            kept.append(x[1])

    recording = recorded(program)
    base = gradext.inspect(x).storage
    found = [(v.op, v.begin, v.end, v.creation_meta, v.storage == base) for v in recording.views]
    assert found == [
        *(("aten::unbind", 8 * k, 8 * k + 8, "multi_output_node", True) for k in range(4)),
        ("aten::select", 8, 16, "no_grad_mode", True),
    ]
    assert recording.views[-1].tensor == gradext.inspect(kept[2]).id
    assert [user_line(recording, v).code for v in recording.views[-2:]] == [
        "kept.append(x.unbind())",
        "kept.append(x[1])",
    ]


@pytest.mark.parametrize("saves", [True, False], ids=["full", "light"])
def test_backward_calls(saves: bool) -> None:
    x = torch.ones(3, requires_grad=True)
    y = x.sin()
    z = y.sum()

    def program() -> None:
        z.backward(retain_graph=True)
        torch.autograd.grad(z, x, create_graph=True)
        z.backward()

    recording = recorded(program, saves=saves)
    facts = [(b.keeps_graph, b.creates_graph, b.whole) for b in recording.backwards]
    assert facts == [(True, False, True), (True, True, True), (False, False, True)]
    numbers = {y.grad_fn._sequence_nr(), z.grad_fn._sequence_nr()}  # type: ignore[union-attr]
    for call in recording.backwards:
        assert set(call.nodes[:, 1].tolist()) == numbers
    assert [user_line(recording, b).code for b in recording.backwards] == [
        "z.backward(retain_graph=True)",
        "torch.autograd.grad(z, x, create_graph=True)",
        "z.backward()",
    ]


def test_writes_in_hooks_during_backward_belong_to_the_hook() -> None:
    x = torch.ones(3, requires_grad=True)
    side = torch.zeros(3)

    def hook(grad: torch.Tensor) -> None:
        side.copy_(grad)

    def program() -> None:
        y = x * 2
        y.register_hook(hook)
        y.sum().backward()

    recording = recorded(program)
    (write,) = recording.mutations(side)
    assert user_line(recording, write).code == "side.copy_(grad)"
