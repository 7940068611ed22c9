"""Values without gradient: where each lost it, and what was made of it."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from events import run_program
from torch import nn

import gradext
from gradext import _C
from gradext.recording import events
from gradext.recording.events import Birth, Flow
from gradext.rules.wording import chains
from gradext.source import sites

w = torch.ones(3, requires_grad=True)
layer = nn.Linear(3, 3)


class Rounding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        out = x.round()
        ctx.mark_non_differentiable(out)
        return out


class Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return layer(x)


def under_no_grad() -> torch.Tensor:
    with torch.no_grad():
        return layer(torch.ones(1, 3))


def detached_in_place() -> torch.Tensor:
    y = w * 2
    return y.detach_()


def copied_into() -> torch.Tensor:
    buffer = torch.zeros(3)
    with torch.no_grad():
        buffer.copy_(w)
    return buffer


def copied_into_a_row() -> torch.Tensor:
    buffer = torch.zeros(2, 3)
    buffer[0] = (w * 2).detach()
    return buffer


F = events
IS_VIEW, TAINT_CUT = (_C.EVENT_FLAGS["flows"][name] for name in ("IS_VIEW", "TAINT_CUT"))
CUTS: dict[str, tuple[Callable[[], Any], str, int]] = {
    "detach": (lambda: (w * 2).detach(), "aten::detach", F.CUT | IS_VIEW),
    "detach of a leaf": (lambda: w.detach(), "aten::detach", F.CUT | F.SOURCE_IS_LEAF),
    "detach_": (detached_in_place, "aten::detach_", F.CUT | F.WRITTEN),
    "data": (lambda: (w * 2).data, "Tensor.data", F.CUT | IS_VIEW),
    "no_grad": (under_no_grad, "aten::linear", F.CUT | F.NO_GRAD),
    "argmax": (lambda: (w * 2).argmax(), "aten::argmax", F.CUT | F.NOT_FLOATING),
    "max": (lambda: (w * 2).max(0)[1], "aten::max", F.CUT | F.NOT_FLOATING),
    "topk": (lambda: (w * 2).topk(2)[1], "aten::topk", F.CUT | F.NOT_FLOATING),
    "comparison": (lambda: (w * 2) > 1, "aten::gt", F.CUT | F.NOT_FLOATING),
    "long": (lambda: (w * 2).long(), "aten::_to_copy", F.CUT | F.NOT_FLOATING),
    "bool": (lambda: (w * 2).bool(), "aten::_to_copy", F.CUT | F.NOT_FLOATING),
    "heaviside": (lambda: torch.bucketize(w * 2, torch.ones(1)), "aten::bucketize", F.CUT),
    "tensor": (lambda: torch.tensor([w.sum(), w.sum()]), "torch.tensor", F.CUT | F.FROM_PYTHON),
    "Function": (lambda: Rounding.apply(w * 2), "autograd.Function.apply", F.CUT),
    "grad": (
        lambda: torch.autograd.grad((w * w).sum(), w)[0],
        "torch.autograd.grad",
        F.CUT | F.GRAD_CALL,
    ),
    "copy_ under no_grad": (copied_into, "aten::copy_", F.CUT | F.WRITTEN | F.NO_GRAD),
}


def flow_of(make: Callable[[], Any]) -> tuple[gradext.Recording, Any, Flow]:
    with gradext.record() as recording:
        tensor = make()
        flow = recording.flow(tensor)
    assert flow is not None
    return recording, tensor, flow


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_every_cut(name: str) -> None:
    make, op, flags = CUTS[name]
    recording, tensor, flow = flow_of(make)
    assert not tensor.requires_grad
    assert (flow.op, flow.flags & flags) == (op, flags)
    frame = sites.user_frame(recording.frames(flow.stack))
    assert frame is not None
    assert frame.file == __file__
    assert flow.lives
    assert flow.tensor == gradext.inspect(tensor).id


def test_the_source_is_the_node_or_the_leaf() -> None:
    with gradext.record() as recording:
        y = w * 2
        rows, _ = _C.graph([y], 1)
        made = [y.detach(), w.detach()]
        cuts = [flow for tensor in made if (flow := recording.flow(tensor))]
    assert [f.source_node for f in cuts] == [(rows[0][2], rows[0][3]), None]
    assert cuts[0].source == gradext.inspect(y).id
    assert cuts[1].source == gradext.inspect(w).id


def chain_of(recording: gradext.Recording, tensor: torch.Tensor) -> list[str]:
    """The ops on the way back, nearest first."""
    data = recording.data
    origin: Birth | Flow | None = recording.birth(tensor) or recording.flow(tensor)
    return [step.origin.op for step in chains.back_from(data, [origin]).steps]


def test_the_way_back_through_what_was_made_of_it() -> None:
    with gradext.record() as recording:
        h = (w * 2).detach()
        loss = ((h + torch.ones(3)).view(3, 1).t() * 3).sum()
        way = chain_of(recording, loss)
    wanted = "sum mul t view add detach ones"
    assert way == [f"aten::{op}" for op in wanted.split()]


@pytest.mark.parametrize(
    ("leave", "reads"),
    [
        (lambda y: torch.tensor(y.sum().item()), ["torch.tensor", "aten::_local_scalar_dense"]),
        (lambda y: torch.tensor(float(y.sum())), ["torch.tensor", "aten::_local_scalar_dense"]),
        (
            lambda y: torch.from_numpy(y.detach().numpy() * 2),
            ["torch.from_numpy", "Tensor.numpy", "aten::detach"],
        ),
        (
            lambda y: torch.as_tensor(numpy.asarray(y.detach()) * 2),
            ["torch.as_tensor", "Tensor.numpy", "aten::detach"],
        ),
        (lambda y: torch.tensor(y.tolist()), ["torch.tensor", "Tensor.tolist"]),
        (lambda y: torch.tensor([v * 2 for v in y.tolist()]), ["torch.tensor", "Tensor.tolist"]),
    ],
)
def test_through_python_and_back(leave: Callable[[Any], Any], reads: list[str]) -> None:
    with gradext.record() as recording:
        y = w * 2
        torch.tensor(1.0)
        z = leave(y)
        way = chain_of(recording, z.sum())
        steps = chains.back_from(recording.data, [recording.flow(z)])
    assert way == ["aten::sum", *reads]
    assert [step.origin.op for step in steps.cuts()] == [reads[-1]]
    assert all(step.is_sure for step in steps.steps)


def test_the_number_tells_which_value_came_back() -> None:
    with gradext.record() as recording:
        first = (w * 2).sum().item()  # this one
        second = (w * 3).sum().item()
        loss = torch.tensor(first)
        steps = chains.back_from(recording.data, [recording.flow(loss)]).steps
    assert second != first
    frame = sites.user_frame(recording.frames(steps[-1].origin.stack))
    assert frame is not None
    assert frame.code.endswith("# this one")


def test_values_that_never_had_a_gradient_are_no_exit() -> None:
    with gradext.record() as recording:
        torch.ones(3).sum().item()
        torch.arange(3).tolist()
        torch.ones(3).numpy()
        with torch.no_grad():
            torch.ones(3).sum().item()
    assert recording.data.flows_with(events.TO_PYTHON) == []
    assert recording.data.flows_with(events.TO_PYTHON, 2) == []


def test_where_grad_mode_was_switched_off() -> None:
    def line(recording: gradext.Recording, flow: Flow | None) -> str:
        assert flow is not None
        frame = sites.user_frame(recording.frames(flow.mode))
        assert frame is not None
        return frame.code

    with gradext.record() as recording:
        with torch.no_grad():  # the block
            one = layer(torch.ones(1, 3))
            with torch.no_grad(), torch.enable_grad():
                pass
            two = layer(torch.ones(1, 3))
        torch.set_grad_enabled(False)  # the switch
        three = layer(torch.ones(1, 3))
        torch.set_grad_enabled(True)
        four = layer(torch.ones(1, 3))
        flows = [recording.flow(t) for t in (one, two, three, four)]
    assert line(recording, flows[0]) == "with torch.no_grad():  # the block"
    assert line(recording, flows[1]) == "with torch.no_grad():  # the block"
    assert line(recording, flows[2]) == "torch.set_grad_enabled(False)  # the switch"
    assert flows[3] is None
    assert four.requires_grad


def switched_off_by(recording: gradext.Recording, t: torch.Tensor) -> str:
    flow = recording.flow(t)
    assert flow is not None
    frame = sites.user_frame(recording.frames(flow.mode))
    assert frame is not None
    return frame.code


def test_plain_switches_within_a_block_leave_nothing_behind() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    with gradext.record() as recording:
        for _ in range(100):
            optimizer.step()  # grad mode off and on again, by no block
        with torch.no_grad():  # the block
            with torch.enable_grad():
                optimizer.step()
                torch.set_grad_enabled(False)
                torch.set_grad_enabled(True)
            one = layer(torch.ones(1, 3))
            with torch.set_grad_enabled(True):
                optimizer.step()
            two = layer(torch.ones(1, 3))
            with contextlib.ExitStack() as stack:
                stack.enter_context(torch.enable_grad())
                optimizer.step()
            three = layer(torch.ones(1, 3))
            with torch.enable_grad():
                torch.set_grad_enabled(False)
            four = layer(torch.ones(1, 3))
        block = "with torch.no_grad():  # the block"
        assert [switched_off_by(recording, t) for t in (one, two, three, four)] == [block] * 4


def test_a_block_that_an_earlier_recording_saw_begin() -> None:
    with gradext.record():
        outer = torch.enable_grad()
        torch.set_grad_enabled(False)  # of another recording
        outer.__enter__()
    outer.__exit__(None, None, None)
    torch.set_grad_enabled(True)
    with gradext.record() as recording, torch.no_grad():  # this one
        with torch.enable_grad():
            pass
        one = layer(torch.ones(1, 3))
        assert switched_off_by(recording, one).endswith("# this one")


def test_a_function_that_hides_parameters() -> None:
    with gradext.record() as recording:
        given = torch.ones(1, 3)
        out = Hidden.apply(given)  # the call
        flow = recording.flow(out)
        assert flow is not None
        assert flow.op == "autograd.Function.apply"
        assert flow.has(events.IN_FUNCTION)
        inner, outer = (recording.data.origin(number) for number in flow.parents)
    assert isinstance(inner, Flow)
    assert isinstance(outer, Flow)
    assert inner.has(events.CUT)
    assert inner.has(events.IN_FUNCTION)
    frame = sites.user_frame(recording.frames(inner.mode))
    assert frame is not None
    assert frame.code == "out = Hidden.apply(given)  # the call"
    assert outer.tensor == gradext.inspect(given).id


def test_what_requires_grad_leaves_no_flow() -> None:
    with gradext.record() as recording:
        y = layer(torch.ones(2, 3)).relu().sum()
        y.backward()
        assert recording.flow(y) is None
    assert recording.data.flows_with(events.CUT) == []
    layer.zero_grad()


def test_backward_and_optimizers_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    for kind in (torch.optim.SGD, torch.optim.Adam):
        for foreach in (True, False):
            optimizer = kind(model.parameters(), lr=0.1, foreach=foreach)  # type: ignore[call-arg]
            x = torch.ones(4, 3)
            with gradext.record() as recording:
                for _ in range(3):
                    optimizer.zero_grad()
                    model(x).sum().backward()
                    optimizer.step()
            lines = {f.op for f in recording.data.flows_with(events.CUT)}
            assert lines <= {"aten::zeros_like", "aten::detach"}, (kind, foreach, lines)


def test_like_functions_carry_no_value() -> None:
    with gradext.record() as recording:
        made = [torch.zeros_like(w), torch.empty_like(w * 2), w.new_zeros(3), torch.rand_like(w)]
        flows = [recording.flow(tensor) for tensor in made]
    for flow in flows:
        assert flow is not None
        assert not flow.flags & (events.CUT | TAINT_CUT)
        assert flow.parents == ()


# --- requires_grad --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("switch", "value"),
    [
        (lambda t: t.requires_grad_(False), False),
        (lambda t: t.requires_grad_(), True),
        (lambda t: setattr(t, "requires_grad", False), False),
        (lambda t: setattr(t, "requires_grad", True), True),
        (lambda t: nn.ParameterList([t]).requires_grad_(False), False),
    ],
)
def test_who_set_requires_grad(switch: Callable[[Any], Any], value: bool) -> None:
    parameter = nn.Parameter(torch.ones(2))
    with gradext.record() as recording:
        switch(parameter)  # set here
        flag = recording.data.flag_of(gradext.inspect(parameter).id)
    assert parameter.requires_grad is value
    assert flag is not None
    assert flag.value is value
    frame = recording.frames(flag.stack)
    assert any(f.code == "switch(parameter)  # set here" for f in frame)


def test_a_flag_remembers_what_the_tensor_was_made_of() -> None:
    with gradext.record() as recording:
        y = torch.tensor((w * 2).sum().item()) * 1
        y.requires_grad = True
        flag = recording.data.flag_of(gradext.inspect(y).id)
    assert flag is not None
    assert flag.taints & events.TAINT_PYTHON
    origin = recording.data.origin(flag.parent)
    assert isinstance(origin, Flow)
    assert origin.op == "aten::mul"


# --- bounded, and nothing is kept alive -----------------------------------------------------------


def test_nothing_is_kept_alive() -> None:
    with gradext.record(), torch.no_grad():
        tensors = [layer(torch.ones(1, 3)) for _ in range(50)]
        references = [weakref.ref(tensor) for tensor in tensors]
        storages = [weakref.ref(tensor.untyped_storage()) for tensor in tensors]
        del tensors
        gc.collect()
        assert all(reference() is None for reference in references)
        assert all(reference() is None for reference in storages)


def test_the_graph_behind_a_cut_is_let_go() -> None:
    class Hook:
        def __call__(self, *gradients: Any) -> None: ...

    with gradext.record():
        y = w * 2
        hook = Hook()
        y.grad_fn.register_hook(hook)  # which the node holds
        node = weakref.ref(hook)
        kept = y.detach()
        del hook
        gc.collect()
        assert node() is not None
        del y
        gc.collect()
        assert node() is None
    assert not kept.requires_grad


def test_old_flows_are_dropped_and_counted() -> None:
    with gradext.record(memory=1) as recording:
        x = torch.ones(1)
        for _ in range(20_000):
            x + 1
        dropped, memory = recording.dropped["flows"], recording.memory
    assert dropped > 10_000
    assert memory["flows"] + dropped >= 20_000
    assert memory["held_bytes"] <= (1 << 20) + (256 << 10)


def test_a_living_value_outlasts_the_ring() -> None:
    with gradext.record(memory=1) as recording:
        kept = (w * 2).detach()  # kept
        for _ in range(20_000):
            kept + 1
        flow = recording.flow(kept)
    assert flow is not None
    frame = sites.user_frame(recording.frames(flow.stack))
    assert frame is not None
    assert frame.code.endswith("# kept")


def test_memory_of_an_evaluation_is_flat(tmp_path: Path) -> None:
    done = run_program(
        """
        import os, torch, gradext
        from torch import nn

        torch.set_num_threads(1)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        x = torch.randn(32, 64)

        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        with gradext.record(memory=4) as recording, torch.no_grad():
            for _ in range(3000):
                model(x).argmax(1).tolist()
            before = resident()
            for _ in range(5000):
                model(x).argmax(1).tolist()
            print(resident() - before, recording.memory["held_bytes"])
        """,
        tmp_path,
    ).stdout
    grown, held = (int(word) for word in done.split())
    assert grown < 8 << 20
    assert held <= (4 << 20) + (256 << 10)


def test_narrowed() -> None:
    for options, wanted in (
        ({"cuts": False}, False),
        ({"saves": False}, False),
        ({"births": False}, True),
        ({"saves": False, "cuts": True}, True),
    ):
        with gradext.record(**options) as recording:  # type: ignore[arg-type]
            tensor = w.detach()
            assert (recording.flow(tensor) is not None) is wanted, options


def test_of_many_values_that_left_the_latest_are_given():
    x = torch.arange(5.0, requires_grad=True)

    def program():
        for k in range(5):
            (x[k] * 2).item()

    with gradext.record() as recording:
        program()
    data = recording.data
    left = [flow.value for flow in data.flows_with(events.TO_PYTHON)]
    assert left == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert [flow.value for flow in data.flows_with(events.TO_PYTHON, 2)] == [6.0, 8.0]
    assert [flow.value for flow in data.flows_with(events.TO_PYTHON, 9)] == left


def test_the_writes_of_one_op():
    x, y = torch.ones(3), torch.ones(3, requires_grad=True)

    def program():
        x.neg_()
        (y * 2).detach_()
        x.add_(1)
        x.neg_()

    with gradext.record() as recording:
        program()
    data = recording.data
    every = [data.write(row) for row in data.writes]
    for op in ("aten::neg_", "aten::detach_", "aten::add_", "aten::mul_"):
        assert data.writes_of_op(op) == [w for w in every if w.op == op]
    assert len(data.writes_of_op("aten::neg_")) == 2
    assert len(data.writes_of_op("aten::detach_")) == 1
    assert data.writes_of_op("aten::mul_") == []
