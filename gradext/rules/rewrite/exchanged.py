"""How a tensor is exchanged for a detached one, by what holds it.

An entry of a named tuple or of a frozen dataclass cannot be assigned: a new one takes its place in
whatever holds that. Reads the objects of running frames past their own code, and keeps none.
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Sequence
from typing import Any

import torch

from gradext.base import raw
from gradext.objects import naming

_PARAMETERS = type(vars(dataclasses.make_dataclass("_Any", ()))["__dataclass_params__"])
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*|\[('[^']*'|\d+)\])*")
_STEP = re.compile(r"\.([A-Za-z_]\w*)|\['([^']*)'\]|\[(\d+)\]")


def knows(frame: Any, root: str) -> bool:
    """Whether a running frame has a variable of this name."""
    code = frame.f_code
    own = (*code.co_varnames, *code.co_cellvars, *code.co_freevars)
    return root in own or root in frame.f_globals


def value_at(frame: Any, path: str) -> Any:
    """What a path like `out.boxes[0]` leads to from a frame's variable; None if that is unknown."""
    held = _objects(frame, path)
    return held[-1] if held else None


def detached_in(frame: Any, path: str, *, whole: bool = False) -> str | None:
    """What to type so that what lies at a path has no history; None where nothing can be typed.

    Args:
        frame: a running one that knows the path's first name.
        whole: its neighbours in the same record are to have none, either.
    """
    held = _objects(frame, path)
    if not held:
        return None
    steps = _steps(path)
    if whole:
        while steps and _is_record(held[-2]):
            path, held = path[: -len(steps[-1])], held[:-1]
            steps = steps[:-1]
    value = held[-1]
    if _is_plain_object(value):
        names = [name for name, _ in _own_tensors(value)]
        told = [f"{path}.{n} = {path}.{n}.detach()" for n in names if _takes(value, n)]
        return "; ".join(told) if len(told) == len(names) <= 3 else None
    new = _new(value, path)
    return _put(held[:-1], path, steps, new) if new is not None else None


def _steps(path: str) -> list[str]:
    return [found[0] for found in _STEP.finditer(path)]


def _objects(frame: Any, path: str) -> list[Any]:
    """What the path leads through, outermost first; empty where it cannot be followed."""
    if not _PATH.fullmatch(path):
        return []
    root = re.split(r"[.\[]", path)[0]
    variables = dict(naming.locals_of(frame))
    if root not in variables and root not in frame.f_globals:
        return []
    found = [variables.get(root, frame.f_globals.get(root))]
    for step in _steps(path):
        value = _step(found[-1], step)
        if value is None:
            return []
        found.append(value)
    return found


def _step(owner: Any, step: str) -> Any:
    attribute, key, index = _STEP.fullmatch(step).groups()  # type: ignore[union-attr]
    kind = type(owner)
    if attribute is not None:
        fields = raw.field_names(kind) if issubclass(kind, tuple) else None
        if fields is not None:
            at = fields.index(attribute) if attribute in fields else -1
            return tuple.__getitem__(owner, at) if at >= 0 else None
        for group in ("_buffers", "_parameters", "_modules"):
            for name, value in naming.group_of(owner, group):
                if type(name) is str and name == attribute:
                    return value
        return raw.attribute(owner, attribute)
    if key is not None:
        return next((v for k, v in raw.items_of(owner) or () if type(k) is str and k == key), None)
    number = int(index)
    for base in (list, tuple):
        if issubclass(kind, base):
            items = list(base.__iter__(owner))
            return items[number] if number < len(items) else None
    return next((v for k, v in raw.items_of(owner) or () if type(k) is int and k == number), None)


def _is_named_tuple(value: Any) -> bool:
    return issubclass(type(value), tuple) and raw.field_names(type(value)) is not None


def _is_frozen(value: Any) -> bool:
    found = raw.class_attribute(type(value), "__dataclass_params__")
    # By its type: any class may have an attribute of this name, which then acts when it is read.
    return type(found) is _PARAMETERS and found.frozen is True


def _is_record(value: Any) -> bool:
    return _is_named_tuple(value) or _is_frozen(value)


