"""What a list or a cache keeps of a graph that was used up is dropped, and made anew."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from gradext.rules.rewrite import carried
from gradext.rules.rewrite.strategies.case import Candidate, Case, Place, at, candidate
from gradext.source.edits import Edit, Source, has_name, written

_ENTRY = re.compile(r"`([\w.]+)\[\d+\]`, an entry of `\1`")


class EmptyTheList:
    """`agent.log_probs.clear()` below the backward(), where each round appends to the list."""

    codes = frozenset({"GX302"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        found = _ENTRY.search(case.message)
        if found is None or not any(_is_appended_to(source, found[1]) for source in case.files()):
            return
        root = found[1].split(".")[0]
        for place, source, statement in case.statements(case.failed_at):
            function = source.function_of(statement)
            scopes = [function, source.module] if place.function == "<module>" else [function]
            if root == "self" or not any(has_name(source, scope, root) for scope in scopes):
                continue
            edit = source.insert_lines(statement, f"{found[1]}.clear()", after=True)
            title = f"empty `{found[1]}` below the backward() at {at(place)}"
            yield candidate(title, source.path, [edit])
            return


def _is_appended_to(source: Source, owner: str) -> bool:
    import libcst as cst

    last = owner.rpartition(".")[2]
    for node in source.nodes():
        if not isinstance(node, cst.Call) or not isinstance(node.func, cst.Attribute):
            continue
        name = written(source, node.func.value)
        if node.func.attr.value in carried.GROWING and name and name.rpartition(".")[2] == last:
            return True
    return False


class WithoutTheCache:
    """`@cached_property` becomes `@property`; a function loses its `@lru_cache`."""

    codes = frozenset({"GX302"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        for place in case.culprits[0].way if case.culprits else ():
            yield self._of(case, place)

    def _of(self, case: Case, place: Place) -> Candidate | None:
        import libcst as cst

        source = case.source(place)
        statement = source.small_statement_at(place.line) if source is not None else None
        if source is None or statement is None:
            return None
        function = source.function_of(statement)
        for decorator in function.decorators if isinstance(function, cst.FunctionDef) else ():
            called: Any = decorator.decorator
            called = called.func if isinstance(called, cst.Call) else called
            name = (written(source, called) or "").rpartition(".")[2]
            if name not in carried.CACHES or not isinstance(function, cst.FunctionDef):
                continue
            title = f"let {function.name.value}() compute again: not by `@{name}`"
            edit = Edit(*source.lines_span(decorator), "")
            if name == "cached_property":
                edit = source.replace(decorator.decorator, "property")
            return candidate(title, source.path, [edit])
        return None


STRATEGIES = (EmptyTheList(), WithoutTheCache())
