"""Whose tensors these are: parameters, optimizers and names of the program, for one diagnosis.

Looks at every object there is, once; keeps ids and names, and no tensor.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradext.recording import events
from gradext.recording.events import Flow
from gradext.rules.wording import owners

if TYPE_CHECKING:
    from gradext.recording.tables import Data
    from gradext.rules.wording.chains import Chain

_MOST_NAMES = 4


def names_lost(data: Data, chain: Chain, names: owners.Owners) -> Sequence[str]:
    """Names of the parameters behind the cuts; all that are trained where that is not known."""
    ids: dict[int, None] = {}
    nodes = set()
    for step in chain.all_cuts():
        origin = step.origin
        if isinstance(origin, Flow) and origin.has(events.SOURCE_IS_LEAF):
            ids.setdefault(origin.source)
        elif isinstance(origin, Flow) and origin.source_node is not None:
            nodes.add(origin.source_node)
    found = [name for i in ids if names.is_parameter(i) and (name := names.by_id(i))]
    if nodes or not found:
        return names.trainable
    return found


def folded(items: Sequence[str]) -> str:
    """Names of parameters; those of one module, where they are many, by their number."""
    if len(items) <= _MOST_NAMES:
        return listed(items)
    first, last = min(items), max(items)
    same = next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    owner = re.match(r"(.+)[.\[]", first[:same])
    return f"{len(items)} parameters of `{owner[1]}`" if owner else listed(items)


def listed(items: Sequence[str]) -> str:
    shown = [f"`{item}`" for item in items[:_MOST_NAMES]]
    more = len(items) - len(shown)
    if more:
        return f"{', '.join(shown)} and {more} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
