"""Whether something was met before, and how often: the one record of what was told already.

Each user has its own: what a recording has explained (recording.findings), what its journal alone
has shown (recording.incidents), what a run reports (run.session), what a guard and the steps of a
training loop have told. What is asked before each backward, whether a lost value was told of, is in
C++ (csrc/recorder/lost_gradients/lost_values.cpp): no Python is to run there. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

MOST = 1024

Kept = TypeVar("Kept")


class MetBefore(Generic[Kept]):
    """What was met, by a key: how often, and what is kept of it.

    Args:
        most: keys that are remembered. A new one takes the place of the oldest.
        can_go: whether what is kept may give its place away; any may where None. Where none may, a
            new one is not taken.

    Attributes:
        more: how many keys found no place of their own.
    """

    def __init__(self, most: int = MOST, can_go: Callable[[Kept], bool] | None = None) -> None:
        self._most, self._can_go = most, can_go
        self._met: dict[Hashable, _Met[Kept]] = {}
        self.more = 0

    def meet(self, key: Hashable, kept: Kept, times: int = 1) -> bool:
        """Count it; whether it was taken as new. Then `kept` is kept; else what was stays."""
        known = self._met.get(key)
        if known is not None:
            known.count += times
            return False
        if len(self._met) >= self._most:
            self.more += 1
            if not self._make_room():
                return False
        self._met[key] = _Met(kept, times)
        return True

    def get(self, key: Hashable) -> Kept | None:
        """What is kept under a key; None for one that was not met."""
        known = self._met.get(key)
        return None if known is None else known.kept

    def count(self, key: Hashable) -> int:
        """How often it was met: 0 where it was not, or where it had to go."""
        known = self._met.get(key)
        return 0 if known is None else known.count

    def forget(self, key: Hashable) -> Kept | None:
        """As if it had not been met. Returns what was kept of it."""
        known = self._met.pop(key, None)
        return None if known is None else known.kept

    def clear(self) -> None:
        self._met.clear()
        self.more = 0

    def values(self) -> list[Kept]:
        """What is kept, the oldest first. Another thread may meet more meanwhile."""
        return [known.kept for known in list(self._met.values())]

    def counts(self) -> list[tuple[Any, int]]:
        """(key, how often), the oldest first."""
        return [(key, known.count) for key, known in list(self._met.items())]

    def __contains__(self, key: Hashable) -> bool:
        return key in self._met

    def __len__(self) -> int:
        return len(self._met)

    def _make_room(self) -> bool:
        can_go = self._can_go
        # A list of them all, which no other thread can come between.
        for key, known in list(self._met.items()):
            if can_go is None or can_go(known.kept):
                self._met.pop(key, None)
                return True
        return False


class _Met(Generic[Kept]):
    __slots__ = ("count", "kept")

    def __init__(self, kept: Kept, count: int) -> None:
        self.kept, self.count = kept, count
