"""Whose tensors these are: parameters, optimizers and names of the program, for one diagnosis."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

from gradext.base import raw
from gradext.recording.awaited import Holder
from gradext.recording.events import Birth, Flow

if TYPE_CHECKING:
    from gradext.objects.naming import Names


class Owners:
    """Names, parameters and optimizers of the program, for one diagnosis.

    Every object of the program is looked at when somebody asks about parameters or optimizers, and
    a name is looked for when it is asked for: most diagnoses are begun and come to nothing.
    """

    def __init__(self, live: Sequence[Any]) -> None:
        import torch

        from gradext.objects import naming

        self._naming = naming
        self._tensor = torch.Tensor
        self._live = live

    @functools.cached_property
    def _names(self) -> Names:
        from gradext.objects import naming

        return naming.Names(self._live)

    @functools.cached_property
    def _found(self) -> _Found:
        import torch

        naming = self._naming
        found = _Found()
        things = naming.every(torch.optim.Optimizer, torch.nn.Module)
        for optimizer in things:
            if not issubclass(type(optimizer), torch.optim.Optimizer):
                continue
            groups = raw.dict_of(optimizer)
            for group in groups.get("param_groups", ()) if type(groups) is dict else ():
                for tensor in group.get("params", ()) if type(group) is dict else ():
                    who = naming.identity_of(tensor)
                    if who is None:
                        continue
                    found.optimized.add(who.id)
                    found.optimizers.setdefault(who.id, (type(optimizer).__name__, id(optimizer)))
                    found.had_by.setdefault(id(optimizer), []).append(weakref.ref(tensor))
                    if not who.requires_grad:
                        found.untracked_in_optimizer.append(who.id)
        modules = [thing for thing in things if issubclass(type(thing), torch.nn.Module)]
        del things
        roots = naming.root_modules(modules)
        self._names.know_roots(roots)
        for number, root in enumerate(roots):
            for _, module in naming.submodules(root):
                for _, tensor in naming.group_of(module, "_buffers"):
                    who = naming.identity_of(tensor)
                    if who is not None:
                        found.buffers.add(who.id)
                for _, tensor in naming.group_of(module, "_parameters"):
                    who = naming.identity_of(tensor)
                    if who is None or not who.requires_grad or who.id in found.root_of:
                        continue
                    found.root_of[who.id] = number
                    if not found.optimized or who.id in found.optimized:
                        found.trainable.append(who.id)
        return found

    @property
    def optimized(self) -> set[int]:
        """Ids of what an optimizer has."""
        return self._found.optimized

    def holder_of(self, leaf: int) -> Holder | None:
        """Which optimizer has a leaf; None where none has, or the leaf has no name."""
        kind, optimizer = self._found.optimizers.get(leaf, ("", 0))
        name = self.by_id(leaf) if kind else None
        if name is None:
            return None
        called = self._names.of_variable(optimizer)
        spoken = f"`{called}`" if called else kind
        return Holder(name, self._places.get(leaf, -1), spoken, self._found.had_by[optimizer])

    @functools.cached_property
    def _places(self) -> dict[int, int]:
        return {leaf: place for place, leaf in enumerate(self.trainable_ids)}

    @property
    def root_of(self) -> dict[int, int]:
        """Which module a parameter is of, by its id; modules that are within none are counted."""
        return self._found.root_of

    @property
    def trainable_ids(self) -> list[int]:
        """The ids of the parameters that an optimizer has; of all, if there is no optimizer."""
        return self._found.trainable

    @property
    def trainable(self) -> Sequence[str]:
        return _Named(self.trainable_ids, self._names, "a parameter")

    @property
    def untracked_in_optimizer(self) -> Sequence[str]:
        """Names of what an optimizer has and that requires no grad."""
        return _Named(self._found.untracked_in_optimizer, self._names, "a tensor")

    def of(self, tensor: Any) -> str | None:
        who = self._naming.identity_of(tensor)
        return self._names.of(who.id) if who is not None else None

    def by_id(self, tensor: int) -> str | None:
        return self._names.of(tensor)

    def is_parameter(self, tensor: int) -> bool:
        return self._names.is_parameter(tensor)

    def is_alive(self, origin: Birth | Flow) -> bool:
        return isinstance(origin, Flow) and origin.lives and bool(self._names.of(origin.tensor))

    def is_attribute(self, origin: Flow) -> bool:
        """Whether a module holds the tensor under a name, and not as a buffer."""
        held = origin.lives and self._names.is_of_module(origin.tensor)
        return held and origin.tensor not in self._found.buffers

    def is_tensor(self, value: Any) -> bool:
        return issubclass(type(value), self._tensor)


class _Found:
    """What a look at every object there is found, as ids of tensors."""

    def __init__(self) -> None:
        self.optimized: set[int] = set()
        self.optimizers: dict[int, tuple[str, int]] = {}  # kind and id() of who has it
        self.had_by: dict[int, list[weakref.ref[Any]]] = {}  # what each optimizer has
        self.untracked_in_optimizer: list[int] = []
        self.trainable: list[int] = []
        self.root_of: dict[int, int] = {}
        self.buffers: set[int] = set()


class _Named(Sequence[str]):
    """Names of tensors, each looked for when it is asked for: few of them are told."""

    def __init__(self, ids: Sequence[int], names: Names, unnamed: str) -> None:
        self._ids, self._names, self._unnamed = ids, names, unnamed

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self._name(tensor) for tensor in self._ids[at]]
        return self._name(self._ids[at])

    def _name(self, tensor: int) -> str:
        return self._names.of(tensor) or self._unnamed
