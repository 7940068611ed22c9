"""Who steps what: optimizers and the modules in reach, as they stand when a backward has ended.

Looks at the optimizers that were made while it was recorded, and at what the running frames reach.
Lives as long as one look is taken; of tensors only who they are is read.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from gradext.base import package, raw
from gradext.diagnosis.model import Diagnosis, Frame, Site
from gradext.native import _C
from gradext.objects import naming
from gradext.recording import training
from gradext.recording.training import Made
from gradext.source import frames, sites


class Leaf(NamedTuple):
    """A tensor without history, and what it is called."""

    name: str
    who: naming.Identity

    @property
    def is_filled(self) -> bool:
        """Whether it requires grad, and backward has filled its `.grad`."""
        return self.who.is_leaf and self.who.requires_grad and self.who.grad != 0


class Stepping(NamedTuple):
    """An optimizer, and the leaves that it has."""

    made: Made
    optimizer: Any
    leaves: dict[int, naming.Identity]
    tensors: Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Found:
    """Leaves that get gradients and that nobody seems to step.

    Attributes:
        key: what tells it from others at the next look. say: makes the diagnosis, given the names
            of those that it still holds for and the line of the backward.
        stepping: an optimizer that has to have stepped between the looks.
        is_anew: the leaves are others at each look.
        keeps_gradient: the same gradient has to be there at the next look: nobody clears it.
        by_calls: that it has is known by the calls of step(), which have no gradient to work with,
            and not by what it has written.
        looks: how many have to find it.
    """

    key: tuple[Any, ...]
    leaves: dict[int, Leaf]
    say: Callable[[Sequence[str], Site | None], Diagnosis]
    stepping: Stepping
    is_anew: bool = False
    keeps_gradient: bool = False
    by_calls: bool = False
    looks: int = 2


class Stacks:
    """Recording.frames() without a copy of the events, and without what noted the stack."""

    def frames(self, stack: int) -> tuple[Frame, ...]:
        found = frames.stack_of(_C.recorder_frames(stack))
        return tuple(frame for frame in found if not frame.file.startswith(package.PREFIX))


class Tree:
    """A module that is within no other, and all below it."""

    def __init__(self, name: str, root: Any) -> None:
        self.name, self.root = name, root
        self.modules: dict[int, tuple[str, Any]] = {}
        self.leaves: dict[int, Leaf] = {}
        for path, module in naming.submodules(root, name):
            self.modules[id(module)] = path, module
            for key, tensor in naming.group_of(module, "_parameters"):
                who = naming.identity_of(tensor)
                if who is not None:
                    self.leaves.setdefault(who.id, Leaf(naming.child_path(path, key), who))


class Trained:
    """One look."""

    def __init__(self, live: Sequence[Any]) -> None:
        self.live = live
        self.steppings = [
            Stepping(made, optimizer, *_leaves(optimizer))
            for made, optimizer in training.known.living()
        ]
        self.by_leaf = {leaf: each for each in reversed(self.steppings) for leaf in each.leaves}

    @functools.cached_property
    def trees(self) -> list[Tree]:
        return [Tree(name, root) for name, root in naming.named_roots(self.live)]

    @functools.cached_property
    def registered(self) -> dict[int, Leaf]:
        """The parameters of all modules in reach."""
        return {leaf: found for tree in self.trees for leaf, found in tree.leaves.items()}

    @functools.cached_property
    def _names(self) -> naming.Names:
        return naming.Names(self.live)

    def tree_of(self, module: Any) -> Tree | None:
        return next((tree for tree in self.trees if id(module) in tree.modules), None)

    def name_of(self, leaf: int, otherwise: str) -> str:
        found = self.registered.get(leaf)
        return found.name if found is not None else self._names.of(leaf) or otherwise

    def called(self, stepping: Stepping) -> str:
        """What a report calls an optimizer."""
        name = self._names.of_variable(id(stepping.optimizer))
        return f"`{name}`" if name else raw.type_name(type(stepping.optimizer)).rpartition(".")[2]

    def site_of(self, data: Stacks, stepping: Stepping, label: str) -> Site | None:
        """The line that made the optimizer."""
        found = sites.site(data.frames(stepping.made.stack), label=label)
        return dataclasses.replace(found, stack=()) if found is not None else None

    @functools.cached_property
    def orphans(self) -> dict[int, set[int]]:
        """Of each optimizer, by id(): leaves that no module has and that have no gradient.

        Takes a look at every object there is.
        """
        held: set[int] = set()
        for module in naming.every(torch.nn.Module):
            for _, tensor in naming.group_of(module, "_parameters"):
                who = naming.identity_of(tensor)
                if who is not None:
                    held.add(who.id)
        return {
            id(each.optimizer): {
                leaf
                for leaf, who in each.leaves.items()
                if leaf not in held and who.requires_grad and not who.grad
            }
            for each in self.steppings
        }


def _leaves(optimizer: Any) -> tuple[dict[int, naming.Identity], list[Any]]:
    tensors = list(training.params_of(optimizer))
    found = [naming.identity_of(tensor) for tensor in tensors]
    return {who.id: who for who in found if who is not None}, tensors
