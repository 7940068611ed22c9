"""A leaf is updated where autograd does not look: under no_grad."""

from __future__ import annotations

from collections.abc import Iterator

from gradext.rules.rewrite.strategies.case import Candidate, Case, at, candidate
from gradext.source.edits import Edit


class UnderNoGrad:
    """`with torch.no_grad(): w -= lr * g`."""

    codes = frozenset({"GX102", "GX103"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        for place, source, statement in case.statements(case.culprits[:2]):
            line = source.parent(statement)
            if not isinstance(line, cst.SimpleStatementLine):
                continue
            start, _ = source.span(line.body[0])
            edit = Edit(start, start, "with torch.no_grad(): ")
            yield candidate(f"write under torch.no_grad() at {at(place)}", source.path, [edit])


STRATEGIES = (UnderNoGrad(),)
