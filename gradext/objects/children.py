"""What an object holds, and how one would write the way to it: a reader for each kind."""

from __future__ import annotations

import collections
import functools
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

from gradext.base import raw
from gradext.objects import naming
from gradext.state.traverse import ATOMS, LAST

Child = tuple[str, Any, int]  # the path, the object, what the step takes off the depth


def children_of(path: str, value: Any, is_root: bool) -> Iterator[Child]:
    """What `value` holds, with paths. Plain attributes cost one step, submodules none."""
    kind = type(value)
    special = SPECIAL.get(id(kind))
    if special is not None:
        yield from special(path, value)
        return
    if issubclass(kind, types.ModuleType):
        if is_root:
            for name, item in naming.items_in(raw.dict_of(value)):
                if not issubclass(type(item), types.ModuleType):
                    yield _attribute(path, name), item, 1
        return
    if issubclass(kind, type):
        if _is_followed(value):
            for name, item in list(raw.class_dict(value).items()):
                if not name.startswith("__"):
                    yield _attribute(path, name), item, 1
        return
    if issubclass(kind, threading.local):
        yield from _of_thread_local(path, value)
        return
    if raw.module_of(kind).partition(".")[0] in _CLOSED:
        return
    if issubclass(kind, torch.Tensor):
        yield from _of_tensor(path, value)
    elif issubclass(kind, torch.nn.Module):
        yield from _of_module(path, value)
        return
    elif issubclass(kind, dict):
        yield from _of_dict(path, value)
    elif issubclass(kind, (list, tuple, collections.deque)):
        yield from _of_sequence(path, value, kind)
    elif issubclass(kind, (set, frozenset)):
        base = set if issubclass(kind, set) else frozenset
        for item in base.__iter__(value):
            yield f"{path}{{...}}", item, 1
    yield from attributes(path, value, kind)


