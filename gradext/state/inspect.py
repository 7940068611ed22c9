"""The autograd state of one tensor, for people, and of many, as numbers: inspect(), states().

Reads through `gradext._C` only and changes nothing.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import numpy
import torch

from gradext.base import display, raw
from gradext.native import _C
from gradext.ops import graph_break

STATE_COLUMNS: tuple[str, ...] = _C.STATE_COLUMNS


@dataclasses.dataclass(frozen=True, repr=False)
class TensorState(display.Shown):
    """What autograd knows of one tensor, at one moment. Ids are opaque: compare them, nothing more.

    Attributes:
        shape: sizes; a SymInt where symbolic, None for a ragged dimension of a nested tensor.
        dtype, device: as the tensor's.
        requires_grad, is_leaf, output_nr: as the tensor's.
        grad_fn: the node's name, None for a leaf.
        version: counted in-place writes; None for an inference tensor.
        version_counter: id of the counter, equal among living tensors iff shared; None without one.
        is_view: autograd tracks the tensor as a view for backward.
        base: id of the tensor that it is a view of (that tensor's `id`); None when no view.
        creation_meta: how a view was made ("default", "in_custom_function", "multi_output_node",
            "no_grad_mode", "inference_mode"); None when no view.
        is_inference: born under inference_mode.
        storage: id of the storage object; None for layouts and wrappers without one.
        storage_offset: in elements.
        nbytes: bytes of the elements; None where they are kept elsewhere (sparse layouts) or ragged
            (jagged nested tensors).
        dispatch_keys: names, lowest priority first.
        id: id of the tensor itself.
        grad_fn_is_stale: the base was written since `grad_fn` was made; torch rebuilds the node
            when it is next asked for (which reading a TensorState never does).
        storage_is_freed: the storage was resized to nothing; only inspect_tree shows such tensors.
    """

    shape: tuple[Any, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool
    is_leaf: bool
    grad_fn: str | None
    output_nr: int
    version: int | None
    version_counter: int | None
    is_view: bool
    base: int | None
    creation_meta: str | None
    is_inference: bool
    storage: int | None
    storage_offset: int
    nbytes: int | None
    dispatch_keys: tuple[str, ...]
    id: int
    grad_fn_is_stale: bool
    storage_is_freed: bool

    def __str__(self) -> str:
        return display.show("state.card", self)

    # The card is what a person at a prompt asked for; a program reads the fields.
    __repr__ = __str__

    def _repr_html_(self) -> str:
        return display.show("state.card_html", self)


_FIELDS = tuple(field.name for field in dataclasses.fields(TensorState))


class States(NamedTuple):
    """The facts of n tensors: `array` is int64[n, k], `columns` names its k columns."""

    array: numpy.ndarray[Any, numpy.dtype[numpy.int64]]
    columns: tuple[str, ...]


@graph_break
def inspect(t: torch.Tensor) -> TensorState:
    """The autograd state of one tensor; prints as a card. Reads, and changes nothing.

    Raises:
        TypeError: `t` is no torch.Tensor.
        ValueError: the storage under `t` was freed (`untyped_storage().resize_(0)`).
    """
    # Here and not in C++, whose check asks the object for its __class__.
    if not issubclass(type(t), torch.Tensor):
        raise TypeError(_not_a_tensor(t))
    state = state_of(t)
    if state.storage_is_freed:
        raise ValueError(
            f"gradext.inspect: the storage of this {list(state.shape)} tensor was freed (it holds "
            f"0 of {state.nbytes} bytes); inspect it before the storage is resized to 0, or use "
            "gradext.inspect_tree, which shows freed tensors too"
        )
    return state


def state_of(t: torch.Tensor) -> TensorState:
    """The state of a tensor, freed or not, of one that is known to be a tensor."""
    # A frozen dataclass's own __init__ sets its fields one by one, which takes longer than reading
    # all the facts.
    state = TensorState.__new__(TensorState)
    state.__dict__.update(zip(_FIELDS, _C.inspect(t), strict=True))
    if "Python" in state.dispatch_keys:
        # A FakeTensor's own device is "meta"; the one that it stands for is a plain attribute, and
        # reading that runs none of its code. Only torch's own class is trusted so.
        fakes = sys.modules.get("torch._subclasses.fake_tensor")
        if fakes is not None and issubclass(type(t), fakes.FakeTensor):
            state = dataclasses.replace(state, device=cast(Any, t).fake_device)
    return state


def _not_a_tensor(value: object) -> str:
    kind = type(value)
    name = raw.type_name(kind)
    hint = ""
    if issubclass(kind, numpy.ndarray):
        hint = "; torch.from_numpy(array) makes a tensor of it (numpy keeps no autograd state)"
    elif issubclass(kind, (torch.UntypedStorage, torch.TypedStorage)):
        hint = "; a storage has no autograd state, the tensors made on it have"
    elif issubclass(kind, (torch.nn.Module, dict, list, tuple)):
        hint = "; gradext.inspect_tree walks modules and containers"
    return f"gradext.inspect: expected a torch.Tensor, got {name}{hint}"


def full_name(kind: type) -> str:
    name = raw.type_name(kind)
    return name if "." in name else f"builtins.{name}"


@graph_break
def states(tensors: Iterable[torch.Tensor]) -> States:
    """The integer facts of many tensors in one call: `(array, columns)`, array int64[n, k].

    Booleans are 0 and 1; `creation_meta` is torch's enum value (0 is default). A fact that does not
    exist is -1 (version, creation_meta, symbolic sizes) or 0 (ids).

    Raises:
        TypeError: `tensors` is no sequence, or an item is no torch.Tensor (the line names which).
    """
    return States(_C.states(tensors), STATE_COLUMNS)
