"""What the loss is made of is computed once more, behind the write or in each round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gradext.rules.rewrite.strategies.case import Candidate, Case, Place, at, candidate
from gradext.rules.rewrite.strategies.graph import assigned
from gradext.rules.rewrite.strategies.order import in_one_block
from gradext.source.edits import Edit, Source


class ComputeAnew:
    """What was computed with the old values is computed below the write, from the new ones."""

    codes = frozenset({"GX101", "GX302"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        used = case.victims[:2] if case.code == "GX101" else case.culprits[:1]
        for place in used:
            for inner, outer in case.together(place):
                if not _is_in_constructor(place, inner):
                    yield self._of(case, inner, outer)
                break

    def _of(self, case: Case, save: Place, backward: Place) -> Candidate | None:
        import libcst as cst

        source = case.source(save)
        if source is None:
            return None
        lines = [source.small_statement_at(place.line) for place in (save, backward)]
        if not isinstance(lines[0], cst.Assign) or lines[1] is None:
            return None
        found = in_one_block(source, *lines)
        if found is None:
            return None
        body, begin, end = found
        if not begin < end:
            return None
        outer = {id(loop) for loop in source.loops_around(lines[0])}
        loops = [loop for loop in source.loops_around(lines[1]) if id(loop) not in outer]
        if loops:
            # The innermost one: each backward() is to have a graph of its own.
            loop = loops[0]
            first = loop.body.body[0] if isinstance(loop.body, cst.IndentedBlock) else None
            text = source.code(lines[0])
            if first is None or "\n" in text:
                return None
            edits = [source.insert_lines(first, text, after=False)]
            if not _reads(source, body[begin + 1 : end], set(assigned(source, lines[0]))):
                edits.append(Edit(*source.lines_span(body[begin]), ""))
            title = f"compute {at(save)} anew in each round"
            return candidate(title, source.path, edits)
        if case.code != "GX101":
            return None
        title = f"compute {at(save)} anew before the backward() at {at(backward)}"
        return self._moved(source, body, begin, end, title)

    def _moved(
        self, source: Source, body: Any, begin: int, end: int, title: str
    ) -> Candidate | None:
        """The lines from `begin` on that the loss is computed by, below all before line `end`."""
        tainted: set[str] = set()
        chain: list[int] = []
        for n in range(begin, end):
            names = _bound(source, body[n])
            if names and (n == begin or _reads(source, [body[n]], tainted)):
                tainted |= names
                chain.append(n)
        needed, kept = _names_in(source, body[end]), []
        for n in reversed(chain):
            if _bound(source, body[n]) & needed:
                needed |= _names_in(source, body[n])
                kept.append(n)
        if begin not in kept:
            return None
        kept.reverse()
        text, edits = "", []
        for n in kept:
            start, stop = source.lines_span(body[n])
            text += source.text[start:stop]
            others = [body[k] for k in range(n + 1, end) if k not in kept]
            if not _reads(source, others, _bound(source, body[n])):
                edits.append(Edit(start, stop, ""))
        target = source.lines_span(body[end])[0]
        edits.append(Edit(target, target, text))
        return Candidate(title, tuple((source.path, edit) for edit in edits))


def _is_in_constructor(place: Place, caller: Place) -> bool:
    """Whether a line below one of its callers is in an `__init__`.

    Computed anew there would be an object: a module has other parameters then, which the optimizer
    does not have.
    """
    below = place.way[: place.way.index(caller)]
    return any(each.function.rpartition(".")[2] == "__init__" for each in below)


def _bound(source: Source, statement: Any) -> set[str]:
    """The plain names that a simple line assigns; nothing where it does more than that."""
    import libcst as cst

    if not isinstance(statement, cst.SimpleStatementLine) or len(statement.body) > 1:
        return set()
    return set(assigned(source, statement.body[0]))


def _names_in(source: Source, node: Any) -> set[str]:
    import libcst as cst

    return {n.value for n in source.nodes(node) if isinstance(n, cst.Name)}


def _reads(source: Source, statements: Any, names: set[str]) -> bool:
    return any(_names_in(source, statement) & names for statement in statements)


STRATEGIES = (ComputeAnew(),)
