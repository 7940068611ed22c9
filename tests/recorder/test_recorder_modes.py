"""Writes under transforms, subclasses, modes, checkpoints and compilers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from events import history, recorded, shorts, user_line, writes

import gradext

# --- transforms, subclasses, modes ---


def test_vmap_over_an_in_place_op_is_a_write_to_the_batch() -> None:
    x = torch.ones(3, 2)
    recording = recorded(lambda: torch.vmap(lambda row: row.neg_())(x))
    assert x._version == 1
    assert history(recording, x) == [("neg_", 0, 1)]


def test_grad_over_an_in_place_op() -> None:
    x = torch.ones(3)

    def f(t: torch.Tensor) -> torch.Tensor:
        return (t * 2).mul_(torch.full((3,), 3.0)).sum()

    plain = torch.func.grad(f)(x)
    results: list[torch.Tensor] = []
    recording = recorded(lambda: results.append(torch.func.grad(f)(x)))
    assert results[0].tolist() == plain.tolist() == [6, 6, 6]
    assert shorts(recording) == [("mul_", 0, 1)]
    assert history(recording, x) == []
    assert user_line(recording, writes(recording)[0]).function.endswith("f")


class Function(torch.Tensor):
    """A __torch_function__ subclass: Tensor's own."""


def test_torch_function_subclass() -> None:
    x = torch.ones(3).as_subclass(Function)
    recording = recorded(lambda: x.neg_())
    assert history(recording, x) == [("neg_", 0, 1)]
    assert (
        user_line(recording, writes(recording)[0]).code == "recording = recorded(lambda: x.neg_())"
    )


def test_torch_dispatch_subclass_counts_on_the_wrapper() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    x = TwoTensor(torch.ones(3), torch.ones(3))
    recording = recorded(lambda: x.neg_())
    assert history(recording, x) == [("neg_", 0, 1)]
    assert x.a.tolist() == [-1, -1, -1]


def test_torch_dispatch_mode() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[str] = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    x = torch.ones(3)

    def program() -> None:
        with Mode():
            x.neg_()

    recording = recorded(program)
    assert seen == ["aten.neg_.default"]
    assert history(recording, x) == [("neg_", 0, 1)]


def test_fake_tensors_are_not_recorded() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    def program() -> None:
        with FakeTensorMode():
            torch.ones(3).neg_()
        kept.neg_()
        real.cos_()

    with FakeTensorMode():
        kept = torch.ones(3)
    real = torch.ones(3)
    assert shorts(recorded(program)) == [("cos_", 0, 1)]


def test_meta_tensors_are_not_recorded() -> None:
    x = torch.ones(3, device="meta")
    recording = recorded(lambda: (x.neg_(), x[0].cos_(), torch._foreach_neg_([x])))
    assert writes(recording) == []


def test_functionalized_tensors_are_not_recorded() -> None:
    x = torch.ones(3)

    def f(t: torch.Tensor) -> torch.Tensor:
        y = t * 1
        y.neg_()
        return y

    recording = recorded(lambda: torch.func.functionalize(f)(x))
    assert writes(recording) == []


# --- graphs, compilers ---


def test_torch_cond() -> None:
    x = torch.ones(3)
    results: list[torch.Tensor] = []

    def program() -> None:
        results.append(torch.cond(torch.tensor(True), lambda t: t + 1, lambda t: t - 1, (x,)))
        x.neg_()

    recording = recorded(program)
    assert results[0].tolist() == [2, 2, 2]
    assert history(recording, x) == [("neg_", 0, 1)]


def test_flex_attention() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    x = torch.randn(1, 1, 4, 4)
    plain = flex_attention(x, x, x)
    results: list[Any] = []

    def program() -> None:
        results.append(flex_attention(x, x, x))
        x.neg_()

    recording = recorded(program)
    assert torch.equal(results[0], plain)
    assert history(recording, x) == [("neg_", 0, 1)]


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint_records_both_runs(reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    x = torch.ones(3, requires_grad=True)

    def block(t: torch.Tensor) -> torch.Tensor:
        h = t * 2
        h.add_(torch.ones(3))
        return h.sin()

    def program() -> None:
        checkpoint(block, x, use_reentrant=reentrant).sum().backward()

    recording = recorded(program)
    assert shorts(recording) == [("add_", 0, 1)] * 2
    assert [user_line(recording, w).code for w in writes(recording)] == [
        "h.add_(torch.ones(3))"
    ] * 2


def _compiled(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    x.mul_(y)
    return y


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile(backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(_compiled, backend=backend)
    plain, x, results = torch.ones(3), torch.ones(3), []
    _compiled(plain)

    def program() -> None:
        results.append(compiled(x))
        results.append(compiled(x))

    recording = recorded(program)
    _compiled(plain)
    assert torch.equal(plain, x)
    steps = history(recording, x)
    assert [op for op, _, _ in steps] == ["mul_" if backend == "eager" else "copy_"] * 2
    assert steps[-1][2] == x._version
    lines = [user_line(recording, w) for w in recording.mutations(x) if not w.is_note]
    assert [frame.file for frame in lines] == [__file__] * 2
    assert [frame.code for frame in lines] == ["x.mul_(y)"] * 2  # the graph remembers the line
    callers = [recording.frames(w.stack) for w in recording.mutations(x) if not w.is_note]
    calls = [next(f.line for f in stack if "compiled(x)" in f.code) for stack in callers]
    assert calls[0] + 1 == calls[1]
    # What the compiler writes while it traces is no memory of the program's.
    counter = gradext.inspect(x).version_counter
    assert [w.op for w in writes(recording) if w.counter != counter] == []
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jit() -> None:
    x, y = torch.ones(3), torch.ones(3)
    traced = torch.jit.trace(_compiled, (torch.ones(3),))
    scripted = torch.jit.script(_compiled)
    recording = recorded(lambda: (traced(x), scripted(y)))
    assert history(recording, x) == [("mul_", 0, 1)]
    assert history(recording, y) == [("mul_", 0, 1)]
    assert {user_line(recording, w).file for w in writes(recording)} == {__file__}


def test_export_leaves_no_trace() -> None:
    class Program(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x * 2
            y.neg_()
            return y

    x = torch.ones(3)
    exported: list[Any] = []
    recording = recorded(lambda: exported.append(torch.export.export(Program(), (x,))))
    assert [w.op for w in writes(recording)] == []
    assert exported[0].module()(x).tolist() == [-2, -2, -2]
