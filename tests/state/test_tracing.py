"""Tracers: each either calls the op when the program runs, or refuses; none writes its answer down.

A version that was read while tracing is the version of the tracer's stand-in, or of one call.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import pytest
import torch
from facts import DOORS, NAMESPACE, OF_ONE, STATE_OPS, call
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck

import gradext
from gradext import ops

doors = pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
each_op = pytest.mark.parametrize("name", STATE_OPS)


@pytest.fixture(autouse=True)
def _fresh_dynamo(capfd: pytest.CaptureFixture[str]):
    """Every test compiles anew, with warnings as errors, and prints nothing."""
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # torch's own, about torch.jit and about inductor's worker processes
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.(script|trace)` is deprecated")
        # torch's own too: Dynamo looks at `.grad` of what lives across any graph break
        warnings.filterwarnings(
            "ignore", message="The .grad attribute of a Tensor that is not a leaf"
        )
        yield
    torch._dynamo.reset()
    printed = capfd.readouterr()
    # A CUDA build of torch says so when inductor looks for a compiler on a machine without a GPU.
    errors = [line for line in printed.err.split("\n") if "No CUDA runtime is found" not in line]
    assert (printed.out, "".join(errors)) == ("", "")


@torch._dynamo.disable
def answers_outside(name: str, t: torch.Tensor) -> Any:
    """The op's answer read where no tracer is, for a comparison in the same place of a program."""
    return call(NAMESPACE, name, t)


@torch._dynamo.disable
def version_outside(t: torch.Tensor) -> int:
    return t._version


def same(name: str, a: Any, b: Any) -> bool:
    if name == "states":
        return torch.equal(a, b)
    if name == "base":
        return a is b
    if name == "dispatch_keys":
        return list(a) == list(b)
    if name == "grad_mode_state":
        return [*a[:2], *map(tuple, a[2:])] == [*b[:2], *map(tuple, b[2:])]
    return a == b


# --- torch.compile ------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@doors
@each_op
def test_compiled_answers_are_those_of_the_run(name: str, door: Any, backend: str) -> None:
    def program(x):
        y = x * 2
        y.add_(1)
        view = y[1:]
        first = call(door, name, view)
        first_outside = answers_outside(name, view)
        y.mul_(2)
        second = call(door, name, view)
        second_outside = answers_outside(name, view)
        return y.sum(), (first, first_outside), (second, second_outside)

    compiled = torch.compile(program, backend=backend)
    x = torch.ones(3, requires_grad=backend == "aot_eager")
    for _ in range(2):
        result, *pairs = compiled(x)
        assert result.item() == 18.0
        for inside, outside in pairs:
            assert same(name, inside, outside)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@doors
def test_no_version_is_baked_in(door: Any, backend: str) -> None:
    def program(x):
        return x + door.version(x), door.version(x), version_outside(x)

    compiled = torch.compile(program, backend=backend)
    x = torch.zeros(3)
    for expected in range(4):
        shifted, inside, outside = compiled(x)
        assert shifted.tolist() == [float(expected)] * 3
        assert inside == outside == expected
        x.zero_()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@doors
