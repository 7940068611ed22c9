"""The two sides that the tests of the ops compare: torch's own attributes, and gradext's answers.

Owns the lists of ops and of modes. Holds no test.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

import gradext
from gradext import ops

NAMESPACE = torch.ops.gradext

# Every op that reads state, by what it takes.
OF_ONE = (
    "version",
    "version_counter",
    "is_view",
    "is_differentiable_view",
    "base",
    "creation_meta",
    "is_inference",
    "dispatch_keys",
)
OF_TWO = ("shares_version_counter", "shares_storage")
STATE_OPS = (*OF_ONE, *OF_TWO, "grad_mode_state", "states")

# The Python door, and the dispatcher's own.
DOORS = {"ops": ops, "torch.ops": NAMESPACE}

MODES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}

_Meta = torch._C._autograd.CreationMeta
CREATION_META = {
    _Meta.DEFAULT: "default",
    _Meta.IN_CUSTOM_FUNCTION: "in_custom_function",
    _Meta.MULTI_OUTPUT_NODE: "multi_output_node",
    _Meta.NO_GRAD_MODE: "no_grad_mode",
    _Meta.INFERENCE_MODE: "inference_mode",
}


def call(door: Any, name: str, t: Any, other: Any = None) -> Any:
    """One op on `t`, whatever it takes; the ops of two tensors get `t` twice unless told."""
    function = getattr(door, name)
    if name in OF_TWO:
        return function(t, t if other is None else other)
    if name == "grad_mode_state":
        return function()
    if name == "states":
        return function([t])
    return function(t)


def keys_by_torch(t: torch.Tensor) -> tuple[str, ...]:
    """The names in ``DispatchKeySet(CPU, ADInplaceOrView, ...)``, as torch prints it."""
    text = str(torch._C._dispatch_keys(t))
    inner = text.removeprefix("DispatchKeySet(").removesuffix(")")
    return tuple(inner.split(", ")) if inner else ()


def by_torch(t: torch.Tensor) -> dict[str, Any]:
    """The facts as torch's Python attributes give them."""
    view = t._is_view()
    return {
        "version": None if t.is_inference() else t._version,
        "is_view": view,
        "base": t._base,
        "creation_meta": CREATION_META[torch._C._autograd._get_creation_meta(t)] if view else None,
        "is_inference": t.is_inference(),
        "dispatch_keys": keys_by_torch(t),
    }


def by_door(door: Any, t: torch.Tensor) -> dict[str, Any]:
    """The same facts through one door of gradext."""
    return {
        "version": door.version(t),
        "is_view": door.is_view(t),
        "base": door.base(t),
        "creation_meta": door.creation_meta(t),
        "is_inference": door.is_inference(t),
        "dispatch_keys": tuple(door.dispatch_keys(t)),
    }


def assert_agrees(t: torch.Tensor) -> None:
    """gradext says of `t`, through every door, what torch says."""
    expected = by_torch(t)
    base = expected.pop("base")
    for name, door in DOORS.items():
        found = by_door(door, t)
        assert found.pop("base") is base, name
        assert found == expected, name
        # Not an attribute in torch: a counter exists exactly for what is no inference tensor.
        assert (door.version_counter(t) is None) == t.is_inference(), name
        assert door.is_differentiable_view(t) or not t._is_view(), name
        assert door.shares_version_counter(t, t) is (not t.is_inference()), name
    row = row_of(t)
    assert row["version"] == (-1 if t.is_inference() else t._version)
    assert row["is_view"] == t._is_view()
    assert row["base"] == (0 if base is None else row_of(base)["id"])
    assert row["is_inference"] == t.is_inference()
    state = gradext.inspect(t)
    assert {name: getattr(state, name) for name in expected} == expected
    assert state.base == (None if base is None else gradext.inspect(base).id)


def row_of(t: torch.Tensor) -> dict[str, int]:
    """`t`'s row of gradext.states, by column name."""
    array, columns = gradext.states([t])
    return dict(zip(columns, array[0].tolist(), strict=True))


def read_everything(t: torch.Tensor, *, dispatcher: bool = True) -> None:
    """Every read that gradext offers, once; `dispatcher=False` leaves out torch.ops.gradext."""
    for door in (ops, NAMESPACE) if dispatcher else (ops,):
        for name in STATE_OPS:
            call(door, name, t)
    state = gradext.inspect(t)
    for text in (str(state), repr(state), state._repr_html_()):
        assert "Tensor" in text
    tree = gradext.inspect_tree({"t": t})
    for text in (str(tree), tree._repr_html_()):
        assert "['t']" in text or "[&#x27;t&#x27;]" in text
    assert gradext.states([t, t]).array.shape == (2, len(gradext.STATE_COLUMNS))
    assert gradext.shares_storage(t, t) is (state.storage is not None)
