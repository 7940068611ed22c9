"""How a tensor is held, as a person would write it: `model.rope._cache[16]`, `batch['mask']`.

Owns the walk from named things down to whatever tensors they hold. Reads only: runs no property, no
`__getattr__`, no `__eq__` and no other code of the user's, and keeps nothing of what it saw alive.
What Python has no words for is written in angle brackets: `step.<closure>.cache`,
`make_mask.<lru_cache>`, `step.<default>.mask`, `numbers.<locals>.x` (a suspended generator),
`pool{...}` (an item of a set).
"""

from __future__ import annotations

import functools
import itertools
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from gradext.base import package, raw
from gradext.objects import children, naming
from gradext.state.traverse import ATOMS, traverse

DEPTH = 6  # steps below a root; the way from a module to its submodules costs none
MOST = 200_000  # objects that are entered
_GLOBALS_OF = ("__builtins__", "__loader__", "__spec__")

Root = tuple[str, Any]


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
    roots = list(roots)
    modules = {id(root) for _, root in roots if issubclass(type(root), types.ModuleType)}

    def holds(path: str, value: Any, left: int) -> Iterable[children.Child]:
        if not grads and issubclass(type(value), torch.Tensor):
            return children.attributes(path, value, type(value))
        return children.children_of(path, value, id(value) in modules)

    bounds: dict[str, Any] = {"depth": depth, "items": items, "most": most, "limit": limit}
    paths: dict[int, str] = {}
    later: list[tuple[str, torch.Tensor]] = []
    for path, tensor in traverse(roots, holds, through=True, nearest_first=True, **bounds):
        if "\0" in path:
            later.append((path, tensor))
        else:
            paths[id(tensor)] = path
            yield path or "(tensor)", tensor
    for path, tensor in later:
        if id(tensor) not in paths:
            paths[id(tensor)] = path = _with_keys(path, paths)
            yield path, tensor


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
        held_as = variables.get(id(root)) or naming.attribute_name(root, variables, {id(roots)})
        found.append((held_as or children.class_name(type(root)), root))
    return found


# --- one step ------------------------------------------------------------------------------------


def _with_keys(path: str, paths: dict[int, str]) -> str:
    """The path with the names of the tensors that are keys in it."""

    def name(match: re.Match[str]) -> str:
        return paths.get(int(match[1])) or f"<tensor {match[2]}>"

    return re.sub("\0([0-9]+):([0-9]+)\0", name, path)


# --- classes, read past their metaclasses --------------------------------------------------------

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
        if code.partition(".")[0] not in children.CLASSES_OF_NOBODY and type(space) is dict:
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
            for _, cell, _ in children.of_function("", value):
                if type(cell) is types.CellType:
                    pending += [item for _, item, _ in children.of_cell("", cell)]
                else:
                    pending.append(cell)
        elif kind is types.MethodType or kind is functools.partial:
            pending += [item for _, item, _ in children.SPECIAL[id(kind)]("", value)]
        elif kind is children.LRU_CACHE:
            held = raw.dict_of(value)
            pending.append(held.get("__wrapped__") if type(held) is dict else None)
        elif kind is tuple or kind is list or kind is dict:
            continue
        elif not issubclass(kind, (type, types.ModuleType)) and id(kind) not in ATOMS:
            yield from map(raw.module_of, raw.mro_of(kind))
            if issubclass(kind, torch.nn.Module):
                pending += [child for _, child in naming.group_of(value, "_modules")]
