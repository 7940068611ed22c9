"""The probe ops under tracers: torch.compile, symbolic sizes, functionalization, make_fx."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from gradext import ops


def program(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    z = ops.axpby(x, y, 2.0, 3.0)
    view = ops.window(z, 0, -2, 2)
    ops.axpby_(view, y, 1.0, -1.0)
    return z.sin() * view.sum()


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_values_and_gradients(backend: str, dynamic: bool, device: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(program, backend=backend, dynamic=dynamic, fullgraph=True)
    for rows in (3, 5):
        found = []
        for run in (compiled, program):
            generator = torch.Generator().manual_seed(rows)
            x, y = (
                torch.randn(*shape, generator=generator).to(device).requires_grad_()
                for shape in ((rows, 4), (4,))
            )
            result = run(x, y)
            found.append([result.detach(), *torch.autograd.grad(result.sum(), (x, y))])
        for mine, theirs in zip(*found, strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_write_reaches_the_caller(backend: str, device: str) -> None:
    torch._dynamo.reset()

    def write(x: torch.Tensor) -> torch.Tensor:
        return ops.axpby_(x, torch.ones_like(x), 2.0, 1.0)

    x = torch.ones(3, device=device)
    assert torch.compile(write, backend=backend, fullgraph=True)(x) is x
    assert x.tolist() == [3.0] * 3
    assert x._version > 0


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_view_is_a_view_of_the_input(backend: str, device: str) -> None:
    torch._dynamo.reset()
    x = torch.arange(6.0, device=device)
    view = torch.compile(lambda x: ops.window(x, 0, -4, 2), backend=backend, fullgraph=True)(x)
    assert view._base is x
    view.zero_()
    assert x.tolist() == [0, 1, 0, 0, 4, 5]


def targets(graph: torch.fx.GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
def test_make_fx_writes_the_ops_down(tracing_mode: str) -> None:
    traced = make_fx(program, tracing_mode=tracing_mode)(torch.ones(3, 4), torch.ones(4))
    assert targets(traced)[:3] == [
        *("gradext.axpby.default", "gradext.window.default"),
        "gradext.axpby_.default",
    ]
    x, y = torch.randn(3, 4), torch.randn(4)
    torch.testing.assert_close(traced(x, y), program(x, y))


def test_functionalized_the_view_is_torchs_slice() -> None:
    def f(x):
        z = x.clone()
        ops.window(z, 0, -2, 2).mul_(2)
        return z

    traced = make_fx(torch.func.functionalize(f))(torch.ones(3))
    assert "gradext.window.default" not in targets(traced)
    assert "aten.slice.Tensor" in targets(traced)
    assert traced(torch.ones(3)).tolist() == [1.0, 2.0, 2.0]


def test_symbolic_sizes_stay_symbolic() -> None:
    traced = make_fx(lambda x, y: ops.axpby(x, y, 1.0, 1.0), tracing_mode="symbolic")(
        torch.ones(5, 4), torch.ones(4)
    )
    (node,) = [n for n in traced.graph.nodes if n.op == "call_function"]
    assert isinstance(node.meta["val"].shape[0], torch.SymInt)
    torch.testing.assert_close(traced(torch.ones(7, 4), torch.ones(4)), torch.full((7, 4), 2.0))


def test_the_variants_break_the_graph_of_a_compiled_program() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()

    def f(x):
        ops.axpby_nothing(x, x, 1.0, 1.0)
        return x + 1

    assert torch.compile(f, backend=counter)(torch.ones(2)).tolist() == [2.0, 2.0]
    assert (counter.frame_count, counter.op_count) == (1, 1)  # the addition alone
