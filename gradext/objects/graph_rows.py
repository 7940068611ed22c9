"""The columns of `_C.graph`: a row for each node of the autograd graph below some tensors.

A row has the node itself, so it is for a rule that asks a few questions about a graph.
gradext.rules.graph_copy copies what the nodes hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from gradext.state.inspect import TensorState

Row = Sequence[Any]
# The node; its name, "MulBackward0"; the thread that made it, and autograd's sequence number there
# (None: it has none); for each edge the row that it leads to (negative: to none); the row of the
# CopySlices that the node is a part of (negative: of none).
NODE, NAME, THREAD, SEQUENCE, FOLLOWING, INNER_OF = range(6)


def key(row: Row) -> tuple[int, int] | None:
    """(thread, sequence), by which a recording's events name the node; None where it has none."""
    return None if row[SEQUENCE] is None else (row[THREAD], row[SEQUENCE])


def keys(rows: Sequence[Row]) -> set[tuple[int, int]]:
    """The keys of the nodes that have one."""
    return {(row[THREAD], row[SEQUENCE]) for row in rows if row[SEQUENCE] is not None}


def is_leaf(row: Row) -> bool:
    """Whether the node stands for a leaf: it adds to the leaf's `.grad`."""
    name: str = row[NAME]
    return name.endswith("AccumulateGrad")


def leaves(rows: Sequence[Row]) -> list[torch.Tensor]:
    """The leaves of the graph."""
    return [row[NODE].variable for row in rows if is_leaf(row)]


def known_leaves(rows: Sequence[Row]) -> Iterator[tuple[torch.Tensor, TensorState]]:
    """The leaves that can be read, with what gradext.inspect() says of each."""
    from gradext.objects import naming  # lazy: most rules find nothing, and need no names

    for leaf in leaves(rows):
        facts = naming.facts_of(leaf)
        if facts is not None:
            yield leaf, facts
