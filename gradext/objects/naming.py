"""Names of tensors as a person would write them: `judge.verdict.weight`, `state.kv`, `hidden[2]`.

Looks through the locals of the frames that are running, the modules that exist, and one level of
attributes and containers. Reads only: runs no property, no `__getattr__`, no `__eq__` and no other
code of the user's, and keeps nothing of what it saw alive.
"""

from __future__ import annotations

import collections
import gc
import itertools
import re
import sys
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from gradext.base import package, raw
from gradext.base.raw import dict_of
from gradext.native import _C
from gradext.state.inspect import TensorState, state_of
from gradext.state.traverse import ATOMS, traverse

_MOST_ITEMS = 64  # entries of one container that are looked at
_MOST_MODULES = 20000
_MOST_SEARCHED = 300_000  # objects: among more than these, nobody is asked who holds a module
_OPTIMIZED = 1  # CO_OPTIMIZED: the locals lie in the frame, and f_locals is a copy of them


class Identity(NamedTuple):
    """Who a tensor is: words that can be read while other threads use it (csrc/state/identity.h).

    Attributes:
        id, counter, storage: ids as in TensorState.
        node: id of the node of `grad_fn`, 0 for none. grad: of the tensor in `.grad`, 0 for none.
    """

    id: int
    counter: int
    node: int
    storage: int
    grad: int
    requires_grad: bool
    is_leaf: bool
    is_inference: bool
    is_view: bool


def identity_of(value: Any) -> Identity | None:
    """None for what is no tensor."""
    if not issubclass(type(value), torch.Tensor):  # `_C` would ask an object for its `__class__`
        return None
    try:
        return Identity._make(_C.identity(value))
    except TypeError:
        return None


