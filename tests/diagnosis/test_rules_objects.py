"""Diagnoses keep none of the program's objects alive, and naming one runs none of its code."""

from __future__ import annotations

import gc
import sys
import weakref
from typing import Any

import pytest
import torch
from asked import broken, failed, line_of
from torch import nn

import gradext
from gradext.objects import naming
from gradext.recording import own_errors

# --- what a diagnosis keeps alive -----------------------------------------------------------------


def test_a_diagnosis_keeps_no_tensor_no_error_and_no_frame() -> None:
    class Marker:
        pass

    def attempt() -> tuple[list[Any], list[Any]]:
        marker = Marker()
        x = torch.ones(3, requires_grad=True)
        h = x.exp()
        h.add_(1)
        found: list[Any] = []
        try:
            h.sum().backward()
        except RuntimeError as error:
            found = gradext.explain(error)
        return found, [weakref.ref(marker), weakref.ref(x), weakref.ref(h)]

    with gradext.record() as recording:
        found, references = attempt()
        assert found
        assert [reference() for reference in references] == [None] * 3
    assert recording.data.writes.shape[0] > 0
    assert [reference() for reference in references] == [None] * 3


@pytest.mark.parametrize("rule", ["GX101", "GX105", "GX302", "GX303", "check"])
def test_a_dropped_tensor_dies_in_a_function_that_goes_on(rule: str) -> None:
    """Before Python 3.13, looking at a running function's locals leaves a copy of them in it."""
    gc.disable()
    try:
        with gradext.record():
            x = torch.ones(3, requires_grad=True)
            big = torch.ones(3)
            reference = weakref.ref(big)
            try:
                if rule == "GX101":
                    broken().backward()
                elif rule == "GX105":
                    y = x * 2
                    rows = y.unbind()
                    y.add_(1)
                    rows[0].add(1)
                elif rule == "GX302":
                    loss = x.exp().sum()
                    loss.backward()
                    loss.backward()
                elif rule == "GX303":
                    torch.autograd.grad(x.sum(), torch.ones(1, requires_grad=True))
                else:
                    gradext.check_backward(broken())
            except RuntimeError as error:
                seen = gradext.explain(error)[0].code
            else:
                seen = "check"
            assert seen == rule
            del big
            assert reference() is None
    finally:
        gc.enable()


def test_locals_that_the_program_looks_at_are_left_to_it() -> None:
    def working() -> dict[str, Any]:
        mine = locals()
        value = 1
        mine = locals()
        naming.locals_of(sys._getframe())
        assert mine["value"] == value
        return mine

    assert working()["value"] == 1


# --- names ----------------------------------------------------------------------------------------


class Nasty:
    """Answers every question with code of its own, and that code fails."""

    def __init__(self) -> None:
        object.__setattr__(self, "hidden", torch.ones(2))

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"attribute {name} was read")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")

    def __bool__(self) -> bool:
        raise AssertionError("asked whether it is true")

    def __hash__(self) -> int:
        raise AssertionError("hashed")

    def __len__(self) -> int:
        raise AssertionError("measured")

    def __iter__(self) -> Any:
        raise AssertionError("iterated")

    def __repr__(self) -> str:
        raise AssertionError("printed")


class NastyDict(dict):  # type: ignore[type-arg]
    def items(self) -> Any:
        raise AssertionError("items() was called")

    def __getitem__(self, key: Any) -> Any:
        raise AssertionError("read")

    def __iter__(self) -> Any:
        raise AssertionError("iterated")


class NastyList(list):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        raise AssertionError("iterated")

    def __getitem__(self, key: Any) -> Any:
        raise AssertionError("read")


class NastyModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    @property
    def weight(self) -> torch.Tensor:
        raise AssertionError("a property was read")

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("named_parameters() was called")

    def __len__(self) -> int:
        raise AssertionError("measured")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")

    __hash__ = None  # type: ignore[assignment]


class OwnDict:
    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise AssertionError("__dict__ was read")


class NastyTensor(torch.Tensor):
    @classmethod
    def __torch_function__(cls, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("__torch_function__ was called")

    @property
    def _is_param(self) -> bool:
        raise AssertionError("_is_param was read")


class NastyMeta(type):
    def __getattribute__(cls, name: str) -> Any:
        if name.startswith("__"):
            return super().__getattribute__(name)
        raise AssertionError(f"class attribute {name} was read")


class OfNastyMeta(tuple, metaclass=NastyMeta):  # type: ignore[type-arg]
    __slots__ = ()


def test_naming_runs_none_of_the_user_s_code() -> None:
    nasty, one = Nasty(), OwnDict()
    table = NastyDict(a=torch.ones(2))
    items = NastyList([torch.ones(2)])
    module = NastyModule()
    odd = torch.Tensor._make_subclass(NastyTensor, torch.ones(2), True)
    pair = OfNastyMeta((torch.ones(2), 1))
    target = torch.ones(4)
    names = naming.Names([sys._getframe()])
    assert names.of(gradext.inspect(target).id) == "target"
    assert names.of(gradext.inspect(dict.get(table, "a")).id) == "table['a']"
    parameter = gradext.inspect(module.fc.weight)
    assert names.of(parameter.id) == "module.fc.weight"
    assert names.is_parameter(parameter.id)
    assert names.is_of_leaf(parameter.version_counter or 0)
    del nasty, one, items, odd, pair


def test_a_failure_among_nasty_objects_is_diagnosed() -> None:
    faults = own_errors.lines()
    with gradext.record():
        nasty, module, one = Nasty(), NastyModule(), OwnDict()
        (found,) = gradext.explain(failed())
        del nasty, module, one
    assert found.culprits[0].frame.line == line_of("asked: writes")
    assert own_errors.lines() == faults


def test_a_saved_result_is_the_tensor_and_not_an_alias() -> None:
    x = torch.ones(3, requires_grad=True)
    with gradext.record():
        gate = x.sigmoid()
        gate.mul_(2)
        (found,) = gradext.check_backward(gate.sum())
    assert found.message.startswith("`gate` (float32 [3]) was saved")


def test_a_part_of_a_tensor_is_an_alias() -> None:
    x = torch.ones(3, requires_grad=True)
    table = torch.ones(2, 3)
    with gradext.record():
        y = x * table[1]
        table.mul_(2)
        (found,) = gradext.check_backward(y.sum())
    assert found.message.startswith("A float32 [3] alias of `table` was saved")
