"""What a backward() reaches: its nodes, its leaves, and what goes to the loss by sums alone."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from gradext.base import op_names
from gradext.objects import graph_rows
from gradext.rules import graph_copy


@dataclasses.dataclass(frozen=True)
class Reached:
    """What a backward reaches of its graph.

    Attributes:
        nodes: as (thread, sequence). leaves: ids.
        straight: the nodes from which only sums and constant factors lead on to the loss: a
            constant that is added there changes no gradient at all.
    """

    nodes: frozenset[tuple[int, int]]
    leaves: frozenset[int]
    straight: frozenset[tuple[int, int]]

    @classmethod
    def below(cls, outputs: Any) -> Reached:
        rows, _ = graph_copy.rows_below(outputs)
        return cls(
            frozenset(graph_rows.keys(rows)),
            frozenset(facts.id for _, facts in graph_rows.known_leaves(rows)),
            _straight(rows),
        )


_SUMS = re.compile(
    r"(Add|Sub|Rsub|Neg|Sum|Mean|Stack|Cat|Clone|ToCopy|Expand|Squeeze|Unsqueeze|View|Alias|Select|"
    r"Slice|Reshape|UnsafeView|ReshapeAlias|Unbind|Split|Permute|T|Transpose)Backward\d*"
)
_PRODUCTS = re.compile(r"(Mul|Div)Backward\d*")


def _straight(rows: Sequence[Any]) -> frozenset[tuple[int, int]]:
    below = {following for row in rows for following in row[graph_rows.FOLLOWING]}
    pending = [(k, True) for k in range(len(rows)) if k not in below]
    seen = set(pending)
    while pending:
        at, is_straight = pending.pop()
        name = op_names.short(rows[at][graph_rows.NAME])
        following = [k for k in rows[at][graph_rows.FOLLOWING] if k >= 0]
        is_sum = _SUMS.fullmatch(name) or (_PRODUCTS.fullmatch(name) and len(following) == 1)
        for k in following:
            step = (k, is_straight and bool(is_sum))
            if step not in seen:
                seen.add(step)
                pending.append(step)
    straight = [rows[k] for k, is_straight in seen if is_straight and (k, False) not in seen]
    return frozenset(graph_rows.keys(straight))
