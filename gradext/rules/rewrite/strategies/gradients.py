"""The `.grad` of a tensor: kept where it is no leaf, and not written while others still use it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from gradext.rules.rewrite import leaf_flag
from gradext.rules.rewrite.strategies.case import Candidate, Case, at, candidate
from gradext.rules.rewrite.strategies.in_place import OutOfPlace
from gradext.source.edits import Edit, Source, written


class ReturnIt:
    """A hook returns the new gradient: a name that it binds anew reaches nobody.

    Source: torch.Tensor.register_hook, "should not modify its argument, but it can optionally
    return a new gradient".
    """

    codes = frozenset({"GX403"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        for place in case.culprits[:2]:
            source = case.source(place)
            statement = source.small_statement_at(place.line) if source is not None else None
            if source is None or not isinstance(statement, (cst.AugAssign, cst.Expr)):
                continue
            function = source.function_of(statement)
            returns = isinstance(function, cst.FunctionDef) and _returns(source, function)
            edits = OutOfPlace().edits(source, statement, is_handed_on=not returns)
            if not edits or not isinstance(function, cst.FunctionDef):
                continue
            if not returns:
                name = _bound(source, statement)
                block = source.block_of(statement)
                if name is None or block is None:
                    continue
                last = function.body.body[-1]
                start, end = source.lines_span(last)
                indent = source.text[start : source.span(last)[0]]
                edits = [*edits, Edit(end, end, f"{indent}return {name}{source.newline}")]
            title = f"hand on a new gradient in place of the write at {at(place)}"
            yield candidate(title, source.path, edits)


def _returns(source: Source, function: Any) -> bool:
    import libcst as cst

    return any(isinstance(n, cst.Return) and n.value is not None for n in source.nodes(function))


def _bound(source: Source, statement: Any) -> str | None:
    """The name that the statement binds once it writes nothing."""
    import libcst as cst

    if isinstance(statement, cst.AugAssign):
        return written(source, statement.target)
    at_node: Any = statement.value
    while isinstance(at_node, cst.Call) and isinstance(at_node.func, cst.Attribute):
        at_node = at_node.func.value
    return written(source, at_node)


class LeafOfResult:
    """`w = (torch.zeros(3) + 1).requires_grad_()`: what comes last is the leaf."""

    codes = frozenset({"GX305"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        for place, source, statement in case.statements(case.culprits[:1]):
            node: ast.stmt | None
            try:
                node = ast.parse(source.code(statement)).body[0]
            except SyntaxError:
                node = None
            told = leaf_flag.leaf_of_result(node)
            if told is not None:
                title = f"make a leaf of the result at {at(place)}"
                yield candidate(title, source.path, [source.replace(statement, told[1])])


class KeepGradient:
    """`x.retain_grad()`: backward() fills the .grad of what is no leaf, too."""

    codes = frozenset({"GX305"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        named = re.match(r"The \.grad of `([^`]+)` is None", case.message)
        if named is None:
            return
        call = f"{named[1]}.retain_grad()"
        for place, source, statement in case.statements(case.culprits[:1]):
            if named[1] in _targets(source, statement):
                edit = source.insert_lines(statement, call, after=True)
                yield candidate(f"call `{call}` below {at(place)}", source.path, [edit])
                return
        calls = [place for place in case.victims if place.label.startswith("backward()")]
        for place, source, statement in case.statements(calls):
            edit = source.insert_lines(statement, call, after=False)
            yield candidate(f"call `{call}` above {at(place)}", source.path, [edit])


def _targets(source: Source, statement: Any) -> list[str]:
    """What an assignment gives a value to, as it is written; of several at once each."""
    import libcst as cst

    found: list[str] = []
    for target in statement.targets if isinstance(statement, cst.Assign) else ():
        node = target.target
        several = node.elements if isinstance(node, (cst.Tuple, cst.List)) else ()
        found += [source.code(each.value) for each in several] or [source.code(node)]
    return found


STRATEGIES = (
    LeafOfResult(),
    KeepGradient(),
    ReturnIt(),
)
