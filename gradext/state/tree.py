"""The state of every tensor in an object: inspect_tree(), and the walk that finds them.

The walk reads modules, containers and dataclasses past any code that their classes may have.
"""

from __future__ import annotations

import collections
import types
from collections.abc import Iterator
from typing import Any

import torch

from gradext.base import display, raw
from gradext.ops import graph_break
from gradext.state.inspect import TensorState, full_name, state_of
from gradext.state.traverse import ATOMS, traverse


class StateTree(display.Shown, list[tuple[str, TensorState]]):
    """`[(path, TensorState)]` in the order of the walk; prints as a table with a legend."""

    def __str__(self) -> str:
        return display.show("state.tree", self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return display.show("state.tree_html", self)


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
    if not issubclass(type(obj), torch.Tensor) and not is_container(obj):
        raise TypeError(
            "gradext.inspect_tree: expected a module, container, dataclass or tensor, got "
            f"{full_name(type(obj))}"
        )
    return StateTree((path, state_of(t)) for path, t in tensors_of(obj))


def is_container(obj: object) -> bool:
    # issubclass(type()), not isinstance(): that asks the object for its __class__.
    kind = type(obj)
    return (
        issubclass(kind, (torch.nn.Module, dict, types.MappingProxyType))
        or issubclass(kind, (list, tuple, set, frozenset))
        or raw.is_user_dict(kind)
        or kind is collections.ChainMap
        or (not issubclass(kind, type) and raw.field_names(kind) is not None)
    )


def tensors_of(obj: object, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """(path, tensor) of every tensor in modules, containers and dataclasses, in order.

    A tensor comes at each path, what is in a container at the container's first one.
    """
    for where, tensor in traverse([(path, obj)], _children, repeats="wanted"):
        yield where or "(tensor)", tensor


def _children(path: str, value: Any, left: int) -> Iterator[tuple[str, object, int]]:
    """What a container holds, read past any code that its class may have for it."""
    dot = f"{path}." if path else ""
    kind = type(value)
    if issubclass(kind, type):
        return  # a class that makes classes may be a dataclass
    if issubclass(kind, torch.nn.Module):
        held = raw.dict_of(value)
        held = held if type(held) is dict else {}
        registered = [held.get(name) for name in ("_parameters", "_buffers", "_modules")]
        for group in registered:
            for name, child in raw.items_of(group) or ():
                yield f"{dot}{name if type(name) is str else raw.key_text(name)}", child, 0
        for name, child in list(held.items()):
            if type(name) is str and not any(child is group for group in registered):
                yield f"{dot}{name}", child, 0
    elif (items := raw.items_of(value)) is not None:
        for key, child in items:
            if id(type(child)) not in ATOMS:
                yield f"{path}[{raw.key_text(key)}]", child, 0
    elif (names := raw.field_names(kind)) is not None:
        if issubclass(kind, tuple):
            for name, child in zip(names, tuple.__iter__(value), strict=False):
                yield f"{dot}{name}", child, 0
        else:
            for name in names:
                yield f"{dot}{name}", raw.attribute(value, name), 0
    elif (members := raw.sequence_of(value)) is not None:
        is_set = issubclass(kind, (set, frozenset))
        for index, child in enumerate(members):
            if id(type(child)) not in ATOMS:
                yield f"{path}{{…}}" if is_set else f"{path}[{index}]", child, 0
