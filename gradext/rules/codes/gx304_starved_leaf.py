"""GX304 of a Function whose backward() returns None for what is to be trained.

Looked at when a backward has ended: its graph came to a leaf, and the leaf has no gradient. Where
every way there goes through autograd.Functions of Python's, one of them gave none. Keeps no tensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gradext.diagnosis.model import Diagnosis, Site
from gradext.native import _C
from gradext.objects import graph_rows
from gradext.recording.awaited import Awaited
from gradext.rules.wording import context_attributes
from gradext.rules.wording.lost_gradients import listed
from gradext.rules.wording.lost_leaves import LostLeaves
from gradext.rules.wording.owners import Owners
from gradext.source import frames, live_frames, sites

if TYPE_CHECKING:
    from gradext.recording.tables import Data


def silent(outputs: Any, data: Data) -> list[Awaited]:
    """What the backward of `outputs`, which has just ended, left without a gradient."""
    from gradext.objects import naming
    from gradext.rules import graph_copy

    starved = set(_C.leaves_starved())
    rows, whole = graph_copy.rows_below(outputs)
    if not whole or not starved:
        return []
    above: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        for following in row[graph_rows.FOLLOWING]:
            above.setdefault(following, []).append(index)
    live = live_frames.frames_above()
    owners: Owners | None = None
    by_line: dict[tuple[tuple[str, int], ...], tuple[_Starved, dict[int, str]]] = {}
    for index, row in enumerate(rows):
        is_leaf = graph_rows.is_leaf(row)
        facts = naming.facts_of(row[graph_rows.NODE].variable) if is_leaf else None
        if facts is None or facts.id not in starved:
            continue
        owners = owners or Owners(live)
        name = LostLeaves((), owners).to_be_trained(facts.id)
        applied = _functions_above(rows, above, index) if name is not None else []
        if name is None or not applied:
            continue
        said = _Starved.of(data, [rows[k] for k in applied], live)
        if said is not None:
            key = tuple(sites.line_of(site) for site in said.culprits)
            by_line.setdefault(key, (said, {}))[1][facts.id] = name
    order = {leaf: k for k, leaf in enumerate(owners.trainable_ids)} if owners is not None else {}
    return [
        Awaited(dict(sorted(missed.items(), key=lambda one: order.get(one[0], -1))), said)
        for said, missed in by_line.values()
    ]


def _functions_above(rows: Sequence[Any], above: dict[int, list[int]], leaf: int) -> list[int]:
    """The nearest Functions of Python's over a leaf; none where a way leads past them."""
    pending, seen, found = [leaf], {leaf}, []
    while pending:
        at = pending.pop()
        over = above.get(at, [])
        if not over:
            return []  # the root: this way has no such Function
        for k in over:
            if k not in seen:
                seen.add(k)
                if getattr(type(rows[k][graph_rows.NODE]), "_forward_cls", None) is not None:
                    found.append(k)
                else:
                    pending.append(k)
    return sorted(found)


@dataclasses.dataclass(frozen=True)
class _Starved:
    """Says that a Function gives no gradient."""

    function: str
    culprits: tuple[Site, ...]
    backward: Site | None

    @classmethod
    def of(cls, data: Data, rows: Sequence[Any], live: Sequence[Any]) -> _Starved | None:
        node = rows[0][graph_rows.NODE]
        name = type(node)._forward_cls.__name__  # noqa: SLF001
        applied = []
        for row in rows:
            stack, _ = data.node_stack(row[graph_rows.THREAD], row[graph_rows.SEQUENCE])
            applied.append(
                sites.site(data.frames(stack), label=f"applies {name}") if stack else None
            )
        gives = context_attributes.returning_none(node)
        culprits = sites.distinct([gives, *applied])
        if not culprits:
            return None
        called = frames.stack_of([(frame.f_code, frame.f_lasti) for frame in live])
        return cls(name, culprits, sites.site(called, label="backward() brings them no gradient"))

    def __call__(self, lost: Sequence[str]) -> Diagnosis:
        several = "" if len(lost) > 1 else "s"
        they_come = "it comes" if several else "they come"
        at = sites.where(self.culprits[0].frame)
        return Diagnosis(
            code="GX304",
            message=(
                f"{listed(lost)} get{several} no gradient: the backward() of `{self.function}`, "
                f"{at}, returns None for the input that {they_come} in by."
            ),
            culprits=self.culprits,
            victims=sites.distinct([self.backward]),
            fix=(
                f"return the input's gradient in its place at {at}: backward() of "
                f"`{self.function}` gives one value for each argument of forward(), in their order"
            ),
            notes=("if it is meant, end the line with `# gradext: ignore[GX304]`",),
        )
