"""The launch probe: it returns nothing, changes nothing, and on a GPU is exactly one kernel."""

from __future__ import annotations

import pytest
import torch
from facts import DOORS
from torch.fx.experimental.proxy_tensor import make_fx

from gradext import ops


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_it_returns_nothing_and_changes_nothing(door, device: str) -> None:
    t = torch.ones(3, device=device, requires_grad=True)
    product = t * 2
    node = product.grad_fn
    result = door.null_launch(product)
    assert result is None or result == ()
    assert product._version == 0
    assert product.grad_fn is node
    product.sum().backward()
    assert t.grad.tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_it_runs_in_every_mode(mode, device: str) -> None:
    with mode():
        t = torch.ones(3, device=device)
        ops.null_launch(t)
        ops.null_launch(torch.empty(0, device=device))
    ops.null_launch(t)
    ops.null_launch(torch.ones(3, device="meta"))


def test_it_has_no_kernel_where_there_is_nothing_to_launch() -> None:
    with pytest.raises(NotImplementedError, match="null_launch"):
        ops.null_launch(torch.eye(3).to_sparse())


def test_a_subclass_sees_it_as_any_op_that_runs() -> None:
    # Not a read of state: it stands for a kernel, and a wrapper decides what a kernel does to it.
    seen = []

    class Wrapper(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            seen.append(func)

    wrapper = torch.Tensor._make_wrapper_subclass(Wrapper, (3,))
    ops.null_launch(wrapper)
    assert seen == [torch.ops.gradext.null_launch.default]


def test_bad_input_is_one_line() -> None:
    with pytest.raises(TypeError) as caught:
        ops.null_launch(3)
    assert str(caught.value) == (
        "gradext.ops.null_launch: expected a torch.Tensor, got builtins.int"
    )


def test_a_tracer_writes_it_down() -> None:
    def program(x):
        torch.ops.gradext.null_launch(x)
        return x + 1

    for tracing_mode in ("real", "fake", "symbolic"):
        graph = make_fx(program, tracing_mode=tracing_mode)(torch.ones(3)).graph
        targets = [node.target for node in graph.nodes if node.op == "call_function"]
        assert torch.ops.gradext.null_launch.default in targets, tracing_mode


@pytest.mark.cuda
def test_it_is_one_kernel_on_the_current_stream() -> None:
    t = torch.ones(3, device="cuda")
    stream = torch.cuda.Stream()
    ops.null_launch(t)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        with torch.cuda.stream(stream):
            for _ in range(3):
                ops.null_launch(t)
        torch.cuda.synchronize()
    kernels = [event.name for event in profile.events() if "null_kernel" in event.name]
    assert len(kernels) == 3
    with torch.cuda.stream(stream):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            ops.null_launch(t)
    graph.replay()
    torch.cuda.synchronize()
