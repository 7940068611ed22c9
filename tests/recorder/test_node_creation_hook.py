"""A program's own node_creation_hook (torch 2.14 and later) sees what it sees without gradext.

Torch gives its hooks each new graph node, and raises where a hook makes one. So neither recording
nor a diagnosis may make a node, nor have one made, where the program would not.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import gradext

hooks = torch.autograd.graph
if not hasattr(hooks, "node_creation_hook"):
    pytest.skip("this torch has no node_creation_hook", allow_module_level=True)


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return g * 2


def ops(w):
    return (w * 2).sin().sum().backward()


def function(w):
    return Twice.apply(w).sum().backward()


def write_through_a_view(w):
    a = w * 1
    a[0].mul_(2)
    return a.sum().backward()


def view_behind_a_write(w):
    a = w * 1
    v = a[0]
    a.mul_(2)
    return v.grad_fn


def recomputed(w):
    return checkpoint(lambda x: x.sin() * 2, w, use_reentrant=False).sum().backward()


def twice_differentiated(w):
    (g,) = torch.autograd.grad((w**3).sum(), w, create_graph=True)
    return g.sum().backward()


def stale(w):
    y = w.sigmoid()
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def cut(w):
    with torch.no_grad():
        y = w * 2
    with pytest.raises(RuntimeError, match="does not require grad"):
        y.sum().backward()


def silent(w):
    saved = torch.zeros(3)
    y = w * saved
    saved.data.add_(1)
    y.sum().backward()


PROGRAMS = [
    *(ops, function, write_through_a_view, view_behind_a_write, recomputed, twice_differentiated),
    *(stale, cut, silent),
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda each: each.__name__)
def test_the_hook_sees_the_same_nodes(program: Callable[[torch.Tensor], object]) -> None:
    def seen(recorded: bool) -> list[str]:
        nodes: list[str] = []
        w = torch.ones(3, requires_grad=True)
        with hooks.node_creation_hook(lambda node: nodes.append(node.name())):
            if not recorded:
                program(w)
            else:
                with gradext.record():
                    program(w)
        return nodes

    alone = seen(False)
    assert len(alone) >= (program is not cut)
    assert seen(True) == alone


def test_what_the_hook_raises_reaches_the_program() -> None:
    def refuses(node: object) -> None:
        raise ValueError("no nodes here")

    w = torch.ones(3, requires_grad=True)
    with gradext.record() as recording:
        with hooks.node_creation_hook(refuses), pytest.raises(ValueError, match="no nodes here"):
            w * 2
        x = torch.ones(3)
        x.add_(1)
    assert [write.op for write in recording.mutations(x)] == ["aten::add_"]


def test_a_hook_that_writes_and_goes_wrong() -> None:
    w = torch.ones(3, requires_grad=True)
    said: list[str] = []

    def does_much(node: object) -> None:
        x.add_(1)
        for wrong in (lambda: torch.ones(1).backward(), lambda: w * 2):
            try:
                wrong()
            except RuntimeError as error:
                said.append(str(error))

    def run() -> list[str]:
        said.clear()
        with hooks.node_creation_hook(does_much):
            (w * 3).sum()
        return list(said)

    x = torch.zeros(3)
    alone = run()
    x = torch.zeros(3)
    with gradext.record():
        assert run() == alone
    assert len(alone) >= 4
    assert x.tolist() == [len(alone) / 2] * 3
