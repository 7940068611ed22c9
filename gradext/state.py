"""One tensor's autograd state, for people: inspect(), inspect_tree(), states().

Owns the TensorState record and the walk through modules and containers; how they look is
gradext.reporters.state. Reads through `gradext._C` only and changes nothing.
"""

from __future__ import annotations

import collections
import dataclasses
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, cast

import numpy
import torch

from gradext import _C, objects
from gradext.ops import graph_break

STATE_COLUMNS: tuple[str, ...] = _C.STATE_COLUMNS


@dataclasses.dataclass(frozen=True, repr=False)
class TensorState:
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

    @classmethod
    def _of(cls, t: torch.Tensor) -> TensorState:
        # A frozen dataclass's own __init__ sets its fields one by one, which takes longer than
        # reading all the facts.
        state = cls.__new__(cls)
        state.__dict__.update(zip(_FIELDS, _C.inspect(t), strict=True))
        return state

    def __str__(self) -> str:
        from gradext.reporters import state

        return state.card(self)

    # The card is what a person at a prompt asked for; a program reads the fields.
    __repr__ = __str__

    def _repr_html_(self) -> str:
        from gradext.reporters import state

        return state.card_html(self)


_FIELDS = tuple(field.name for field in dataclasses.fields(TensorState))


class States(NamedTuple):
    """The facts of n tensors: `array` is int64[n, k], `columns` names its k columns."""

    array: numpy.ndarray[Any, numpy.dtype[numpy.int64]]
    columns: tuple[str, ...]


class StateTree(list[tuple[str, TensorState]]):
    """`[(path, TensorState)]` in the order of the walk; prints as a table with a legend."""

    def __str__(self) -> str:
        from gradext.reporters import state

        return state.tree(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from gradext.reporters import state

        return state.tree_html(self)


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
    state = _state(t)
    if state.storage_is_freed:
        raise ValueError(
            f"gradext.inspect: the storage of this {list(state.shape)} tensor was freed (it holds "
            f"0 of {state.nbytes} bytes); inspect it before the storage is resized to 0, or use "
            "gradext.inspect_tree, which shows freed tensors too"
        )
    return state


def _state(t: torch.Tensor) -> TensorState:
    state = TensorState._of(t)
    if "Python" in state.dispatch_keys:
        # A FakeTensor's own device is "meta"; the one that it stands for is a plain attribute, and
        # reading that runs none of its code. Only torch's own class is trusted so.
        fakes = sys.modules.get("torch._subclasses.fake_tensor")
        if fakes is not None and issubclass(type(t), fakes.FakeTensor):
            state = dataclasses.replace(state, device=cast(Any, t).fake_device)
    return state


def _not_a_tensor(value: object) -> str:
    kind = type(value)
    name = objects.type_name(kind)
    hint = ""
    if issubclass(kind, numpy.ndarray):
        hint = "; torch.from_numpy(array) makes a tensor of it (numpy keeps no autograd state)"
    elif issubclass(kind, (torch.UntypedStorage, torch.TypedStorage)):
        hint = "; a storage has no autograd state, the tensors made on it have"
    elif issubclass(kind, (torch.nn.Module, dict, list, tuple)):
        hint = "; gradext.inspect_tree walks modules and containers"
    return f"gradext.inspect: expected a torch.Tensor, got {name}{hint}"


def _full_name(kind: type) -> str:
    name = objects.type_name(kind)
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


@graph_break
def inspect_tree(obj: object) -> StateTree:
    """The state of every tensor reachable in `obj`, with its path, in order of first sight.

    Walks modules (parameters, buffers, submodules and plain attributes), dicts, lists, tuples,
    sets, dataclasses and lone tensors. Paths read as one would write them: ``encoder.weight``,
    ``["mask"]``, ``cache[16]``. A tensor found at several paths is listed at each; a container
    found again is not entered again, so cycles end.

    Raises:
        TypeError: `obj` is nothing that can hold tensors (the line says what it is).
    """
    if not issubclass(type(obj), torch.Tensor) and not _is_container(obj):
        raise TypeError(
            "gradext.inspect_tree: expected a module, container, dataclass or tensor, got "
            f"{_full_name(type(obj))}"
        )
    return StateTree((path, _state(t)) for path, t in _walk(obj, "", set()))


def _is_container(obj: object) -> bool:
    # issubclass(type()), not isinstance(): that asks the object for its __class__.
    kind = type(obj)
    return (
        issubclass(kind, (torch.nn.Module, dict, types.MappingProxyType))
        or issubclass(kind, (list, tuple, set, frozenset))
        or objects.is_user_dict(kind)
        or kind is collections.ChainMap
        or (not issubclass(kind, type) and objects.field_names(kind) is not None)
    )


def _walk(obj: object, path: str, entered: set[int]) -> Iterator[tuple[str, torch.Tensor]]:
    # An explicit stack: a linked list of a few thousand dataclasses must not end in RecursionError.
    pending: list[tuple[object, str]] = [(obj, path)]
    alive = []  # keeps what was entered from dying meanwhile and lending out its id
    while pending:
        value, where = pending.pop()
        if issubclass(type(value), torch.Tensor):
            yield where or "(tensor)", cast(torch.Tensor, value)
        elif _is_container(value) and id(value) not in entered:
            entered.add(id(value))
            alive.append(value)
            pending.extend(reversed(list(_children(value, where))))


def _children(value: Any, path: str) -> Iterator[tuple[object, str]]:
    """What a container holds, read past any code that its class may have for it."""
    dot = f"{path}." if path else ""
    kind = type(value)
    if issubclass(kind, torch.nn.Module):
        held = objects.dict_of(value)
        held = held if type(held) is dict else {}
        registered = [held.get(name) for name in ("_parameters", "_buffers", "_modules")]
        for group in registered:
            for name, child in objects.items_of(group) or ():
                yield child, f"{dot}{name if type(name) is str else objects.key_text(name)}"
        for name, child in list(held.items()):
            if type(name) is str and not any(child is group for group in registered):
                yield child, f"{dot}{name}"
    elif (items := objects.items_of(value)) is not None:
        for key, child in items:
            yield child, f"{path}[{objects.key_text(key)}]"
    elif (names := objects.field_names(kind)) is not None:
        if issubclass(kind, tuple):
            for name, child in zip(names, tuple.__iter__(value), strict=False):
                yield child, f"{dot}{name}"
        else:
            for name in names:
                yield objects.attribute(value, name), f"{dot}{name}"
    elif (members := objects.sequence_of(value)) is not None:
        is_set = issubclass(kind, (set, frozenset))
        for index, child in enumerate(members):
            yield child, f"{path}{{…}}" if is_set else f"{path}[{index}]"
