"""Diagnoses that hold only if the program goes on as it began, told when that is known.

That a parameter gets no gradient from one backward says little: the next one may be its own, as
with an actor and a critic. So such a diagnosis waits, until the same has happened often or the
recording ends; it is dropped when some backward has reached what it says is not trained. Keeps
names and ids of leaves, and no tensor.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

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
        """None where every leaf has been reached."""
        left = set(_C.leaves_unreached(list(self.leaves)))
        names = [name for leaf, name in self.leaves.items() if leaf in left]
        return self.say(names) if names else None


class Waiting:
    """Those of one recording, by the finding that they are."""

    def __init__(self) -> None:
        self._found: dict[Any, list[_Look]] = {}  # the looks that were taken at it, latest last

    def add(self, key: Any, found: Sequence[Awaited]) -> None:
        if key in self._found or len(self._found) < _MOST:
            self._found.setdefault(key, []).append(_Look(tuple(found), 1))

    def put(self, key: Any, found: Awaited) -> None:
        """What is to be told at the end, once, in place of what was to be told under this key."""
        if key in self._found or len(self._found) < _MOST:
            self._found[key] = [_Look((found,), 1)]

    def drop(self, key: Any) -> None:
        """It does not hold any more."""
        self._found.pop(key, None)

    def again(self, key: Any) -> list[Diagnosis]:
        """The finding has been made once more: what is told of it now, each time it happened."""
        known = self._found.get(key)
        if not known:
            return []
        known[-1].count += 1
        return self._told(key) if sum(look.count for look in known) >= OFTEN else []

    def settle(self) -> list[Diagnosis]:
        """Nothing more is to come."""
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
    """Who has a leaf.

    Attributes:
        leaf: its name.
        place: of the leaf among all that optimizers have.
        optimizer: its name.
        has: all that the optimizer has, none of which is kept alive.
    """

    leaf: str
    place: int
    optimizer: str
    has: Sequence[weakref.ref[Any]]


@dataclasses.dataclass
class HeldLeaves:
    """What one recording has seen of leaves that were used as constants (GX304).

    Attributes:
        holders: of each leaf, by its id; None for one that no optimizer had at its first look. To
            find that takes a look at every object there is.
        storages: of each leaf, by its id: the memory it had; None once something has written it,
            for a program that gives it values itself does not train it.
        order: of the last look.
    """

    holders: dict[int, Holder | None] = dataclasses.field(default_factory=dict)
    storages: dict[int, int | None] = dataclasses.field(default_factory=dict)
    order: int = 0


@dataclasses.dataclass
class _Look:
    """What was found when a finding was looked at, and how often that has been so."""

    found: tuple[Awaited, ...]
    count: int