class Names:
    """Names found once, for any number of questions. Lives as long as one diagnosis is made.

    What the running frames hold, and the modules among it, is looked through at once. All other
    modules there are, which takes a look at every object of the program, only when a tensor is
    asked for that is not among those.

    Other threads may be using the tensors that are found: of each, only who it is is read.
    """

    def __init__(self, live: Iterable[Any] = (), *, modules: bool = True) -> None:
        self._by_id: dict[int, _Name] = {}
        self._by_counter: dict[int, _Name] = {}
        self._same_counter: dict[int, list[tuple[_Name, Any]]] = {}
        self._by_node: dict[int, _Name] = {}
        self._parameters: set[int] = set()
        self._leaf_counters: set[int] = set()
        self._held_counters: set[int] = set()
        self._variables: dict[int, str] = {}
        self._roots: list[Any] = []
        self._all_roots: list[Any] | None = None  # where somebody has looked for them already
        self._prefixes: dict[int, str] = {}
        self._seen: dict[int, int] = {}  # modules, by id()
        self._is_complete = not modules
        scopes = _scopes_of(live)
        for scope in scopes:
            for name, value in scope:
                self._variables.setdefault(id(value), name)
        if modules:
            self._modules_of(scopes)
        for scope in scopes:
            for path, tensor in tensors_in(scope, depth=2):
                self._add(tensor, path)

    def of(self, tensor: int, counter: int | None = None) -> str | None:
        """The name of the tensor object `tensor`, else of one that shares its counter."""
        name = self._find(self._by_id, tensor)
        if name is None and counter:
            name = self._by_counter.get(counter)
        return self._text(name)

    def of_saved(self, saved: Any) -> tuple[str | None, bool]:
        """(name, whether it is that very tensor and no alias) of a graph_copy.Saved."""
        name = self._by_id.get(saved.tensor) or self._in_place_of(saved)
        if name is None and not self._by_counter.get(saved.counter or 0):
            self._complete()
            name = self._by_id.get(saved.tensor) or self._in_place_of(saved)
        if name is not None:
            return self._text(name), True
        return self._text(self._by_counter.get(saved.counter) if saved.counter else None), False

    def of_node(self, node: int) -> str | None:
        """The name of a tensor that this node made, by the node's id."""
        return self._text(self._by_node.get(node)) if node else None

    def of_variable(self, thing: int) -> str | None:
        """The variable of a running frame that has an object, by its id()."""
        return self._variables.get(thing)

    def is_parameter(self, tensor: int) -> bool:
        self._find(self._by_id, tensor)
        return tensor in self._parameters

    def is_of_module(self, tensor: int) -> bool:
        """Whether a module holds it, as a parameter, a buffer or any attribute."""
        return isinstance(self._find(self._by_id, tensor), tuple)

    def is_of_leaf(self, counter: int) -> bool:
        """Whether a leaf that requires grad (a parameter) has this version counter."""
        if counter not in self._leaf_counters and counter not in self._by_counter:
            self._complete()
        return counter in self._leaf_counters

    def is_held(self, counter: int) -> bool:
        """Whether a module has the tensor of this version counter as a parameter or a buffer."""
        if counter not in self._held_counters:
            self._complete()
        return counter in self._held_counters

    def of_module(self, parameter: int) -> str | None:
        """What the outermost module that holds a parameter calls it: `net.emb.weight`."""
        way = self.way_to(parameter)
        if not way:
            return None
        index = next(k for k, root in enumerate(self._roots) if root is way[0][0])
        path = ""
        for _, step in way:
            path = child_path(path, step, dot=".")
        return self._text((index, path))

    def way_to(self, parameter: int) -> list[tuple[Any, str]]:
        """(module, attribute) from the outermost module that holds a parameter down to it.

        Empty for a tensor that is no parameter of a module.
        """
        self._find(self._by_id, parameter)
        for root in self._roots:
            start: list[tuple[Way, Any]] = [((), root)]
            for way, module in traverse(start, _parts, wanted=torch.nn.Module, through=True):
                for name, tensor in group_of(module, "_parameters"):
                    who = identity_of(tensor)
                    if who is not None and who.id == parameter:
                        return [*way, (module, name)]
        return []

    def _find(self, names: dict[int, _Name], key: int) -> _Name | None:
        found = names.get(key)
        if found is None and not self._is_complete:
            self._complete()
            found = names.get(key)
        return found

    def _in_place_of(self, saved: Any) -> _Name | None:
        """A node holds its own result as a detached copy: the same but for the object."""
        for name, tensor in self._same_counter.get(saved.counter or 0, ()):
            facts = facts_of(tensor)
            if (
                facts is not None
                and (facts.storage, facts.storage_offset) == (saved.storage, saved.offset)
                and tuple(facts.shape) == saved.sizes
                and _strides(tensor) == saved.strides
            ):
                return name
        return None

    def _text(self, name: _Name | None) -> str | None:
        if not isinstance(name, tuple):
            return name
        index, path = name
        prefix = self._prefixes.get(index)
        if prefix is None:
            root = self._roots[index]
            ours = {id(self._roots), id(self._all_roots)}
            prefix = attribute_name(root, self._variables, ours) or type(root).__name__
            self._prefixes[index] = prefix
        return prefix + path

    def _add(self, value: Any, name: _Name) -> None:
        who = identity_of(value)
        if who is None:
            return
        self._by_id.setdefault(who.id, name)
        if who.counter:
            self._by_counter.setdefault(who.counter, name)
            self._same_counter.setdefault(who.counter, []).append((name, value))
            if who.is_leaf and who.requires_grad:
                self._leaf_counters.add(who.counter)
        if who.node:
            self._by_node.setdefault(who.node, name)
        if issubclass(type(value), torch.nn.Parameter):
            self._parameters.add(who.id)
        if who.grad:
            of_grad = f"{name}.grad" if isinstance(name, str) else (name[0], name[1] + ".grad")
            self._by_id.setdefault(who.grad, of_grad)

    def _modules_of(self, scopes: list[list[tuple[str, Any]]]) -> None:
        """The modules in variables, and in attributes and items of what variables hold."""
        for path, module in _roots_of(scopes):
            self._root(module, self._variables.get(id(module)) or path)

    def know_roots(self, roots: list[Any]) -> None:
        """All there are, by root_modules(): not looked for a second time."""
        self._all_roots = roots

    def _complete(self) -> None:
        if not self._is_complete:
            self._is_complete = True
            for root in root_modules() if self._all_roots is None else self._all_roots:
                if id(root) not in self._seen:
                    self._root(root, self._variables.get(id(root)))

    def _root(self, root: Any, name: str | None) -> None:
        index = len(self._roots)
        self._roots.append(root)
        if name is not None:
            self._prefixes[index] = name
        found = submodules(root, joined=_dotted, last_first=True, entered=self._seen)
        for path, module in found:
            for group in ("_parameters", "_buffers"):
                for name, tensor in group_of(module, group):
                    self._add(tensor, (index, f"{path}.{name}"))
                    who = identity_of(tensor)
                    if who is not None and who.counter:
                        self._held_counters.add(who.counter)
            own = [
                (f"{path}.{name}", value)
                for name, value in items_in(dict_of(module))
                if id(type(value)) not in ATOMS and name not in _MODULE_DICTS
            ]
            for where, tensor in tensors_in(own, depth=1):
                self._add(tensor, (index, where))


def named_roots(live: Iterable[Any]) -> list[tuple[str, Any]]:
    """Modules that the running frames reach and that are within none of the others, by name."""
    scopes = _scopes_of(live)
    variables: dict[int, str] = {}
    for scope in scopes:
        for name, value in scope:
            variables.setdefault(id(value), name)
    return [(variables.get(id(root)) or path, root) for path, root in _roots_of(scopes)]


