"""An internal of torch that is not where it was: that feature is off, in one line, and no other."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
import torch

import gradext
from gradext import _C
from gradext.commands import doctor
from gradext.native import torch_internals
from gradext.recording import own_errors

PLACES: dict[str, tuple[Any, str]] = {
    torch_internals.ENGINE.name: (torch.autograd.graph, "_engine_run_backward"),
    torch_internals.MARK_DIRTY.name: (torch.autograd.function.FunctionCtx, "mark_dirty"),
    torch_internals.INCREMENT.name: (torch._C, "_increment_version"),
    torch_internals.SET_COUNTER.name: (torch._C._autograd, "_unsafe_set_version_counter"),
    torch_internals.BOOTSTRAP.name: (threading.Thread, "_bootstrap_inner"),
    torch_internals.APPLY.name: (torch_internals.APPLY_OWNER, "apply"),
}
named = pytest.mark.parametrize("internal", torch_internals.ALL, ids=lambda each: each.name)


@pytest.fixture(autouse=True)
def no_earlier_errors(monkeypatch):
    """Other tests of this process make gradext fail on purpose, and what they left is counted."""
    left = set(own_errors.lines())
    every = own_errors.lines
    monkeypatch.setattr(own_errors, "lines", lambda: [e for e in every() if e not in left])


def at(name: str) -> Any:
    owner, attribute = PLACES[name]
    if owner is torch.autograd.Function:
        return _C.testing.apply_is_exchanged()  # of the C function, which Python cannot see
    return vars(owner).get(attribute)


def test_all_are_there():
    assert torch_internals.missing == ()
    assert own_errors.lines() == []


@named
def test_without_one_the_others_are_wrapped_and_one_line_says_so(monkeypatch, internal):
    plain = {name: at(name) for name in PLACES}
    monkeypatch.setattr(torch_internals, "missing", (internal,))
    with gradext.record() as recording:
        x = torch.ones(3)
        x.add_(1)
        during = {name: at(name) for name in PLACES}
    unwrapped = {name for name in PLACES if during[name] is plain[name]}
    assert unwrapped == {internal.name} & PLACES.keys()
    assert [write.op for write in recording.mutations(x)] == ["aten::add_"]
    assert {name: at(name) for name in PLACES} == plain
    assert own_errors.lines() == [internal.line]
    lines = [line for line in doctor.as_lines(doctor.examine()) if line.startswith("off ")]
    assert lines == [f"off         {internal.line}"]


@pytest.mark.parametrize(
    ("internal", "owner", "name"),
    [
        (torch_internals.ENGINE, "torch.autograd.graph", "_engine_run_backward"),
        (torch_internals.INCREMENT, "torch._C", "_increment_version"),
        (torch_internals.SET_COUNTER, "torch._C._autograd", "_unsafe_set_version_counter"),
        (
            torch_internals.HIGHER_ORDER,
            "torch._ops",
            "_HIGHER_ORDER_OP_DEFAULT_FALLTHROUGH_DISPATCH_KEYS",
        ),
        (torch_internals.HIGHER_ORDER, "torch._ops", "_higher_order_ops"),
    ],
)
def test_what_is_gone_is_found_missing(monkeypatch, internal, owner, name):
    assert torch_internals.is_there(internal)
    monkeypatch.delattr(sys.modules[owner], name)
    assert not torch_internals.is_there(internal)


def test_an_engine_that_autograd_does_not_call_is_found_missing(monkeypatch):
    # A replacement would never be reached.
    monkeypatch.setattr(torch.autograd, "_engine_run_backward", lambda *a, **k: None)
    assert not torch_internals.is_there(torch_internals.ENGINE)


def test_looking_never_raises():
    def find():
        raise RuntimeError("moved")

    assert not torch_internals.is_there(torch_internals.Internal("x", "y", find))


def function(**body: Any) -> type:
    """A class like torch.autograd.Function: Python's, over one between, over C's."""
    between = type("_SingleLevelFunction", (torch._C._FunctionBase,), {})
    return type("Function", (between,), body)


def test_a_function_whose_apply_is_c_s_own_is_wrapped_itself(monkeypatch):
    of_2_14 = function(apply=vars(torch._C._FunctionBase)["apply"])
    monkeypatch.setattr(torch.autograd, "Function", of_2_14)
    assert torch_internals.apply_owner() is of_2_14


def test_a_function_whose_apply_ends_in_super_is_wrapped_below(monkeypatch):
    exec(
        "class Function(Between):\n"
        "    @classmethod\n"
        "    def apply(cls, *args):\n"
        "        return super().apply(*args)\n",
        space := {"Between": type("Between", (torch._C._FunctionBase,), {})},
    )
    monkeypatch.setattr(torch.autograd, "Function", space["Function"])
    assert torch_internals.apply_owner() is space["Between"]


def test_a_function_with_an_apply_of_another_kind_is_found_missing(monkeypatch):
    monkeypatch.setattr(torch.autograd, "Function", function(apply=staticmethod(lambda *a: None)))
    assert torch_internals.apply_owner() is None
    assert not torch_internals.is_there(torch_internals.APPLY)


def test_somebody_elses_apply_stays(monkeypatch):
    # Where the C apply is Function's own, somebody may have put theirs there.
    theirs = classmethod(lambda cls, *args: None)
    replaced = function(apply=theirs)
    monkeypatch.setattr(torch.autograd, "Function", replaced)
    monkeypatch.setattr(torch_internals, "APPLY_OWNER", replaced)
    try:
        with gradext.record():
            assert vars(replaced)["apply"] is theirs
        assert vars(replaced)["apply"] is theirs
        (line,) = own_errors.lines()
        assert line.startswith("torch.autograd.Function.apply: RuntimeError: somebody has replaced")
    finally:
        own_errors._errors.clear()


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.detach() * 2

    @staticmethod
    def backward(ctx, g):
        return g * 2


def test_a_function_of_the_users_is_seen_and_its_apply_put_back():
    before = vars(torch.autograd.Function).get("apply"), at(torch_internals.APPLY.name)
    w = torch.ones(3, requires_grad=True)
    with gradext.record():
        during = at(torch_internals.APPLY.name)
        y = Twice.apply(w)
        y.sum().backward()
    assert w.grad.tolist() == [2, 2, 2]
    assert during is not before[1]
    assert (vars(torch.autograd.Function).get("apply"), at(torch_internals.APPLY.name)) == before


class Cuts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        result = x * 2
        ctx.mark_non_differentiable(result)
        return result

    @staticmethod
    def backward(ctx, g):
        return g * 2


class KeepsAside(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        global aside
        aside = x * 3
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return g * 2


class Refuses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        raise ValueError("not this one")


class OwnApply(Cuts):
    @classmethod
    def apply(cls, *args):
        return super().apply(*args)


# Bound before any recording, as libraries do at import.
bound = {each: each.apply for each in (Twice, Cuts, KeepsAside, Refuses, OwnApply)}
by_class = {each: lambda x, each=each: each.apply(x) for each in bound}
calls = pytest.mark.parametrize("call", [bound, by_class], ids=["bound", "by class"])


@calls
@pytest.mark.parametrize("function", [Cuts, OwnApply, KeepsAside], ids=lambda f: f.__name__)
def test_the_function_is_blamed_and_no_no_grad(call, function):
    w = torch.ones(3, requires_grad=True)
    with gradext.record():
        result = call[function](w)
        loss = (aside if function is KeepsAside else result).sum()
        with pytest.raises(RuntimeError) as caught:
            loss.backward()
        (found,) = gradext.explain(caught.value)
    assert found.code == "GX301"
    assert "an autograd.Function, at" in found.message
    assert "no_grad" not in found.message


@calls
def test_what_a_bound_apply_computes_and_raises(call):
    w = torch.ones(3, requires_grad=True)
    with gradext.record():
        call[Twice](w).sum().backward()
        with pytest.raises(ValueError, match="not this one"):
            call[Refuses](w)
        with pytest.raises(TypeError):
            call[Twice]()
    assert w.grad.tolist() == [2, 2, 2]
    call[Twice](w).sum().backward()
    assert w.grad.tolist() == [4, 4, 4]


def test_bound_during_a_recording_and_used_after_it():
    w = torch.ones(3, requires_grad=True)
    with gradext.record():
        twice = Twice.apply
    twice(w).sum().backward()
    with gradext.record(), gradext.record():
        twice(w).sum().backward()
    assert w.grad.tolist() == [4, 4, 4]


def test_a_function_compiles_as_without_a_recording():
    w = torch.ones(3, requires_grad=True)
    compiled = torch.compile(lambda x: Twice.apply(x) + 1, backend="eager", fullgraph=True)
    with gradext.record():
        y = compiled(w)
        y.sum().backward()
    assert y.tolist() == [3, 3, 3]
    assert w.grad.tolist() == [2, 2, 2]
