"""A write is moved below the backward that still needs what it changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gradext.fix.case import Candidate, Case, Place, at
from gradext.fix.edits import Edit, Source


class BelowTheBackward:
    """The statement that writes changes its place with those up to the failing backward()."""

    codes = frozenset({"GX101", "GX401", "GX402"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        for culprit in case.culprits[:2]:
            both = (
                (inner, outer)
                for inner in culprit.way
                for outer in case.failed_at
                if (inner.file, inner.function) == (outer.file, outer.function)
            )
            for inner, outer in both:
                found = self._moved(case, inner, outer)
                if found is not None:
                    yield found
                    break  # further out the two are on one line

    def _moved(self, case: Case, write: Place, backward: Place) -> Candidate | None:
        import libcst as cst

        source = case.source(write)
        if source is None:
            return None
        first = _statement(source, write.line)
        last = _statement(source, backward.line)
        if first is None or last is None or isinstance(first, (cst.Assign, cst.AnnAssign)):
            return None  # what is assigned is needed before
        found = _in_one_block(source, first, last)
        if found is None:
            return None
        body, begin, end = found
        if not begin < end:
            return None
        start, stop = source.lines_span(body[begin])
        target = source.lines_span(body[end])[1]
        text = source.text[start:stop]
        if not text.endswith(("\n", "\r")):
            return None
        edits = (Edit(start, stop, ""), Edit(target, target, text))
        if source.text[:target] and not source.text[:target].endswith(("\n", "\r")):
            edits = (edits[0], Edit(target, target, source.newline + text))
        title = f"move {at(write)} below the backward() at {at(backward)}"
        return Candidate(title, tuple((source.path, edit) for edit in edits))


def _statement(source: Source, line: int) -> Any:
    return source.small_statement_at(line) or source.compound_at(line)


def _in_one_block(source: Source, first: Any, last: Any) -> tuple[Any, int, int] | None:
    """(statements of the innermost block that holds both, index of each's statement in it)."""
    ways: list[list[tuple[Any, Any, int]]] = []
    for node in (first, last):
        way, at_node = [], node
        while (block := source.block_of(at_node)) is not None:
            way.append(block)
            at_node = block[0]
        ways.append(way)
    for block, body, begin in ways[0]:
        for other, _, end in ways[1]:
            if other is block:
                return body, begin, end
    return None


STRATEGIES = (BelowTheBackward(),)
