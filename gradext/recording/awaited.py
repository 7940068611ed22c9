"""Diagnoses that are held back until it is known whether they are true.

That a parameter gets no gradient from one backward says little: the next one may be its own, as
with an actor and a critic. So such a diagnosis waits, until the same has happened often or the
recording ends; it is dropped when some backward has reached what it says is not trained. Keeps
names and ids of leaves, and no tensor.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from gradext.diagnosis.model import Diagnosis
from gradext.native import _C

OFTEN = 64  # times that the same is found before it is told while the program runs
_MOST = 256


@dataclasses.dataclass(frozen=True)
class Awaited:
    """One diagnosis, and what it waits for.

    Attributes:
        leaves: ids of the leaves that it says get no gradient: their names.
        say: makes the diagnosis, given the names of those that have got none.
    """

    leaves: Mapping[int, str]
    say: Callable[[Sequence[str]], Diagnosis]

    def diagnosis(self) -> Diagnosis | None:
        """The diagnosis for the leaves that no backward has reached; None if all were reached."""
        left = set(_C.leaves_unreached(list(self.leaves)))
        names = [name for leaf, name in self.leaves.items() if leaf in left]
        return self.say(names) if names else None


class Awaiting(Protocol):
    """What waits for the end."""

    def diagnosis(self) -> Diagnosis | None:
        """What is told; None where it does not hold."""


class Waiting:
    """The diagnoses of one recording that are held back, by the finding that each belongs to."""

    def __init__(self) -> None:
        self._found: dict[Any, list[_Look]] = {}  # by finding; the latest is the last

    def add(self, key: Any, found: Sequence[Awaited]) -> None:
        if key in self._found or len(self._found) < _MOST:
            self._found.setdefault(key, []).append(_Look(tuple(found), 1))

    def put(self, key: Any, found: Awaiting) -> None:
        """Hold back one diagnosis, in place of all that is held back under this key."""
        if key in self._found or len(self._found) < _MOST:
            self._found[key] = [_Look((found,), 1)]

    def drop(self, key: Any) -> None:
        """Forget what is held back under this key: it is not true any more."""
        self._found.pop(key, None)

    def again(self, key: Any) -> list[Diagnosis]:
        """Count the finding once more; from OFTEN on, its diagnoses, once for each occurrence."""
        known = self._found.get(key)
        if not known:
            return []
        known[-1].count += 1
        return self._told(key) if sum(look.count for look in known) >= OFTEN else []

    def settle(self) -> list[Diagnosis]:
        """The diagnoses that have turned out true, at the end of the recording."""
        return [diagnosis for key in list(self._found) for diagnosis in self._told(key)]

    def _told(self, key: Any) -> list[Diagnosis]:
        told: list[Diagnosis] = []
        for look in self._found[key]:
            said = [found for one in look.found if (found := one.diagnosis()) is not None]
            told += said * look.count
            look.count = 0
        if not told:
            del self._found[key]
        return told


class Holder(NamedTuple):
    """The optimizer that has a leaf.

    Attributes:
        leaf: the leaf's name.
        place: the leaf's position among all that optimizers have.
        optimizer: the optimizer's name.
        has: weak references to all tensors that the optimizer has.
    """

    leaf: str
    place: int
    optimizer: str
    has: Sequence[weakref.ref[Any]]


@dataclasses.dataclass
class HeldLeaves:
    """What one recording has seen of leaves that were used as constants (GX304).

    Attributes:
        holders: by a leaf's id, the optimizer that has it; None where none had it when the leaf was
            first seen. Kept, because finding it means to look at every object of the process.
        storages: by a leaf's id, the storage it had; None once the program has written the leaf:
            what is given its values by hand is not meant to be trained.
        order: the events up to this one have been looked at.
    """

    holders: dict[int, Holder | None] = dataclasses.field(default_factory=dict)
    storages: dict[int, int | None] = dataclasses.field(default_factory=dict)
    order: int = 0


@dataclasses.dataclass
class Unstepped:
    """What the looks have seen of leaves that get gradients and are in no optimizer (GX306).

    Attributes:
        leaves: their memory, and the gradient that they had, by id.
        order: of the journal at the first look. number: of what was last noted of optimizers then.
        calls: of the optimizer's step() in vain, up to the first look. looks: how many have found
            them.
    """

    leaves: dict[int, tuple[int, int]]
    order: int
    number: int
    calls: int = 0
    looks: int = 1


@dataclasses.dataclass
class _Look:
    """The diagnoses that one examination of a finding gave, and how often it has occurred since."""

    found: tuple[Awaiting, ...]
    count: int
