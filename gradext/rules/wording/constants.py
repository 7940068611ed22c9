"""What a graph takes for constants, and which of them were computed from a given tensor.

Reads a copy of the graph and a recording's births and flows. Owns no message; touches no tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from gradext.recording.events import Birth, Flow
from gradext.rules.wording import chains

if TYPE_CHECKING:
    from gradext.recording.tables import Data
    from gradext.rules.graph_copy import Graph
    from gradext.rules.wording.chains import Chain

_MOST_SAVED = 4_096  # saved tensors that are looked at, those of the newest nodes


def behind(data: Data, graph: Graph, leaves: Iterable[int]) -> Chain:
    """Everything that the constants of a graph were made of, nearest first.

    Args:
        leaves: ids of the graph's leaves. One that was rebuilt from another tensor
            (`p.detach().clone().requires_grad_()`) has a past of its own.
    """
    found: dict[int, Birth | Flow] = {}

    def add(origin: Birth | Flow | None) -> None:
        if origin is not None:
            found.setdefault(origin.number, origin)

    every = (saved.tensor for node in graph.newest_first() for saved in node.saved)
    saved = itertools.islice(every, _MOST_SAVED)
    for tensor in dict.fromkeys([*saved, *leaves]):
        add(data.flow_of(tensor))
    numbered = zip(graph.threads(), graph.sequences(), strict=True)
    made = {(thread, sequence) for thread, sequence in numbered if sequence is not None}
    for number in data.merged_in(made):
        add(data.origin(number))
    return chains.back_from(data, found.values())
