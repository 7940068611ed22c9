"""What runs within an op of torch's own makes no event, unless it is the program's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from events import shorts
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import gradext
from gradext.recording.recording import Recording
from gradext.source import sites


def code_of_node(recording: Recording, node: Any) -> str:
    """The user's line that made a node of this thread, from the saves."""
    data = recording.data
    stack, _ = data.node_stack(int(data.saves[-1][0]), node._sequence_nr())
    frame = sites.user_frame(recording.frames(stack))
    assert frame is not None
    return frame.code


def test_nodes_of_a_pack_hook_keep_the_line_in_it() -> None:
    made = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            made.append(tensor.detach().requires_grad_() * 2)  # in the hook
        return tensor

    x = torch.ones(3, requires_grad=True)
    with (
        gradext.record() as recording,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        y = x.exp()  # outside
        z = y.neg()
        assert "in the hook" in code_of_node(recording, made[0].grad_fn)
        assert "z = y.neg()" in code_of_node(recording, z.grad_fn)


def test_nodes_of_composites_have_the_line_of_the_call() -> None:
    layer, x = nn.Linear(3, 3), torch.ones(2, 3)
    with gradext.record() as recording:
        a = nn.functional.linear(x, layer.weight, layer.bias)
        b = nn.functional.layer_norm(a, (3,))
        c = torch.einsum("ij,kj->ik", b, b)
        for node, line in ((a, "a = nn"), (b, "b = nn"), (c, "c = torch")):
            assert code_of_node(recording, node.grad_fn).startswith(line)


class Counting(TorchDispatchMode):
    """Counts each op by a write to a tensor of the program's."""

    def __init__(self) -> None:
        super().__init__()
        self.ops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops += 1
        return func(*args, **(kwargs or {}))


def test_a_mode_of_the_programs_sees_what_it_saw() -> None:
    x = torch.ones(2, 3)
    with Counting() as plain:
        nn.functional.softmax(x @ x.t(), 1).sum()
    with gradext.record(), Counting() as recorded:
        nn.functional.softmax(x @ x.t(), 1).sum()
    assert recorded.ops == plain.ops > 3


@pytest.mark.parametrize("fails", [torch.mm, torch.logsumexp, torch.stack, torch.Tensor.expand])
def test_an_op_that_raises_leaves_the_recorder_on(fails: Any) -> None:
    x = torch.ones(3)
    with gradext.record() as recording:
        for grad_mode in (True, False):
            with torch.set_grad_enabled(grad_mode):
                with pytest.raises((RuntimeError, TypeError, IndexError)):
                    fails(x, 7) if fails is not torch.mm else fails(x, x)
                x.add_(1)
                x.detach().mul_(2)
        assert shorts(recording) == [("add_", 0, 1), ("mul_", 1, 2), ("add_", 2, 3), ("mul_", 3, 4)]


def test_flows_of_composites_under_no_grad_are_the_programs_ops() -> None:
    layer = nn.Linear(3, 3)
    with gradext.record() as recording:
        with torch.no_grad():
            out = layer(torch.ones(1, 3)).logsumexp(-1).multiply(2)
        flow = recording.flow(out)
        assert flow is not None
        names = []
        while flow is not None:
            names.append(flow.op)
            parents = [recording.data.origin(number) for number in flow.parents]
            flow = parents[0] if parents else None
        assert names[-1] in ("aten::linear", "aten::addmm")
        assert names[:2] == ["aten::mul", "aten::logsumexp"]
        assert len(names) == 3
