"""How a tensor is held, as a person would write it: `model.rope._cache[16]`, `batch['mask']`.

Owns the walk from named things down to tensors. Reads only: runs no property, no `__getattr__`, no
`__eq__` and no other code of the user's, and keeps nothing of what it saw alive. What Python has no
words for is written in angle brackets: `step.<closure>.cache`, `make_mask.<lru_cache>`,
`step.<default>.mask`, `numbers.<locals>.x` (a suspended generator), `pool{...}` (an item of a set).
"""

from __future__ import annotations

import collections
import functools
import itertools
import re
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from gradext.base import package, raw
from gradext.objects import naming

DEPTH = 6  # steps below a root; the way from a module to its submodules costs none
MOST = 200_000  # objects that are entered; twenty times as many numbers and texts are passed over
_PASSED_PER_ENTERED = 20
_GLOBALS_OF = ("__builtins__", "__loader__", "__spec__")

Root = tuple[str, Any]
_Child = tuple[str, Any, int]  # the path, the object, what the step takes off the depth
_KEY = -1  # instead of a cost: a key of a dict, which is the last thing to name an object by


def walk(
    roots: Iterable[Root],
    *,
    depth: int = DEPTH,
    most: int = MOST,
    items: int | None = None,
    limit: Callable[[], object] | None = None,
    grads: bool = True,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor that the roots hold, each tensor object once, the shortest path first.

    Follows attributes (`__slots__` too), containers, modules, optimizers, class attributes,
    closures, defaults, partials, bound methods, lru_caches, generators, `.grad` and what hangs on a
    tensor. Weak references hold nothing; a Python module is entered only where it is a root.

    A tensor that can be named by the parameter it belongs to only (`opt.state[net.weight]['step']`)
    comes last, when the parameter's own path is known.

    Args:
        roots: (name, object) pairs; earlier ones win among paths of one length. A name may be "".
        depth: steps below a root that are taken.
        most: objects that are entered before the walk ends.
        items: of one object that are looked at; all where None.
        limit: called when the walk ends because of `most`, with objects left.
        grads: follow `.grad`. Not while other threads may run backward: the engine exchanges a
            gradient without the GIL, and a tensor that is just being let go cannot be held.
    """
    seen: dict[int, int] = {}  # id: the depth that was left
    paths: dict[int, str] = {}  # of tensors
    later: list[tuple[str, torch.Tensor]] = []
    level: collections.deque[tuple[str, Any, int, bool]] = collections.deque()
    for name, root in roots:
        level.append((name, root, depth, True))
    keys: collections.deque[tuple[str, Any, int, bool]] = collections.deque()
    entered = passed = 0
    while level or keys:
        if not level:
            level, keys = keys, level
        path, value, left, is_root = level.popleft()
        if seen.get(id(value), -1) >= left:
            continue
        first = id(value) not in seen
        seen[id(value)] = left
        if issubclass(type(value), torch.Tensor) and first:
            if "\0" in path:
                later.append((path, value))
            else:
                paths[id(value)] = path
                yield path or "(tensor)", value
        entered += 1
        if entered > most or passed > most * _PASSED_PER_ENTERED:
            if limit is not None:
                limit()
            break
        if not grads and issubclass(type(value), torch.Tensor):
            children = _attributes(path, value, type(value))
        else:
            children = _children(path, value, is_root)
        for where, child, cost in itertools.islice(children, items):
            if id(type(child)) in _ATOMS:
                passed += 1
            elif cost == _KEY:
                if left > 0:
                    keys.append((where, child, left - 1, False))
            elif left >= cost and seen.get(id(child), -1) < left - cost:
                level.append((where, child, left - cost, False))
    for path, tensor in later:
        if id(tensor) not in paths:
            paths[id(tensor)] = path = _with_keys(path, paths)
            yield path, tensor


def path_to(
    wanted: Callable[[torch.Tensor], bool],
    roots: Iterable[Root],
    *,
    depth: int = DEPTH,
    most: int = MOST,
) -> list[tuple[str, torch.Tensor]]:
    """The (path, tensor) pairs of walk() whose tensor is wanted."""
    return [pair for pair in walk(roots, depth=depth, most=most) if wanted(pair[1])]


def roots_of_frames(live: Iterable[types.FrameType]) -> list[Root]:
    """The locals of the user's frames in the order given, then the globals of their modules.

    A global of the program itself has its bare name, that of another module the module's before it:
    `CACHE`, `mypkg.rope.CACHE`. Made for frames with the innermost first.
    """
    user = [frame for frame in live if package.is_user_file(frame.f_code.co_filename)]
    found: list[Root] = []
    for frame in user:
        if frame.f_code.co_name != "<module>":  # there the locals are the globals
            found += naming.locals_of(frame)
    spaces = {id(frame.f_globals): frame.f_globals for frame in user}
    for space in spaces.values():
        found += globals_of(space)
    return found


def globals_of(space: dict[str, Any]) -> list[Root]:
    """The global variables in a module's namespace under the names that roots_of_frames gives."""
    name = space.get("__name__")
    prefix = "" if type(name) is not str or name == "__main__" else f"{name}."
    return [
        (prefix + key, value)
        for key, value in naming.items_in(space)
        if type(value) is not types.ModuleType and key not in _GLOBALS_OF
    ]


def modules() -> list[tuple[str, torch.nn.Module]]:
    """The modules that are part of no other, named by the variable or attribute that holds them.

    The class's name stands for one that nobody holds under a name. Looks at every object there is.
    """
    from gradext.source import live_frames

    live = live_frames.frames_above()
    variables: dict[int, str] = {}
    for name, value in roots_of_frames(live):
        variables.setdefault(id(value), name)
    del live
    roots = naming.root_modules()
    found: list[tuple[str, torch.nn.Module]] = []
    for root in roots:
        held_as = variables.get(id(root)) or naming.attribute_name(root, variables, roots)
        found.append((held_as or _class_name(type(root)), root))
    return found


# --- one step ------------------------------------------------------------------------------------


def _children(path: str, value: Any, is_root: bool) -> Iterator[_Child]:
    """What `value` holds, with paths. Plain attributes cost one step, submodules none."""
    kind = type(value)
    special = _SPECIAL.get(id(kind))
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
    if _module_of(kind).partition(".")[0] in _CLOSED:
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
    yield from _attributes(path, value, kind)


def _attribute(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _attributes(path: str, value: Any, kind: type) -> Iterator[_Child]:
    """What an object's `__dict__`, its `__slots__` and its classes hold."""
    held = raw.dict_of(value)
    if type(held) is dict:
        for name, item in naming.items_in(held):
            yield _attribute(path, name), item, 1
    yield from _of_class(path, value, kind)


def _of_class(path: str, value: Any, kind: type) -> Iterator[_Child]:
    for cls in raw.mro_of(kind):
        module = _module_of(cls)
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
            yield _class_name(cls), cls, 1


def _of_tensor(path: str, value: Any) -> Iterator[_Child]:
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


def _of_module(path: str, value: Any) -> Iterator[_Child]:
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


def _of_dict(path: str, value: Any) -> Iterator[_Child]:
    for number, (key, item) in enumerate(list(dict.items(value))):
        if id(type(key)) in _ATOMS and id(type(item)) in _ATOMS:
            yield path, item, 1
            continue
        yield f"{path}[{_key(key, number)}]", item, 1
        if id(type(key)) not in _ATOMS:
            yield f"{path}.<key {number}>", key, _KEY


def _of_sequence(path: str, value: Any, kind: Any) -> Iterator[_Child]:
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


def _of_function(path: str, function: Any) -> Iterator[_Child]:
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


def _of_cell(path: str, cell: Any) -> Iterator[_Child]:
    try:
        yield path, cell.cell_contents, 1
    except ValueError:
        return  # not filled yet


def _of_lru_cache(path: str, wrapper: Any) -> Iterator[_Child]:
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
                if id(type(key)) not in _ATOMS:
                    yield f"{path}.<lru_cache key>", key, 1
        elif not issubclass(type(item), type):
            yield f"{path}.<lru_cache>", item, 1


def _of_partial(path: str, value: Any) -> Iterator[_Child]:
    for name in ("func", "args", "keywords"):
        descriptor: Any = raw.class_dict(functools.partial)[name]
        yield f"{path}.{name}", descriptor.__get__(value), 0
    for name, item in naming.items_in(raw.dict_of(value)):
        yield _attribute(path, name), item, 1


def _of_method(path: str, method: Any) -> Iterator[_Child]:
    yield f"{path}.__self__", method.__self__, 1
    yield path, method.__func__, 0


def _of_builtin_method(path: str, method: Any) -> Iterator[_Child]:
    owner = method.__self__
    if owner is not None and not issubclass(type(owner), (types.ModuleType, type)):
        yield f"{path}.__self__", owner, 1


def _of_wrapped(path: str, method: Any) -> Iterator[_Child]:
    yield path, method.__func__, 0


def _of_property(path: str, value: Any) -> Iterator[_Child]:
    yield f"{path}.fget", value.fget, 1


def _of_thread_local(path: str, value: Any) -> Iterator[_Child]:
    """The values of every thread. Reading an attribute would run `__init__` in a new thread."""
    import gc

    for held in gc.get_referents(value):
        if type(held) is dict:
            for space in list(held.values()):
                for name, item in naming.items_in(space):
                    yield _attribute(path, name), item, 1


def _of_proxy(path: str, value: Any) -> Iterator[_Child]:
    import gc

    for item in gc.get_referents(value):
        yield path, item, 0


def _of_generator(path: str, value: Any) -> Iterator[_Child]:
    frame = getattr(value, _FRAME_OF[type(value)])
    if frame is not None:
        for name, item in naming.locals_of(frame):
            yield f"{path}.<locals>.{name}", item, 1


_FRAME_OF: dict[type, str] = {
    types.GeneratorType: "gi_frame",
    types.CoroutineType: "cr_frame",
    types.AsyncGeneratorType: "ag_frame",
}
_LRU_CACHE = type(functools.lru_cache(lambda: None))
# Kinds are told by id(): a metaclass may answer hash() and == with code of its own.
_SPECIAL: dict[int, Callable[[str, Any], Iterator[_Child]]] = {
    id(types.FunctionType): _of_function,
    id(types.CellType): _of_cell,
    id(_LRU_CACHE): _of_lru_cache,
    id(functools.partial): _of_partial,
    id(types.MethodType): _of_method,
    id(types.BuiltinMethodType): _of_builtin_method,
    id(staticmethod): _of_wrapped,
    id(classmethod): _of_wrapped,
    id(property): _of_property,
    id(types.MappingProxyType): _of_proxy,
    **dict.fromkeys(map(id, _FRAME_OF), _of_generator),
}
# They hold no tensor.
_ATOMS = {
    id(kind)
    for kind in (
        *(type(None), bool, int, float, complex, str, bytes, bytearray, range, slice, type(...)),
        *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size),
        *(torch.Generator, types.CodeType, types.GetSetDescriptorType),
        *(types.WrapperDescriptorType, types.MethodDescriptorType),
        *(types.ClassMethodDescriptorType, types.MemberDescriptorType),
    )
}
# Packages whose objects lead everywhere and to no tensor of the program's.
_CLOSED = {"logging", "weakref", "gradext", "_thread", "re", "typing", "abc", "enum"}
_CLASSES_OF_NOBODY = {*sys.stdlib_module_names, "torch", "numpy", "gradext"} - {"__main__"}


def _key(key: Any, number: int) -> str:
    """A dict's key as one would type it, without asking an object for its repr."""
    kind = type(key)
    if id(kind) in _ATOMS:
        return repr(key)
    if kind is tuple and all(id(type(item)) in _ATOMS for item in key):
        return ", ".join(map(repr, key)) if len(key) > 1 else repr(key)
    if issubclass(kind, torch.Tensor):
        return f"\0{id(key)}:{number}\0"
    return f"<{_class_name(kind)} {number}>"


def _with_keys(path: str, paths: dict[int, str]) -> str:
    """The path with the names of the tensors that are keys in it."""

    def name(match: re.Match[str]) -> str:
        return paths.get(int(match[1])) or f"<tensor {match[2]}>"

    return re.sub("\0([0-9]+):([0-9]+)\0", name, path)


# --- classes, read past their metaclasses --------------------------------------------------------

_get_module: Any = type.__dict__["__module__"]
_get_qualname: Any = type.__dict__["__qualname__"]


def _module_of(kind: type) -> str:
    try:
        name = _get_module.__get__(kind)
    except AttributeError:
        return ""
    return name if type(name) is str else ""


def _class_name(kind: type) -> str:
    name: str = _get_qualname.__get__(kind)
    return name.rpartition("<locals>.")[2]


def _is_followed(kind: type) -> bool:
    """Whether class attributes may hold tensors of the program's: not those of torch and Python."""
    return _module_of(kind).partition(".")[0] not in _CLASSES_OF_NOBODY


# --- where a model's code lives ------------------------------------------------------------------


def roots_of(subject: Any, name: str) -> list[Root]:
    """`subject` under `name`, then the global variables of the modules whose code it runs.

    Those are the modules that define the classes of its submodules, its function, what that closes
    over, and the callables that partials and bound methods wrap; torch and Python's own are not
    looked into.
    """
    spaces: dict[int, dict[str, Any]] = {}
    for code in itertools.islice(_code_of(subject), MOST):
        module = sys.modules.get(code)
        space = raw.dict_of(module)
        if code.partition(".")[0] not in _CLASSES_OF_NOBODY and type(space) is dict:
            spaces.setdefault(id(space), space)
    found: list[Root] = [(name, subject)]
    for space in spaces.values():
        found += globals_of(space)
    return found


def _code_of(subject: Any) -> Iterator[str]:
    """Names of the Python modules that define what `subject` is made of; some more than once."""
    pending, seen = [subject], set()
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        kind = type(value)
        if kind is types.FunctionType:
            yield from (m for m in (value.__module__,) if type(m) is str)
            for _, cell, _ in _of_function("", value):
                if type(cell) is types.CellType:
                    pending += [item for _, item, _ in _of_cell("", cell)]
                else:
                    pending.append(cell)
        elif kind is types.MethodType or kind is functools.partial:
            pending += [item for _, item, _ in _SPECIAL[id(kind)]("", value)]
        elif kind is _LRU_CACHE:
            held = raw.dict_of(value)
            pending.append(held.get("__wrapped__") if type(held) is dict else None)
        elif kind is tuple or kind is list or kind is dict:
            continue
        elif not issubclass(kind, (type, types.ModuleType)) and id(kind) not in _ATOMS:
            yield from map(_module_of, raw.mro_of(kind))
            if issubclass(kind, torch.nn.Module):
                pending += [child for _, child in naming.group_of(value, "_modules")]
