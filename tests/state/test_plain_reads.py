"""gradext.ops reads a plain tensor at once, and asks the dispatcher wherever that has a say."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from facts import MODES, NAMESPACE, OF_ONE, OF_TWO
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import gradext
from gradext import _C, ops

ONE = tuple(name for name in OF_ONE if name != "dispatch_keys")
ASKED = object()  # what the dispatcher answers in these tests


@pytest.fixture(params=[*ONE, *OF_TWO])
def read(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """Reads one fact; gives ASKED where the dispatcher is asked for it."""
    name: str = request.param
    reader = _C.plain_reader(name, lambda *tensors: ASKED)
    return (lambda t: reader(t, t)) if name in OF_TWO else reader


class Subclass(torch.Tensor):
    pass


class Wrapper(torch.Tensor):
    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Function(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def plain_tensors() -> dict[str, torch.Tensor]:
    leaf = torch.ones(4, requires_grad=True)
    with torch.inference_mode():
        inference = torch.ones(4)
    return {
        "plain": torch.ones(4),
        "view": (leaf * 2)[1:],
        "inference": inference,
        "Parameter": torch.nn.Parameter(torch.ones(4)),
        "meta": torch.ones(4, device="meta"),
        "sparse": torch.eye(3).to_sparse(),
        "conj": torch.ones(2, dtype=torch.cfloat).conj(),
    }


@contextlib.contextmanager
def recording() -> Iterator[None]:
    with gradext.record(saves=False):
        yield


NOTHING_BETWEEN = {
    **MODES,
    "autocast": lambda: torch.autocast("cpu"),
    "a TorchFunctionMode": Function,
    "a recording without saves": recording,
    "DisableTorchFunction": torch._C.DisableTorchFunction,
}


@pytest.mark.parametrize("around", NOTHING_BETWEEN.values(), ids=NOTHING_BETWEEN)
@pytest.mark.parametrize("kind", plain_tensors())
def test_a_plain_tensor_is_read_at_once(read: Any, kind: str, around: Any) -> None:
    t = plain_tensors()[kind]
    with around():
        found = read(t)
    assert found is not ASKED


@pytest.mark.parametrize(
    "t",
    [
        None,
        3,
        torch.Tensor,
        torch.ones(3).as_subclass(Subclass),
        Wrapper(torch.ones(3)),
        torch.nn.Parameter(torch.ones(3).as_subclass(Subclass)),
        FakeTensorMode().from_tensor(torch.ones(3)),
    ],
    ids=["None", "3", "a class", "subclass", "wrapper", "Parameter of a subclass", "fake"],
)
def test_all_else_is_the_dispatcher_s(read: Any, t: Any) -> None:
    assert read(t) is ASKED


@pytest.mark.parametrize("name", OF_TWO)
def test_of_two_tensors_both_have_to_be_plain(name: str) -> None:
    reader = _C.plain_reader(name, lambda *tensors: ASKED)
    plain, other = torch.ones(3), torch.ones(3).as_subclass(Subclass)
    assert reader(plain, plain) is True
    assert reader(plain, other) is reader(other, plain) is reader(plain, None) is ASKED
    assert reader(plain) is reader() is reader(plain, plain, plain) is ASKED


def inside(transform: Callable[..., Any]) -> Callable[[Any], Any]:
    """What `read` says of a plain tensor of outside, while `transform` runs a function."""

    def ask(read: Callable[[Any], Any]) -> Any:
        plain, found = torch.ones(3), []

        def function(x: torch.Tensor) -> torch.Tensor:
            found.append(read(plain))
            return (x * 2).sum()

        transform(function)(torch.ones(3))
        return found[0]

    return ask


def under(context: Callable[[], Any]) -> Callable[[Any], Any]:
    def ask(read: Callable[[Any], Any]) -> Any:
        plain = torch.ones(3)
        with context():
            return read(plain)

    return ask


BETWEEN = {
    "a TorchDispatchMode": under(Dispatch),
    "FakeTensorMode": under(FakeTensorMode),
    "the Python dispatcher": under(torch._dispatch.python.enable_python_dispatcher),
    "the profiler": under(torch.profiler.profile),
    "the autograd profiler": under(torch.autograd.profiler.profile),
    "vmap": inside(torch.func.vmap),
    "grad": inside(torch.func.grad),
    "functionalize": inside(torch.func.functionalize),
    "make_fx": inside(make_fx),
    "make_fx, fake": inside(lambda function: make_fx(function, tracing_mode="fake")),
    "make_fx, symbolic": inside(lambda function: make_fx(function, tracing_mode="symbolic")),
    "make_fx before dispatch": inside(lambda function: make_fx(function, pre_dispatch=True)),
    "export": inside(
        lambda function: lambda x: torch.export.export(Exported(function), (x,), strict=False)
    ),
}


class Exported(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("ask", BETWEEN.values(), ids=BETWEEN)
def test_whoever_sees_ops_sees_the_read(read: Any, ask: Any) -> None:
    assert ask(read) is ASKED
    assert read(torch.ones(3)) is not ASKED  # nothing of it stays


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
def test_torch_jit_trace_sees_the_read(read: Any) -> None:
    def trace(function: Callable[..., Any]) -> Callable[[Any], Any]:
        return lambda x: torch.jit.trace(function, (x,), check_trace=False)

    assert inside(trace)(read) is ASKED


def test_a_profile_has_the_op_by_name() -> None:
    t = torch.ones(3)
    with torch.profiler.profile() as profile:
        assert ops.version(t) == 0
        assert ops.shares_storage(t, t)
    names = {event.key for event in profile.key_averages()}
    assert {"gradext::version", "gradext::shares_storage"} <= names


@pytest.mark.parametrize("name", [*ONE, *OF_TWO])
def test_both_ways_give_the_same_answer_of_the_same_type(name: str) -> None:
    function, op = getattr(ops, name), getattr(NAMESPACE, name)
    for kind, t in plain_tensors().items():
        arguments = (t, t) if name in OF_TWO else (t,)
        found, wanted = function(*arguments), op(*arguments)
        assert type(found) is type(wanted), kind
        assert found is wanted if name == "base" else found == wanted, kind


def test_the_functions_stay_python_s_own() -> None:
    for name in [*ONE, *OF_TWO]:
        function = getattr(ops, name)
        assert inspect.isfunction(function)
        names = ["a", "b"] if name in OF_TWO else ["t"]
        assert [*inspect.signature(function).parameters] == names
        assert function.__doc__
        assert (function.__name__, function.__module__) == (name, "gradext.ops")
    t = torch.ones(3)
    t.add_(1)
    assert ops.version(t=t) == 1
    assert ops.shares_storage(b=t, a=t) is True


def test_there_is_no_reader_of_another_name() -> None:
    with pytest.raises(KeyError):
        _C.plain_reader("dispatch_keys", print)


def test_what_the_dispatcher_s_way_raises_comes_out() -> None:
    def refuse(*tensors: Any) -> Any:
        raise ZeroDivisionError

    for name in [*ONE, *OF_TWO]:
        reader = _C.plain_reader(name, refuse)
        with pytest.raises(ZeroDivisionError):
            reader(*(None, None) if name in OF_TWO else (None,))