def test_two_calls_in_a_row_differ_when_the_fact_does(door: Any, backend: str) -> None:
    def facts(x, y):
        return (
            door.version(x),
            door.is_view(x),
            door.creation_meta(x),
            door.is_inference(x),
            door.shares_version_counter(x, y),
            door.shares_storage(x, y),
            door.grad_mode_state()[0],
            list(door.dispatch_keys(x)),
        )

    compiled = torch.compile(facts, backend=backend)
    t = torch.ones(3)
    with torch.inference_mode():
        inference = torch.ones(3)
        in_mode = t.view(3)
    written = torch.ones(3)
    written.add_(1)
    for x, y in [(t, t), (t, written), (written, t), (t.view(3), t), (in_mode, t), (inference, t)]:
        assert compiled(x, y) == facts(x, y)
        assert compiled(x, y) == facts(x, y)
    with torch.no_grad():
        assert compiled(t, t) == facts(t, t)
        assert compiled(t, t)[6] is False
    assert compiled(t, t)[6] is True


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@doors
@each_op
def test_fullgraph_refuses(name: str, door: Any, backend: str) -> None:
    def program(x):
        call(door, name, x)
        return x + 1

    compiled = torch.compile(program, backend=backend, fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(torch.ones(3))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_doors_for_people_compile_with_a_graph_break(backend: str) -> None:
    def program(x):
        y = x * 2
        y.add_(1)
        state = gradext.inspect(y)
        table = gradext.states([y, y[1:]])
        tree = gradext.inspect_tree({"y": y})
        return state, version_outside(y), table.array.tolist(), tree, y

    compiled = torch.compile(program, backend=backend)
    for _ in range(2):
        state, version, table, tree, y = compiled(torch.ones(3))
        assert state.version == version
        assert table[0][:2] == [version, state.version_counter]
        assert [path for path, _ in tree] == ["['y']"]
        assert tree[0][1] == state
        assert state.shape == (3,)
        assert y.tolist() == [3.0] * 3


def test_a_read_inside_a_compiled_model_leaves_its_gradient_right() -> None:
    def program(x, w):
        y = x @ w
        ops.version(y)
        NAMESPACE.base(y)
        return y.relu().sum()

    x, w = torch.ones(2, 3), torch.ones(3, 4, requires_grad=True)
    torch.compile(program, backend="aot_eager")(x, w).backward()
    assert w.grad.tolist() == [[2.0] * 4] * 3


def test_inductor() -> None:
    def program(x):
        y = x * 2
        y.add_(1)
        view = y[1:]
        facts = (
            ops.version(view),
            NAMESPACE.version(view),
            ops.version_counter(y),
            NAMESPACE.version_counter(view),
            ops.base(view),
            NAMESPACE.base(view),
            ops.creation_meta(view),
            NAMESPACE.creation_meta(view),
            ops.shares_storage(view, y),
            NAMESPACE.shares_storage(view, y),
        )
        return facts, version_outside(view), y, view, y.sin()

    compiled = torch.compile(program, backend="inductor")
    for _ in range(2):
        facts, version, y, view, result = compiled(torch.ones(3))
        # What the compiled graph hands back as `view` is its own affair; torch's word, after it.
        meta = ops.creation_meta(view)
        counters = (ops.version_counter(y), ops.version_counter(view))
        assert facts[:4] == (version, version, *counters)
        assert facts[4] is view._base
        assert facts[5] is view._base
        assert facts[6:] == (meta, meta, True, True)
        assert torch.allclose(result, torch.full((3,), 3.0).sin())


# --- make_fx and torch.export -------------------------------------------------------------------


# With symbolic sizes torch's Python dispatcher is on and a rule in Python refuses, with the error
# that Dynamo understands; without it the op's own kernel does.
@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
@doors
@each_op
def test_make_fx_refuses(name: str, door: Any, tracing_mode: str) -> None:
    def program(x):
        call(door, name, x)
        return x + 1

    error, text = (
        (DataDependentOutputException, f"gradext.{name}.default")
        if tracing_mode == "symbolic"
        else (NotImplementedError, f"gradext::{name} reads live autograd state")
    )
    with pytest.raises(error, match=text) as caught:
        make_fx(program, tracing_mode=tracing_mode)(torch.ones(3))
    assert type(caught.value) is error


@doors
@each_op
def test_make_fx_before_dispatch_refuses(name: str, door: Any) -> None:
    def program(x):
        call(door, name, x)
        return x + 1

    # An op without tensors reaches the tracer before any rule of its own; the tracer then stops by
    # itself, as a graph holds no list of str. What counts is that no graph comes of it.
    error = AssertionError if name == "grad_mode_state" else DataDependentOutputException
    with pytest.raises(error):
        make_fx(program, pre_dispatch=True)(torch.ones(3))


class Module(torch.nn.Module):
    def __init__(self, door: Any, name: str) -> None:
        super().__init__()
        self.door, self.name = door, name

    def forward(self, x):
        call(self.door, self.name, x)
        return x + 1


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
@doors
@each_op
def test_export_refuses(name: str, door: Any, strict: bool) -> None:
    refusal = torch._dynamo.exc.Unsupported if strict else DataDependentOutputException
    with pytest.raises(refusal):
        torch.export.export(Module(door, name), (torch.ones(3),), strict=strict)


def test_a_tracer_s_own_reads_stay_possible_afterwards() -> None:
    with pytest.raises(DataDependentOutputException):
        make_fx(lambda x: x + ops.version(x), tracing_mode="symbolic")(torch.ones(3))
    t = torch.ones(3)
    t.add_(1)
    assert ops.version(t) == NAMESPACE.version(t) == 1


# --- TorchScript --------------------------------------------------------------------------------

needs_torchscript = pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="torch.jit.script is not supported on Python 3.14 and later"
)


