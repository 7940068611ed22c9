"""Which leaves (parameters, inputs that require grad) a cut takes the gradient from, and matter.

A constant is what a program means nearly always: a target, a weight, a teacher's answer. It is none
where something that is to be trained lies behind the cut and gets a gradient in no other way.
Asks the recorder by the numbers of flows; keeps ids and names, and no tensor.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from gradext.native import _C
from gradext.recording.events import Birth, Flow
from gradext.rules.wording.owners import Owners


class LostLeaves:
    """For one backward: `reached` are the leaves of its graph."""

    def __init__(self, reached: Iterable[int], names: Owners) -> None:
        self._reached = frozenset(reached)
        self._names = names

    @functools.cached_property
    def _roots(self) -> set[int]:
        """The modules that this backward reaches."""
        roots = (self._names.root_of.get(leaf) for leaf in self._reached)
        return {root for root in roots if root is not None}

    def behind(self, cut: Birth | Flow) -> dict[int, str]:
        """The names of the leaves behind a cut that are to be trained, by their ids."""
        return {leaf: self._name(leaf) for leaf in self._behind(cut) if self._matters(leaf)}

    def lost(self, cut: Birth | Flow, *, by_hand: bool) -> dict[int, str]:
        """The names of those that no backward has reached so far, this one included, by id.

        Args:
            by_hand: count leaves that neither a module nor an optimizer has.
        """
        leaves = [leaf for leaf in _C.leaves_unreached(self._behind(cut)) if self._matters(leaf)]
        if not by_hand:
            leaves = [leaf for leaf in leaves if self._is_held(leaf)]
        return {leaf: self._name(leaf) for leaf in leaves}

    def is_known(self, leaf: int) -> bool:
        """Whether it has a name: one that only an optimizer has was given up."""
        return self._names.by_id(leaf) is not None

    def is_stepped(self, leaf: int) -> bool:
        """Whether an optimizer has it."""
        return leaf in self._names.optimized

    def _behind(self, cut: Birth | Flow) -> list[int]:
        found = _C.leaves_behind(cut.number) if isinstance(cut, Flow) else []
        return [leaf for leaf, _, lives in found if lives]

    def _is_held(self, leaf: int) -> bool:
        return leaf in self._names.optimized or leaf in self._names.root_of

    def to_be_trained(self, leaf: int) -> str | None:
        """The name of a leaf that an optimizer or a module has and that matters here."""
        return self._name(leaf) if self._is_held(leaf) and self._matters(leaf) else None

    def _name(self, leaf: int) -> str:
        return self._names.by_id(leaf) or "a tensor"

    def _matters(self, leaf: int) -> bool:
        names = self._names
        if leaf in names.optimized or leaf in self._reached:
            return True
        root = names.root_of.get(leaf)
        if names.optimized:
            # A parameter that no optimizer has is a teacher's; what is no parameter was made to
            # require grad by hand.
            return root is None and not names.is_parameter(leaf)
        return root is None or root in self._roots
