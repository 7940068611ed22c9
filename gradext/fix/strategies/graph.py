"""A graph that was used up: cut what is carried over, drop a call, or keep the graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gradext.fix.case import Candidate, Case, Place, at, candidate
from gradext.fix.edits import Edit, Source, written
from gradext.fix.strategies.cuts import with_keyword


def assigned(source: Source, statement: Any) -> list[str]:
    """The names and attributes that a statement assigns."""
    import libcst as cst

    targets: list[Any] = []
    if isinstance(statement, cst.Assign):
        targets = [target.target for target in statement.targets]
    elif isinstance(statement, (cst.AugAssign, cst.AnnAssign)):
        targets = [statement.target]
    found = []
    while targets:
        target = targets.pop(0)
        if isinstance(target, (cst.Tuple, cst.List)):
            targets = [*(element.value for element in target.elements), *targets]
            continue
        while isinstance(target, cst.Subscript):
            target = target.value
        name = written(source, target)
        if name is not None:
            found.append(name)
    return found


class OneCallLess:
    """The second backward() of one loss is taken out."""

    codes = frozenset({"GX302"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        if "each call adds the same gradients" not in case.message:
            return
        for place in case.culprits[:1]:
            source = case.source(place)
            statement = source.small_statement_at(place.line) if source is not None else None
            if source is not None and statement is not None:
                edit = source.replace(statement, "pass")
                block = source.block_of(statement)
                if block is not None and len(block[1]) > 1:
                    edit = Edit(*source.lines_span(block[1][block[2]]), "")
                yield candidate(f"call backward() once: not at {at(place)}", source.path, [edit])


class DetachCarried:
    """`h = h.detach()` before the line that carries `h` on into the next graph."""

    codes = frozenset({"GX101", "GX302"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        for place in (*case.culprits, *case.victims):
            for at_place in place.way[:3]:
                source = case.source(at_place)
                statement = source.small_statement_at(at_place.line) if source else None
                if source is not None and statement is not None:
                    yield from self._of(source, statement, at_place, case.code)

    def _of(
        self, source: Source, statement: Any, place: Place, code: str
    ) -> Iterator[Candidate | None]:
        import libcst as cst

        names = assigned(source, statement)
        value = getattr(statement, "value", None)
        read = {written(source, n) for n in source.nodes(value)} if value is not None else set()
        is_sum = isinstance(statement, cst.AugAssign)
        for name in dict.fromkeys(names):
            if is_sum and value is not None:
                text = source.code(value)
                simple = isinstance(value, (cst.Name, cst.Attribute, cst.Call, cst.Subscript))
                made = f"{text}.detach()" if simple else f"({text}).detach()"
                title = f"let `{name}` sum values without their history at {at(place)}"
                yield candidate(title, source.path, [source.replace(value, made)])
            if name in read or is_sum:
                title = f"cut the history of `{name}` before {at(place)}"
                edit = source.insert_before(statement, f"{name} = {name}.detach()")
                yield candidate(title, source.path, [edit])
                several = (
                    f"{name} = tuple(s.detach() for s in {name}) if isinstance({name}, tuple) "
                    f"else {name} if {name} is None else {name}.detach()"
                )
                edit = source.insert_before(statement, several)
                yield candidate(title + " (a tuple, or None)", source.path, [edit])
            elif (
                code == "GX302"
            ):  # elsewhere it would cut what is to be trained, to be rid of an error
                block = source.block_of(statement)
                if block is None:
                    continue
                end = source.lines_span(block[1][block[2]])[1]
                start, first = source.lines_span(block[1][block[2]])[0], source.span(statement)[0]
                indent = source.text[start:first]
                if indent.strip():
                    continue
                line = f"{indent}{name} = {name}.detach(){source.newline}"
                title = f"cut the history of `{name}` after {at(place)}"
                yield candidate(title, source.path, [Edit(end, end, line)])


class DetachState:
    """What a method reads of `self` and then assigns anew is cut off where it is first used."""

    codes = frozenset({"GX101", "GX302"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        for place in (*case.victims, *case.culprits):
            source = case.source(place)
            statement = source.small_statement_at(place.line) if source is not None else None
            if source is None or statement is None:
                continue
            function = source.function_of(statement)
            if not isinstance(function, cst.FunctionDef):
                continue
            reads = {
                name
                for node in source.nodes(statement)
                if isinstance(node, cst.Attribute)
                and (name := written(source, node)) is not None
                and name.startswith("self.")
            }
            carried: list[str] = []
            for node in source.nodes(function.body):
                for name in assigned(source, node):
                    if name.startswith("self.") and name not in carried:
                        carried.append(name)
            if not reads & set(carried):
                continue
            values = ", ".join(f"{name}.detach()" for name in carried)
            edit = source.insert_before(statement, f"{', '.join(carried)} = {values}")
            title = f"cut the history of {' and '.join(carried)} before {at(place)}"
            yield candidate(title, source.path, [edit])


class RetainGraph:
    """The first backward() keeps the graph: the costliest way, and so the last."""

    codes = frozenset({"GX302"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        for place in (*case.culprits, *case.victims):
            if "freed the graph" not in place.label:
                continue
            source = case.source(place)
            statement = source.small_statement_at(place.line) if source is not None else None
            for node in source.nodes(statement) if source and statement is not None else ():
                if not isinstance(node, cst.Call) or source is None:
                    continue
                if source.code(node.func).rsplit(".", 1)[-1] in {"backward", "grad"}:
                    edit = with_keyword(source, node, "retain_graph=True")
                    title = f"keep the graph at {at(place)}"
                    yield candidate(title, source.path, [edit])
                    break


STRATEGIES = (OneCallLess(), DetachState(), DetachCarried(), RetainGraph())