def _scopes_of(live: Iterable[Any]) -> list[list[tuple[str, Any]]]:
    user = [frame for frame in live if package.is_user_file(frame.f_code.co_filename)]
    scopes = [locals_of(frame) for frame in user]
    spaces = {id(frame.f_globals): frame.f_globals for frame in user}
    scopes += [items_in(space) for space in spaces.values()]
    return [_own_last(scope) for scope in scopes]


def _roots_of(scopes: list[list[tuple[str, Any]]]) -> list[tuple[str, Any]]:
    held = {
        id(module): (path, module)
        for scope in scopes
        for path, module in modules_in(scope, depth=2)
    }
    children = {id(c) for _, module in held.values() for _, c in group_of(module, "_modules")}
    return [(path, module) for path, module in held.values() if id(module) not in children]


Way = tuple[tuple[Any, str], ...]  # (module, attribute) from the outermost module on
_Name = str | tuple[int, str]  # or the path below one of the roots
_MODULE_DICTS = {
    *("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_backward_hooks"),
    *("_backward_pre_hooks", "_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks"),
}


def every(*kinds: type) -> list[Any]:
    """Every object there is of these kinds, or of kinds made from them."""
    return _C.instances(gc.get_objects(), kinds)[:_MOST_MODULES]


def root_modules(modules: list[Any] | None = None) -> list[Any]:
    """The torch modules that exist (or `modules`) and are part of no other."""
    modules = every(torch.nn.Module) if modules is None else modules
    children = {id(child) for module in modules for _, child in group_of(module, "_modules")}
    return [module for module in modules if id(module) not in children]


def tensors_in(roots: Iterable[tuple[str, Any]], depth: int) -> Iterator[tuple[str, torch.Tensor]]:
    """(path, tensor) of the tensors in named values and, `depth` levels deep, in what these hold.

    Of a module only what it has itself. A tensor comes at each path that leads to it.
    """
    return traverse(roots, _near, repeats="all", depth=depth)


def modules_in(roots: Iterable[tuple[str, Any]], depth: int) -> Iterator[tuple[str, Any]]:
    """The modules in named values, as tensors_in() finds tensors; nothing below a module."""
    return traverse(roots, _near, wanted=torch.nn.Module, repeats="all", depth=depth)


def _near(path: str, value: Any, left: int) -> Iterator[tuple[str, Any, int]]:
    """What a variable's value holds, as far as a person would write it."""
    kind = type(value)
    if left == 0 or issubclass(kind, (type, types.ModuleType, types.FunctionType, torch.Tensor)):
        return
    if issubclass(kind, torch.nn.Module):
        groups = [pair for group in ("_parameters", "_buffers") for pair in group_of(value, group)]
        for key, item in (*groups, *items_in(dict_of(value))[:_MOST_ITEMS]):
            if issubclass(type(item), torch.Tensor):
                yield f"{path}.{key}", item, 1
    elif kind is list or kind is tuple or kind is collections.deque:
        # Whole at once: another thread may be changing it.
        for index, item in enumerate(list(itertools.islice(value, _MOST_ITEMS))):
            if id(type(item)) not in ATOMS:
                yield f"{path}[{index}]", item, 1
    elif issubclass(kind, dict):
        for key, item in list(dict.items(value))[:_MOST_ITEMS]:
            if (type(key) is str or type(key) is int) and id(type(item)) not in ATOMS:
                yield f"{path}[{key!r}]", item, 1
    elif issubclass(kind, tuple):  # a named tuple
        fields = raw.field_names(kind) or ()
        for key, item in zip(fields, tuple.__iter__(value), strict=False):
            yield f"{path}.{key}", item, 1
    elif raw.module_of(kind) != "builtins":
        for key, item in items_in(dict_of(value))[:_MOST_ITEMS]:
            if id(type(item)) not in ATOMS:
                yield f"{path}.{key}", item, 1


def submodules(
    root: Any,
    path: str = "",
    *,
    joined: Callable[[str, str], str] | None = None,
    last_first: bool = False,
    entered: dict[int, int] | None = None,
) -> Iterator[tuple[str, Any]]:
    """(path, module) of a module and of all below it, each once.

    Args:
        path: of the root. joined: makes a path longer by a name, child_path() where None.
        last_first: of the parts of one module the last one first, with what is below it.
        entered: the modules, by id(), that were met before, and are not met again.
    """
    join, step = joined or child_path, -1 if last_first else 1

    def holds(where: str, module: Any, left: int) -> list[tuple[str, Any, int]]:
        found = group_of(module, "_modules")
        return [(join(where, name), child, 0) for name, child in found[::step]]

    every_one: dict[str, Any] = {"wanted": torch.nn.Module, "through": True, "entered": entered}
    return traverse([(path, root)], holds, **every_one)