def _is_plain_object(value: Any) -> bool:
    """An object with attributes that can be assigned, which hold tensors."""
    if naming.identity_of(value) is not None or _is_record(value):
        return False
    return bool(_own_tensors(value)) and not issubclass(type(value), (tuple, list, dict))


def _own_tensors(value: Any) -> list[tuple[str, Any]]:
    """The attributes or fields of an object that are tensors with a history."""
    kind = type(value)
    pairs: list[tuple[str, Any]] = []
    if _is_named_tuple(value):
        pairs = list(zip(raw.field_names(kind) or (), tuple.__iter__(value), strict=False))
    else:
        held = raw.dict_of(value)
        pairs = naming.items_in(held) if type(held) is dict else []
        if not pairs and raw.field_names(kind):
            pairs = [(n, raw.attribute(value, n)) for n in raw.field_names(kind) or ()]
    return [(name, item) for name, item in pairs if _has_history(item)]


def _has_history(item: Any) -> bool:
    who = naming.identity_of(item)
    return who is not None and who.requires_grad and not who.is_leaf


def _new(value: Any, path: str) -> str | None:
    """The value without history, as an expression."""
    kind = type(value)
    if naming.identity_of(value) is not None:
        return f"{path}.detach()"
    if _is_record(value):
        own = _own_tensors(value)
        changes = ", ".join(f"{name}={path}.{name}.detach()" for name, _ in own)
        return _replaced(value, path, changes, [n for n, _ in own]) if own else None
    if kind is tuple or kind is list:
        items = list(value)
        if not any(_has_history(item) for item in items):
            return None
        each = "t.detach()"
        if any(naming.identity_of(item) is None for item in items):
            each = "t.detach() if torch.is_tensor(t) else t"
        return f"tuple({each} for t in {path})" if kind is tuple else f"[{each} for t in {path}]"
    if kind is dict and value and all(naming.identity_of(v) is not None for v in value.values()):
        return f"{{k: t.detach() for k, t in {path}.items()}}"
    return None


def _replaced(value: Any, path: str, changes: str, names: Sequence[str]) -> str | None:
    if _is_named_tuple(value):
        return f"{path}._replace({changes})"
    fields = raw.class_attribute(type(value), "__dataclass_fields__")
    if type(fields) is not dict or not all(name in fields for name in names):
        return None
    if any(type(f) is not dataclasses.Field or f.init is not True for f in fields.values()):
        return None  # dataclasses.replace() takes what __init__ takes
    return f"dataclasses.replace({path}, {changes})"


def _put(owners: Sequence[Any], path: str, steps: Sequence[str], new: str) -> str | None:
    """The assignment that puts a new value where a path leads to."""
    if not steps:
        return f"{path} = {new}"
    owner, step = owners[-1], steps[-1]
    above = path[: -len(step)]
    attribute, _, index = _STEP.fullmatch(step).groups()  # type: ignore[union-attr]
    if _is_named_tuple(owner) and attribute is None:
        fields = raw.field_names(type(owner)) or ()
        attribute = fields[int(index)] if int(index) < len(fields) else None
    if _is_record(owner):
        changed = _replaced(owner, above, f"{attribute}={new}", [attribute]) if attribute else None
        return _put(owners[:-1], above, steps[:-1], changed) if changed is not None else None
    kind = type(owner)
    if kind is tuple and index is not None:
        first = f"*{above}[:{index}], " if int(index) else ""
        last = f", *{above}[{int(index) + 1}:]" if int(index) + 1 < len(owner) else ","
        return _put(owners[:-1], above, steps[:-1], f"({first}{new}{last})")
    if attribute is not None:
        return f"{path} = {new}" if _takes(owner, attribute) else None
    return f"{path} = {new}" if issubclass(kind, (list, dict)) else None


def _takes(owner: Any, name: str) -> bool:
    """Whether an object takes another value for an attribute."""
    kind = type(owner)
    setter = raw.class_attribute(kind, "__setattr__")
    is_builtin = type(setter) is types.WrapperDescriptorType  # that of object, of a namespace
    if not is_builtin and setter is not torch.nn.Module.__setattr__:
        return False
    found = raw.class_attribute(kind, name)
    return type(found) is not property or found.fset is not None