@needs_torchscript
def test_torchscript_calls_every_op() -> None:
    @torch.jit.script
    def program(x: torch.Tensor, y: torch.Tensor):
        return (
            torch.ops.gradext.version(x),
            torch.ops.gradext.version_counter(x),
            torch.ops.gradext.is_view(x),
            torch.ops.gradext.is_differentiable_view(x),
            torch.ops.gradext.base(x),
            torch.ops.gradext.creation_meta(x),
            torch.ops.gradext.is_inference(x),
            torch.ops.gradext.dispatch_keys(x),
            torch.ops.gradext.shares_version_counter(x, y),
            torch.ops.gradext.shares_storage(x, y),
            torch.ops.gradext.grad_mode_state(),
            torch.ops.gradext.states([x, y]),
        )

    t = torch.ones(3, requires_grad=True) * 2
    with torch.inference_mode():
        inference = torch.ones(3)
    for _ in range(4):  # the profiling executor rewrites the graph after the first runs
        t.data.add_(1)
        t.add_(1)
        for x in (t, t[1:], t.detach(), inference):
            result = program(x, t)
            expected = [call(NAMESPACE, name, x, t) for name in (*OF_ONE[:7], "dispatch_keys")]
            assert list(result[:8]) == expected
            assert result[4] is x._base
            assert result[8] == ops.shares_version_counter(x, t)
            assert result[9] == ops.shares_storage(x, t)
            assert result[10] == NAMESPACE.grad_mode_state()
            assert torch.equal(result[11], ops.states([x, t]))


@needs_torchscript
def test_torchscript_does_not_move_a_read_past_a_write() -> None:
    @torch.jit.script
    def program(x: torch.Tensor):
        before = torch.ops.gradext.version(x)
        x.add_(1)
        between = torch.ops.gradext.version(x)
        x.add_(1)
        return before, between, torch.ops.gradext.version(x)

    t = torch.zeros(3)
    for run in range(4):
        assert program(t) == (2 * run, 2 * run + 1, 2 * run + 2)


@needs_torchscript
def test_jit_trace_bakes_no_version_in() -> None:
    for name in ("version", "version_counter"):
        with pytest.raises(RuntimeError):
            torch.jit.trace(lambda x, name=name: x + getattr(NAMESPACE, name)(x), (torch.ones(3),))


# --- opcheck ------------------------------------------------------------------------------------

APPLY = ("test_schema", "test_autograd_registration", "test_faketensor")


def opcheck_samples() -> dict[str, torch.Tensor]:
    leaf = torch.ones(4, requires_grad=True)
    written = torch.ones(4)
    written.add_(1)
    with torch.inference_mode():
        inference = torch.ones(4)
    return {
        "plain": torch.ones(3, 2),
        "written": written,
        "leaf": leaf,
        "product": leaf * 2,
        "view": (leaf * 2)[1:],
        "unbind": torch.ones(2, 2).unbind()[0],
        "inference": inference,
        "0-d": torch.tensor(1.0),
        "zero-size": torch.empty(0, 2),
        "complex": torch.ones(2, dtype=torch.cfloat),
    }


def arguments(name: str, t: torch.Tensor) -> tuple[Any, ...]:
    if name == "grad_mode_state":
        return ()
    if name == "states":
        return ([t, t],)
    return (t, t) if name.startswith("shares") else (t,)


@pytest.mark.parametrize("sample", opcheck_samples())
@each_op
def test_opcheck(name: str, sample: str) -> None:
    op = getattr(NAMESPACE, name).default
    args = arguments(name, opcheck_samples()[sample])
    # opcheck itself makes leaves of views and clones of inference tensors; that is its own matter.
    assert opcheck(op, args, test_utils=APPLY) == dict.fromkeys(APPLY, "SUCCESS")
    # The one that does not apply: it traces, and a read of state refuses to be traced.
    result = opcheck(op, args, test_utils="test_aot_dispatch_dynamic", raise_exception=False)
    refusal = result["test_aot_dispatch_dynamic"]
    assert isinstance(refusal, DataDependentOutputException)
    assert refusal.func is op


@pytest.mark.parametrize("sample", opcheck_samples())
def test_opcheck_of_null_launch(sample: str) -> None:
    t = opcheck_samples()[sample]
    result = opcheck(NAMESPACE.null_launch.default, (t,))
    assert result == dict.fromkeys([*APPLY, "test_aot_dispatch_dynamic"], "SUCCESS")
