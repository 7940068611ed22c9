"""What cuts the graph is taken out of the statement: .detach(), .item(), torch.tensor(...)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gradext.fix.case import Candidate, Case, at, candidate
from gradext.fix.edits import Edit, Source

_METHODS = {"detach", "item", "numpy", "tolist", "cpu", "requires_grad_"}
_REBUILDS = {"tensor", "as_tensor", "from_numpy", "Tensor", "FloatTensor", "Variable"}


class WithoutTheCut:
    """`loss = torch.tensor(x.item())` becomes `loss = x`."""

    codes = frozenset({"GX301", "GX303", "GX304", "GX401"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        lines = [*case.culprits, *case.victims]
        per_line = []
        for place in lines:
            source = case.source(place)
            statement = source.small_statement_at(place.line) if source is not None else None
            if source is None or statement is None:
                continue
            edits = _without_cuts(source, statement)
            if edits:
                per_line.append((place, source, edits))
                title = f"take what cuts the graph out at {at(place)}"
                yield candidate(title, source.path, edits)
        if len(per_line) > 1:
            title = "take what cuts the graph out at " + " and ".join(at(p) for p, _, _ in per_line)
            made = {(s.path, e) for _, s, edits in per_line for e in edits if e is not None}
            yield Candidate(title, tuple(sorted(made, key=lambda pair: (pair[0], pair[1].start))))


def _without_cuts(source: Source, statement: Any) -> list[Edit | None]:
    """Edits that leave the values and drop the calls that lose their history."""
    import libcst as cst

    edits: list[Edit | None] = []
    for node in source.nodes(statement):
        if isinstance(node, cst.Attribute) and node.attr.value == "data":
            edits.append(Edit(source.span(node.value)[1], source.span(node)[1], ""))
        if not isinstance(node, cst.Call):
            continue
        if isinstance(node.func, cst.Attribute) and node.func.attr.value in _METHODS:
            inner = source.outer_span(node.func.value)[1]
            edits.append(Edit(inner, source.span(node)[1], ""))
        name = source.code(node.func).rsplit(".", 1)[-1]
        is_rebuilt = name in _REBUILDS or (name == "float" and len(node.args) == 1)
        if is_rebuilt and node.args and not node.args[0].star:
            given = node.args[0].value
            start, end = source.span(node)
            if isinstance(given, (cst.List, cst.ListComp)):
                edits.append(Edit(start, source.span(given)[0], "torch.stack("))
                edits.append(Edit(source.span(given)[1], end, ")"))
            else:
                edits.append(Edit(start, source.outer_span(given)[0], "("))
                edits.append(Edit(source.outer_span(given)[1], end, ")"))
    return edits


class CreateGraph:
    """`torch.autograd.grad(..., create_graph=True)`: a gradient that can be differentiated."""

    codes = frozenset({"GX301", "GX304"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        for place in case.culprits:
            source = case.source(place)
            statement = source.small_statement_at(place.line) if source is not None else None
            for node in source.nodes(statement) if source and statement is not None else ():
                if not isinstance(node, cst.Call) or source is None:
                    continue
                if source.code(node.func).rsplit(".", 1)[-1] not in {"grad", "backward"}:
                    continue
                if any(a.keyword and a.keyword.value == "create_graph" for a in node.args):
                    continue
                yield candidate(
                    f"keep the graph of the gradient at {at(place)}",
                    source.path,
                    [with_keyword(source, node, "create_graph=True")],
                )


def with_keyword(source: Source, call: Any, text: str) -> Edit:
    """One more keyword argument at the end of a call."""
    if not call.args:
        end = source.span(call)[1] - 1
        return Edit(end, end, text)
    end = source.span(call.args[-1])[1]
    # Behind a trailing comma another one would be an error.
    return Edit(end, end, f", {text}")


STRATEGIES = (CreateGraph(), WithoutTheCut())
