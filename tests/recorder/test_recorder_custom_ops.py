"""The writes of ops that a program defines itself, before and during the recording."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from events import history, recorded, short, writes


@torch.library.custom_op("gradext_test::before", mutates_args={"x"})
def _before(x: torch.Tensor, value: float) -> None:
    x.numpy()[:] = value


_library = torch.library.Library("gradext_test", "FRAGMENT")


def _define(name: str, kernel: Callable[[torch.Tensor], object]) -> Any:
    _library.define(f"{name}(Tensor(a!) x) -> ()")

    def run(x: torch.Tensor) -> None:
        kernel(x)

    _library.impl(name, run, "CompositeExplicitAutograd")
    return getattr(torch.ops.gradext_test, name)


def _fill_raw(x: torch.Tensor) -> None:
    x.numpy().fill(3)


def _bump(x: torch.Tensor) -> None:
    _fill_raw(x)
    torch.autograd.graph.increment_version(x)


def test_custom_op_defined_before_the_recording() -> None:
    x = torch.ones(3)
    recording = recorded(lambda: _before(x, 2.0))
    assert history(recording, x) == [("gradext_test::before", 0, 1)]
    assert x.tolist() == [2, 2, 2]
    assert not writes(recording)[0].declared_only


def test_custom_op_defined_within_the_recording() -> None:
    x = torch.ones(3)

    def program() -> None:
        @torch.library.custom_op("gradext_test::within", mutates_args={"x"})
        def within(x: torch.Tensor) -> None:
            x.numpy()[:] = 4

        within(x)
        within(x)

    recording = recorded(program)
    op = "gradext_test::within"
    assert history(recording, x) == [(op, 0, 1), (op, 1, 2)]
    assert x.tolist() == [4, 4, 4]


@pytest.mark.parametrize("late", [False, True], ids=["before", "within"])
def test_custom_op_defined_anew_with_fewer_arguments(late: bool) -> None:
    x, y = torch.ones(3), torch.ones(3)
    name = f"redefined_{late}"

    def define(arguments: str, kernel: Callable[..., object]) -> torch.library.Library:
        library = torch.library.Library("gradext_test", "FRAGMENT")
        library.define(f"{name}({arguments}) -> ()")
        library.impl(name, kernel, "CompositeExplicitAutograd")
        return library

    def first() -> torch.library.Library:
        return define("Tensor y, float a, float b, Tensor(a!) x", lambda y, a, b, x: _bump(x))

    def run(*arguments: object) -> None:
        getattr(torch.ops.gradext_test, name).default(*arguments)

    library = None if late else first()

    def program() -> None:
        old = library or first()
        run(y, 1.0, 2.0, x)
        old._destroy()
        new = define("Tensor(a!) x", _bump)
        run(x)
        new._destroy()

    recording = recorded(program)
    assert x._version == 2
    assert history(recording, y) == []
    assert history(recording, x)[0] == (f"gradext_test::{name}", 0, 1)
    if late:
        assert history(recording, x)[1] == (f"gradext_test::{name}", 1, 2)


def test_custom_op_is_one_line_of_the_table() -> None:
    x = torch.ones(3)
    recording = recorded(lambda: _before(x, 2.0))
    assert [short(w) for w in recording.mutations(x)] == [("gradext_test::before", 0, 1)]


@pytest.mark.parametrize("kernel", [_fill_raw, _bump], ids=["raw", "bumps"])
@pytest.mark.parametrize("late", [False, True], ids=["before", "within"])
def test_plain_library_op(kernel: Callable[[torch.Tensor], object], late: bool) -> None:
    name = f"plain_{kernel.__name__.strip('_')}_{'late' if late else 'early'}"
    known = {} if late else {"op": _define(name, kernel)}
    x = torch.ones(3)

    def program() -> None:
        op = known.get("op") or _define(name, kernel)
        op(x)

    recording = recorded(program)
    bumped = int(kernel is _bump)
    assert history(recording, x) == [(f"gradext_test::{name}", 0, bumped)]
    (write,) = writes(recording)
    assert write.declared_only is not bool(bumped)
    assert x.tolist() == [3, 3, 3]
