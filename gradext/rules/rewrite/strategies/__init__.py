"""How each kind of fault may be mended: one small class for each way.

A strategy proposes; whether its patch is right, `gradext.fix.proof` finds out by running it. So a
strategy may try what is only likely, and says nothing of what a patch means.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradext.rules.rewrite.strategies import (
    anew,
    copies,
    cuts,
    given_on,
    gradients,
    graph,
    imports,
    in_place,
    kept,
    leaves,
    modes,
    order,
    registry,
    trained,
)
from gradext.rules.rewrite.strategies.case import Candidate, Case

_MODULES = (
    in_place,
    gradients,
    leaves,
    modes,
    cuts,
    order,
    copies,
    given_on,
    kept,
    trained,
    anew,
    graph,
)
STRATEGIES = tuple(registry.all_of(_MODULES))  # in the order of trial


def propose(case: Case) -> Iterator[Candidate]:
    """The candidates for one diagnosis, the likeliest first, each patch once."""
    seen = set()
    for strategy in STRATEGIES:
        if case.code not in strategy.codes:
            continue
        for found in strategy.propose(case):
            if found is not None and found.edits and found.edits not in seen:
                seen.add(found.edits)
                yield imports.with_torch(case.sources, found)
