"""Tensors whose sizes or strides are no fields of theirs: nothing that looks at one raises or asks.

Kinds x what a program does with a tensor. The outside truth is that the program gives what it
gives without gradext, and that gradext counted no error of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from events import recorded

import gradext
from gradext import _C
from gradext.recording import incidents, overlap, own_errors, tables

pytestmark = pytest.mark.filterwarnings("ignore")


class Asked(Exception):
    """What a subclass raises that is asked for its sizes by anybody but the program."""


class Sized(torch.Tensor):
    """A wrapper subclass that answers for its sizes, strides, device and layout in Python."""

    asked = 0

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Sized:
        made: Sized = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            dtype=held.dtype,
            requires_grad=held.requires_grad,
            dispatch_sizes_strides_policy="sizes",
            dispatch_device=True,
            dispatch_layout=True,
        )
        made.held = held.detach()
        return made

    @classmethod
    def __torch_dispatch__(
        cls, op: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if str(op).startswith(("aten.sym_", "prim.device", "prim.layout", "aten.is_")):
            cls.asked += 1

        def inner(value: Any) -> Any:
            return value.held if isinstance(value, Sized) else value

        out = op(*map(inner, args), **(kwargs or {}))
        return cls(out) if isinstance(out, torch.Tensor) else out


def nested(requires_grad: bool) -> torch.Tensor:
    parts = [torch.ones(2, 3), torch.ones(4, 3)]
    return torch.nested.nested_tensor(parts, requires_grad=requires_grad)


def jagged(requires_grad: bool) -> torch.Tensor:
    parts = [torch.ones(2, 3), torch.ones(4, 3)]
    return torch.nested.nested_tensor(parts, layout=torch.jagged, requires_grad=requires_grad)


def leaf(make: Callable[[], torch.Tensor]) -> Callable[[bool], torch.Tensor]:
    return lambda requires_grad: make().requires_grad_(requires_grad)


KINDS: dict[str, Callable[[bool], torch.Tensor]] = {
    "dense": leaf(lambda: torch.ones(3, 3)),
    "nested": nested,
    "jagged": jagged,
    "coo": leaf(lambda: torch.eye(3).to_sparse()),
    "csr": leaf(lambda: torch.eye(3).to_sparse_csr()),
    "bsr": leaf(lambda: torch.eye(4).to_sparse_bsr((2, 2))),
    "mkldnn": leaf(lambda: torch.ones(3, 3).to_mkldnn()),
    "meta": leaf(lambda: torch.ones(3, 3, device="meta")),
    "subclass": lambda requires_grad: Sized(torch.ones(3, 3, requires_grad=requires_grad)),
}


def words(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:60]}"


def saved_and_written(make: Callable[[bool], torch.Tensor]) -> object:
    """A fault of the in-place kind, with every kind of tensor as what was saved."""
    x = make(True)
    y = x * x
    with torch.no_grad():
        x.mul_(2)
    y.backward(y.detach())
    return None


def twice(make: Callable[[bool], torch.Tensor]) -> object:
    x = make(True)
    y = x * x
    y.backward(y.detach())
    y.backward(y.detach())
    return None


def trained(make: Callable[[bool], torch.Tensor]) -> object:
    x = make(True)
    for _ in range(2):
        y = x * x
        y.backward(y.detach())
        with torch.no_grad():
            x.mul_(0.5)
    return x.grad is not None


def refused(make: Callable[[bool], torch.Tensor]) -> object:
    x = make(True)
    x.mul_(2)
    return None


def born(make: Callable[[bool], torch.Tensor]) -> object:
    with torch.inference_mode():
        x = make(False)
        y = x * x
        y.mul_(2)
    w = make(True)
    return (w * y) is not None


def cut(make: Callable[[bool], torch.Tensor]) -> object:
    """Out to Python and back: what note_exit and note_entry look at."""
    x = make(True)
    y = (x * x).detach()
    made = torch.tensor(1.0) * torch.ones(3, requires_grad=True).sum().item()
    return [torch.as_tensor(y) is not None, y.clone() is not None, made.item()]


def to_python(make: Callable[[bool], torch.Tensor]) -> object:
    x = make(True)
    numbers = (x * x).tolist()
    return torch.tensor(numbers)


def transformed(make: Callable[[bool], torch.Tensor]) -> object:
    x = make(False)
    return torch.func.vmap(lambda row: (row * row).mul_(2))(x).sum().item()


def differentiated(make: Callable[[bool], torch.Tensor]) -> object:
    x = make(False)
    return torch.func.grad(lambda t: (t * t).sum() + torch.tensor(t.numel() * 1.5))(x) is not None


PROGRAMS = [
    saved_and_written,
    twice,
    trained,
    refused,
    born,
    cut,
    to_python,
    transformed,
    differentiated,
]


def outcome(program: Callable[[Callable[[bool], torch.Tensor]], object], kind: str) -> str:
    try:
        return repr(program(KINDS[kind]))
    except Exception as error:
        return words(error)


@pytest.fixture(autouse=True)
def no_own_errors() -> Iterator[None]:
    before, asked = own_errors.lines(), Sized.asked
    yield
    assert own_errors.lines() == before
    Sized.asked = asked


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_recorded(program: Any, kind: str) -> None:
    start = Sized.asked
    plain = outcome(program, kind)
    asked = Sized.asked - start
    found: list[str] = []
    recorded(lambda: found.append(outcome(program, kind)))
    assert found == [plain]
    assert Sized.asked - start == 2 * asked  # nobody but the program and torch has asked


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dense"])
def test_diagnosed_under_a_guard(program: Any, kind: str) -> None:
    """As `gradext run --guard` does it: whatever is raised is explained at once."""
    start = Sized.asked
    plain = outcome(program, kind)
    asked = Sized.asked - start
    heard: list[Any] = []
    found: list[str] = []
    with gradext.record():
        unsubscribe = incidents.subscribe(heard.append)
        try:
            with gradext.guard():
                found.append(outcome(program, kind))
        finally:
            unsubscribe()
    assert found == [plain]
    assert Sized.asked - start == 2 * asked


@pytest.mark.parametrize("kind", KINDS)
def test_geometry_is_what_the_tensor_records(kind: str) -> None:
    x = KINDS[kind](False)
    start = Sized.asked
    geometry = _C.geometry(x)
    begin, end = overlap.extent(x)
    assert Sized.asked == start
    if kind in ("dense", "meta"):
        assert geometry == (tuple(x.shape), x.stride(), x.storage_offset(), x.element_size())
        assert (begin, end) == (0, 9 * 4)
    else:
        assert geometry is None
        assert (begin, end) == (0, 0)


def test_geometry_of_symbolic_sizes_is_not_asked_for() -> None:
    seen: list[object] = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append((_C.geometry(x), overlap.extent(x)))
        return x + 1

    from torch.fx.experimental.proxy_tensor import make_fx

    make_fx(look, tracing_mode="symbolic")(torch.ones(5, 3))
    assert seen == [(None, (0, 0))]


# --- what a snapshot keeps of a large recording ---


def test_a_snapshot_holds_its_columns_once() -> None:
    x = torch.ones(3)
    with gradext.record():
        for _ in range(100):
            x.add_(1)
        copied = _C.recorder_snapshot(0)
    writes = copied["writes"]
    assert len(writes) >= 100
    assert writes.flags.writeable
    assert not writes.flags.owndata
    orders = writes[:, 0].tolist()
    del copied
    assert writes[:, 0].tolist() == orders == sorted(orders)  # they live on without the rest


def test_saves_of_a_thread_whose_id_was_given_again() -> None:
    """Logs of an id that two threads had are two blocks, the second with smaller numbers."""

    def rows(thread: int, *sequences: int) -> list[list[int]]:
        return [[thread, sequence, 10 * thread + sequence, -1, -1] for sequence in sequences]

    with gradext.record() as recording:
        pass
    data = recording.data
    data.saves = tables.table([*rows(1, 3, 5), *rows(2, 4), *rows(1, 1, 2), *rows(3, 7, 6)], 5)
    data._by_thread.clear()
    found = [data.node_stack(1, sequence)[0] for sequence in (0, 1, 2, 3, 4, 5, 9)]
    assert found == [0, 11, 12, 13, 13, 15, 15]
    assert [data.node_stack(2, sequence)[0] for sequence in (3, 4)] == [0, 24]
    assert [data.node_stack(3, sequence)[0] for sequence in (6, 7)] == [36, 37]
    assert data.node_stack(4, 1) == (0, None)


# torch multiplies no bsr.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("subclass", "bsr")])
def test_what_a_node_saved_is_told_of_every_kind(kind: str) -> None:
    """A report asks a SavedTensor for its facts: of a nested one torch refuses sizes()."""
    x = KINDS[kind](True)
    node: Any = (x * x).grad_fn
    saved = getattr(node, "_raw_saved_self", None)
    if saved is None:
        return  # jagged: the node is made by a Python function, or the op saves nothing
    facts = _C.saved(saved)
    if not facts.get("is_strided", False):
        assert facts["strides"] == []