def attribute_name(
    thing: Any, variables: Mapping[int, str], ours: Collection[int] = (), depth: int = 2
) -> str | None:
    """`learner.q` for a module that is an attribute, or an item, of something with a name.

    Args:
        variables: names of objects by id().
        ours: temporary lists made by the caller, by id(); no holders.
    """
    if depth == 0 or len(gc.get_objects()) > _MOST_SEARCHED:
        return None
    for holder in gc.get_referrers(thing):
        if _is_ours(holder):
            continue  # what gradext has collected is nothing that the program has named
        of_object = dict_of(holder)
        if type(of_object) is dict and not issubclass(type(holder), (type, types.ModuleType)):
            # Python 3.11 and newer keep the attributes of most objects in no dict until it is asked
            # for: then the object itself is the referrer.
            key = next((k for k, v in items_in(of_object) if v is thing), None)
            if key is not None:
                name = variables.get(id(holder)) or type(holder).__name__
                return f"{name}.{key}"
        if type(holder) is dict:
            key = next((k for k, v in items_in(holder) if v is thing), None)
            if key is None:
                continue
            for owner in gc.get_referrers(holder):
                is_object = dict_of(owner) is holder and not issubclass(type(owner), type)
                if is_object and not _is_ours(owner):
                    name = variables.get(id(owner)) or type(owner).__name__
                    return f"{name}.{key}"
        elif (type(holder) is list or type(holder) is tuple) and id(holder) not in ours:
            for index, item in enumerate(holder[:_MOST_ITEMS]):
                if item is thing:
                    found = variables.get(id(holder))
                    found = found or attribute_name(holder, variables, ours, depth - 1)
                    if found:
                        return f"{found}[{index}]"
    return None


def _is_ours(thing: Any) -> bool:
    return raw.type_name(type(thing)).startswith("gradext.")


def child_path(path: str, name: str, dot: str = "") -> str:
    """The path of a submodule or parameter: `net[0]` for a Sequential's, else `net.name`."""
    if name.isdigit():
        return f"{path}[{name}]"
    return f"{path}.{name}" if path or dot else name


def _dotted(path: str, name: str) -> str:
    return child_path(path, name, dot=".")


def _parts(way: Way, module: Any, left: int) -> list[tuple[Way, Any, int]]:
    """The parts of a module, the last one first."""
    below = group_of(module, "_modules")[::-1]
    return [((*way, (module, name)), child, 0) for name, child in below]


def facts_of(value: Any) -> TensorState | None:
    """What gradext.inspect knows of a tensor; None where it cannot be read."""
    try:
        return state_of(value)
    except Exception:
        return None


def locals_of(frame: Any) -> list[tuple[str, Any]]:
    """A frame's local variables, leaving nothing behind in it.

    Before Python 3.13 `f_locals` of a function is a dict that stays in the frame and would keep
    what the function drops afterwards alive until it returns.
    """
    held = frame.f_locals
    found = items_in(held)
    if (
        type(held) is dict
        and frame.f_code.co_flags & _OPTIMIZED
        and sys.getrefcount(held) <= 3  # the frame's, ours, the argument's: nobody called locals()
    ):
        held.clear()
    return found


def _own_last(scope: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """A namespace, the names that nobody has chosen behind the others: `_`, and IPython's own.

    IPython keeps what a cell ended with as `_`, `_3` and in `Out`, which is `_oh`, too.
    """
    of_shell = any(name == "_oh" for name, _ in scope)

    def is_own(name: str) -> bool:
        return name == "_" or (of_shell and _OF_SHELL.fullmatch(name) is not None)

    return sorted(scope, key=lambda pair: is_own(pair[0]))


_OF_SHELL = re.compile(r"_+|_\d+|_oh|Out")


def items_in(held: Any) -> list[tuple[str, Any]]:
    """The entries of a namespace that a person could have named."""
    kind = type(held)
    if issubclass(kind, dict):
        pairs = list(dict.items(held))
    elif raw.type_name(kind) == "FrameLocalsProxy":  # Python 3.13; of builtins, and so bare
        pairs = list(held.items())
    else:
        return []
    return [(k, v) for k, v in pairs if type(k) is str and not k.startswith("__")]


def group_of(module: Any, name: str) -> list[tuple[str, Any]]:
    """`_parameters`, `_buffers` or `_modules` of a module, without the empty ones."""
    held = dict_of(module)
    group = held.get(name) if type(held) is dict else None
    return [(k, v) for k, v in items_in(group) if v is not None]


def _strides(value: Any) -> tuple[int, ...] | None:
    geometry = _C.geometry(value)
    return None if geometry is None else geometry[1]  # None: sparse, nested, a subclass's own
