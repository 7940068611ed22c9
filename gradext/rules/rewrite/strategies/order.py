"""A write is moved below the backward that still needs what it changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gradext.rules.rewrite.strategies.case import NOTHING, Candidate, Case, Place, at
from gradext.rules.rewrite.strategies.cuts import with_keyword
from gradext.source.edits import Edit, Source


class BelowTheBackward:
    """The statement that writes changes its place with those up to the failing backward()."""

    codes = frozenset({"GX101", "GX401", "GX402"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        for culprit in case.culprits[:2]:
            for inner, outer in case.together(culprit):
                found = self._moved(case, inner, outer)
                if found is not None and EachItsOwn().of(case, inner, outer) is not None:
                    break  # the first optimizer would step with what the second loss adds
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
        found = in_one_block(source, first, last)
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
        return Candidate(title, tuple((source.path, edit) for edit in edits), copies=NOTHING)


def _statement(source: Source, line: int) -> Any:
    return source.small_statement_at(line) or source.compound_at(line)


def in_one_block(source: Source, first: Any, last: Any) -> tuple[Any, int, int] | None:
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


class EachItsOwn:
    """Both backward() calls run before either step, and each for its own optimizer's parameters.

    What the second one adds to the parameters of the first would otherwise be stepped with.
    """

    codes = frozenset({"GX101"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        for culprit in case.culprits[:2]:
            for inner, outer in case.together(culprit):
                yield self.of(case, inner, outer)
                break

    def of(self, case: Case, step: Place, backward: Place) -> Candidate | None:
        source = case.source(step)
        if source is None:
            return None
        lines = [source.small_statement_at(place.line) for place in (step, backward)]
        found = in_one_block(source, *lines) if None not in lines else None
        if found is None:
            return None
        body, begin, end = found
        first = next(
            (n for n in range(begin - 1, -1, -1) if _call(source, body[n], "backward")), None
        )
        second_step = next(
            (n for n in range(end + 1, len(body)) if _call(source, body[n], "step")), None
        )
        if not begin < end or first is None or second_step is None:
            return None
        calls = [_call(source, body[first], "backward"), _call(source, body[end], "backward")]
        owners = [
            source.code(call.func.value)
            for n in (begin, second_step)
            if (call := _call(source, body[n], "step")) is not None
        ]
        if len(set(owners)) < 2 or any(
            a.keyword is not None and a.keyword.value == "inputs" for c in calls for a in c.args
        ):
            return None
        edits = [
            with_keyword(
                source, call, f'inputs=[p for g in {owner}.param_groups for p in g["params"]]'
            )
            for call, owner in zip(calls, owners, strict=True)
        ]
        start, stop = source.lines_span(body[begin])
        target = source.lines_span(body[end])[1]
        text = source.text[start:stop]
        edits += [Edit(start, stop, ""), Edit(target, target, text)]
        title = f"move {at(step)} below the backward() at {at(backward)}, each for its own leaves"
        return Candidate(title, tuple((source.path, edit) for edit in edits))


def _call(source: Source, statement: Any, method: str) -> Any:
    """The call `x.method(...)` of a simple line; None where it has none."""
    import libcst as cst

    if not isinstance(statement, cst.SimpleStatementLine) or len(statement.body) > 1:
        return None
    for node in source.nodes(statement):
        is_call = isinstance(node, cst.Call) and isinstance(node.func, cst.Attribute)
        if is_call and node.func.attr.value == method:  # type: ignore[attr-defined]
            return node
    return None


STRATEGIES = (EachItsOwn(), BelowTheBackward())