def _attribute(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def attributes(path: str, value: Any, kind: type) -> Iterator[Child]:
    """What an object's `__dict__`, its `__slots__` and its classes hold."""
    held = raw.dict_of(value)
    if type(held) is dict:
        for name, item in naming.items_in(held):
            yield _attribute(path, name), item, 1
    yield from _of_class(path, value, kind)


def _of_class(path: str, value: Any, kind: type) -> Iterator[Child]:
    for cls in raw.mro_of(kind):
        module = raw.module_of(cls)
        if module == "builtins":
            continue
        for name, item in list(raw.class_dict(cls).items()):
            # Slots: read by C, whatever the class says of attributes.
            if type(item) is types.MemberDescriptorType and not name.startswith("__"):
                try:
                    yield _attribute(path, name), item.__get__(value), 1
                except Exception:
                    continue  # an empty slot
        if _is_followed(cls):
            yield class_name(cls), cls, 1


def _of_tensor(path: str, value: Any) -> Iterator[Child]:
    who = naming.identity_of(value)
    if who is None or not who.grad:
        return
    getter: Any = torch.Tensor.grad
    try:
        with torch._C.DisableTorchFunctionSubclass():
            grad = getter.__get__(value)
    except Exception:
        return
    if grad is not None:
        yield _attribute(path, "grad"), grad, 0


def _of_module(path: str, value: Any) -> Iterator[Child]:
    kind = type(value)
    for group, cost in (("_parameters", 1), ("_buffers", 1), ("_modules", 0)):
        for name, item in naming.group_of(value, group):
            yield naming.child_path(path, name), item, cost
    held = raw.dict_of(value)
    if type(held) is dict:
        for name, item in naming.items_in(held):
            if name not in ("_parameters", "_buffers", "_modules"):
                yield _attribute(path, name), item, 1
    yield from _of_class(path, value, kind)


def _of_dict(path: str, value: Any) -> Iterator[Child]:
    for number, (key, item) in enumerate(list(dict.items(value))):
        if id(type(key)) in ATOMS and id(type(item)) in ATOMS:
            yield path, item, 1
            continue
        yield f"{path}[{_key(key, number)}]", item, 1
        if id(type(key)) not in ATOMS:
            yield f"{path}.<key {number}>", key, LAST


def _of_sequence(path: str, value: Any, kind: Any) -> Iterator[Child]:
    base: Any = next(base for base in (list, tuple, collections.deque) if issubclass(kind, base))
    names: list[Any] = []
    if base is tuple and kind is not tuple:
        fields = raw.class_dict(kind).get("_fields")
        names = list(fields) if type(fields) is tuple else []
    for index, item in enumerate(base.__iter__(value)):
        if index < len(names) and type(names[index]) is str:
            yield _attribute(path, names[index]), item, 1
        else:
            yield f"{path}[{index}]", item, 1


def of_function(path: str, function: Any) -> Iterator[Child]:
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        yield f"{path}.<closure>.{name}", cell, 0
    defaults = function.__defaults__ or ()
    arguments = code.co_varnames[: code.co_argcount]
    for name, item in zip(arguments[len(arguments) - len(defaults) :], defaults, strict=False):
        yield f"{path}.<default>.{name}", item, 1
    for name, item in list((function.__kwdefaults__ or {}).items()):
        yield f"{path}.<default>.{name}", item, 1
    for name, item in list(function.__dict__.items()):
        if type(name) is str:
            yield _attribute(path, name), item, 1


def of_cell(path: str, cell: Any) -> Iterator[Child]:
    try:
        yield path, cell.cell_contents, 1
    except ValueError:
        return  # not filled yet


def _of_lru_cache(path: str, wrapper: Any) -> Iterator[Child]:
    """The results (and keys) that a functools.lru_cache keeps, which only its C code can reach.

    With a bound the entries hang on the wrapper itself, without one in the wrapper's dict.
    """
    import gc

    attributes = raw.dict_of(wrapper)
    wrapped = attributes.get("__wrapped__") if type(attributes) is dict else None
    for item in gc.get_referents(wrapper):
        if item is wrapped:
            yield path, item, 0
        elif item is attributes:
            for name, kept in naming.items_in(attributes):
                yield _attribute(path, name), kept, 1
        elif type(item) is dict:
            for key, kept in list(item.items()):
                yield f"{path}.<lru_cache>", kept, 1
                if id(type(key)) not in ATOMS:
                    yield f"{path}.<lru_cache key>", key, 1
        elif not issubclass(type(item), type):
            yield f"{path}.<lru_cache>", item, 1


def _of_partial(path: str, value: Any) -> Iterator[Child]:
    for name in ("func", "args", "keywords"):
        descriptor: Any = raw.class_dict(functools.partial)[name]
        yield f"{path}.{name}", descriptor.__get__(value), 0
    for name, item in naming.items_in(raw.dict_of(value)):
        yield _attribute(path, name), item, 1


def _of_method(path: str, method: Any) -> Iterator[Child]:
    yield f"{path}.__self__", method.__self__, 1
    yield path, method.__func__, 0


def _of_builtin_method(path: str, method: Any) -> Iterator[Child]:
    owner = method.__self__
    if owner is not None and not issubclass(type(owner), (types.ModuleType, type)):
        yield f"{path}.__self__", owner, 1


def _of_wrapped(path: str, method: Any) -> Iterator[Child]:
    yield path, method.__func__, 0


def _of_property(path: str, value: Any) -> Iterator[Child]:
    yield f"{path}.fget", value.fget, 1


def _of_thread_local(path: str, value: Any) -> Iterator[Child]:
    """The values of every thread. Reading an attribute would run `__init__` in a new thread."""
    import gc

    for held in gc.get_referents(value):
        if type(held) is dict:
            for space in list(held.values()):
                for name, item in naming.items_in(space):
                    yield _attribute(path, name), item, 1


def _of_proxy(path: str, value: Any) -> Iterator[Child]:
    import gc

    for item in gc.get_referents(value):
        yield path, item, 0


def _of_generator(path: str, value: Any) -> Iterator[Child]:
    frame = getattr(value, _FRAME_OF[type(value)])
    if frame is not None:
        for name, item in naming.locals_of(frame):
            yield f"{path}.<locals>.{name}", item, 1


_FRAME_OF: dict[type, str] = {
    types.GeneratorType: "gi_frame",
    types.CoroutineType: "cr_frame",
    types.AsyncGeneratorType: "ag_frame",
}
LRU_CACHE = type(functools.lru_cache(lambda: None))
# Kinds are told by id(): a metaclass may answer hash() and == with code of its own.
SPECIAL: dict[int, Callable[[str, Any], Iterator[Child]]] = {
    id(types.FunctionType): of_function,
    id(types.CellType): of_cell,
    id(LRU_CACHE): _of_lru_cache,
    id(functools.partial): _of_partial,
    id(types.MethodType): _of_method,
    id(types.BuiltinMethodType): _of_builtin_method,
    id(staticmethod): _of_wrapped,
    id(classmethod): _of_wrapped,
    id(property): _of_property,
    id(types.MappingProxyType): _of_proxy,
    **dict.fromkeys(map(id, _FRAME_OF), _of_generator),
}
# Packages whose objects lead everywhere and to no tensor of the program's.
_CLOSED = {"logging", "weakref", "gradext", "_thread", "re", "typing", "abc", "enum"}
CLASSES_OF_NOBODY = {*sys.stdlib_module_names, "torch", "numpy", "gradext"} - {"__main__"}


def _key(key: Any, number: int) -> str:
    """A dict's key as one would type it, without asking an object for its repr."""
    kind = type(key)
    if id(kind) in ATOMS:
        return repr(key)
    if kind is tuple and all(id(type(item)) in ATOMS for item in key):
        return ", ".join(map(repr, key)) if len(key) > 1 else repr(key)
    if issubclass(kind, torch.Tensor):
        return f"\0{id(key)}:{number}\0"
    return f"<{class_name(kind)} {number}>"


_get_qualname: Any = type.__dict__["__qualname__"]


def class_name(kind: type) -> str:
    name: str = _get_qualname.__get__(kind)
    return name.rpartition("<locals>.")[2]


def _is_followed(kind: type) -> bool:
    """Whether class attributes may hold tensors of the program's: not those of torch and Python."""
    return raw.module_of(kind).partition(".")[0] not in CLASSES_OF_NOBODY
