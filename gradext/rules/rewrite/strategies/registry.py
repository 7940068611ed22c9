"""What a strategy is, and those that there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Protocol

from gradext.rules.rewrite.strategies.case import Candidate, Case


class Strategy(Protocol):
    """One way to mend a kind of fault.

    Attributes:
        codes: the diagnoses that it is for.
    """

    codes: frozenset[str]

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        """Candidates; None for one whose edits could not be made."""
        ...


def all_of(modules: Sequence[ModuleType]) -> Iterator[Strategy]:
    """The strategies of modules, each of which lists its own in STRATEGIES."""
    for module in modules:
        yield from module.STRATEGIES
