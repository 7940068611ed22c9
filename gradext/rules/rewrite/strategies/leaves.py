"""A leaf is updated where autograd does not look: under no_grad."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gradext.rules.rewrite.strategies.case import Candidate, Case, at, candidate
from gradext.rules.rewrite.strategies.in_place import owner_of_write
from gradext.source.edits import Edit, Source


class UnderNoGrad:
    """`with torch.no_grad(): w -= lr * g`."""

    codes = frozenset({"GX102", "GX103"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        for place, source, statement in case.statements(case.culprits[:2]):
            line = source.parent(statement)
            if not isinstance(line, cst.SimpleStatementLine):
                continue
            several = self._lines_alike(source, statement)
            if several is not None:
                yield candidate(
                    f"write under torch.no_grad() from {at(place)} on", source.path, [several]
                )
            start, _ = source.span(line.body[0])
            edit = Edit(start, start, "with torch.no_grad(): ")
            yield candidate(f"write under torch.no_grad() at {at(place)}", source.path, [edit])

    def _lines_alike(self, source: Source, statement: Any) -> Edit | None:
        """One block around a write and those below it that write the same; None for one alone."""
        import libcst as cst

        owner, block = owner_of_write(source, statement), source.block_of(statement)
        if owner is None or block is None:
            return None
        lines = []
        for line in block[1][block[2] :]:
            is_simple = isinstance(line, cst.SimpleStatementLine) and len(line.body) == 1
            if not is_simple or owner_of_write(source, line.body[0]) != owner:
                break
            lines.append(line)
        first = source.lines_of(lines[0])[0] if lines else 0
        if len(lines) < 2 or source.lines_of(lines[-1])[1] != first + len(lines) - 1:
            return None  # or one of them takes several lines, perhaps of a text
        start, end = source.lines_span(lines[0])[0], source.lines_span(lines[-1])[1]
        indent = source.text[start : source.span(lines[0])[0]]
        texts = source.text[start:end].splitlines(keepends=True)
        inner = "".join(f"    {text}" for text in texts)
        return Edit(start, end, f"{indent}with torch.no_grad():{source.newline}{inner}")


STRATEGIES = (UnderNoGrad(),)
