"""What a loop gives on to its next round by another name is given on without its history."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gradext.rules.rewrite.strategies.case import Candidate, Case, Place, at, candidate
from gradext.rules.rewrite.strategies.graph import assigned
from gradext.source.edits import Source, written


class DetachGivenOn:
    """`prev = loss` at the end of a round becomes `prev = loss.detach()`.

    The next round computes with its value as before, and its backward() ends there.
    """

    codes = frozenset({"GX101", "GX302"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        places = (*case.victims, *case.culprits)
        ways = [place for site in places for place in site.way]
        for _, source, statement in case.statements((*ways, *case.failed_at)):
            for loop in source.loops_around(statement):
                yield from self._of(source, loop, statement)

    def _of(self, source: Source, loop: Any, statement: Any) -> Iterator[Candidate | None]:
        import libcst as cst

        nodes = list(source.nodes(loop.body))
        bound = {name for node in nodes for name in assigned(source, node)}
        for node in nodes:
            if not isinstance(node, cst.Assign) or len(node.targets) != 1:
                continue
            kept, value = written(source, node.targets[0].target), written(source, node.value)
            if kept is None or value is None or value not in bound or kept == value:
                continue
            line = source.lines_of(node)[0]
            if not _is_read_above(source, nodes, kept, line):
                continue
            place = Place(source.path, line, None, "", "", "", "")
            edit = source.replace(node.value, f"{value}.detach()")
            yield candidate(
                f"give `{kept}` on without its history at {at(place)}", source.path, [edit]
            )


def _is_read_above(source: Source, nodes: list[Any], name: str, line: int) -> bool:
    """Whether a loop reads a name above the line that binds it: what the last round has left."""
    import libcst as cst

    targets = {
        id(target.target)
        for node in nodes
        if isinstance(node, cst.Assign)
        for target in node.targets
    }
    return any(
        isinstance(node, (cst.Name, cst.Attribute))
        and id(node) not in targets
        and written(source, node) == name
        and source.lines_of(node)[0] < line
        for node in nodes
    )


STRATEGIES = (DetachGivenOn(),)
