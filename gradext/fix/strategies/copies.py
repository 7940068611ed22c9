"""A copy is made: before the write, or at the line that saves the tensor."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from gradext.fix.case import Candidate, Case, Place, at, candidate
from gradext.fix.edits import Edit, Source, is_read_after, written
from gradext.fix.strategies.in_place import owner_of_write

_NAMED = re.compile(r"`([A-Za-z_][\w.]*(?:\[\d+\])?)`")


class BeforeTheWrite:
    """`x = x.clone()` on a line before the write."""

    codes = frozenset({"GX101", "GX103", "GX104", "GX105", "GX106", "GX202", "GX401", "GX404"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        for place in case.culprits[:2]:
            source = case.source(place)
            statement = source.small_statement_at(place.line) if source is not None else None
            if source is None or statement is None:
                continue
            owner = owner_of_write(source, statement)
            if owner is not None and is_read_after(source, statement, owner):
                edit = source.insert_before(statement, f"{owner} = {owner}.clone()")
                title = f"copy `{owner}` before the write at {at(place)}"
                yield candidate(title, source.path, [edit])


class AtTheSave:
    """The line that saves a tensor gets a copy of it, or hands out a copy of what it keeps."""

    codes = frozenset({"GX101", "GX201", "GX401", "GX402"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        owners = set(_NAMED.findall(case.message))
        for place in case.culprits[:2]:
            source = case.source(place)
            statement = source.small_statement_at(place.line) if source is not None else None
            if source is not None and statement is not None:
                owner = owner_of_write(source, statement)
                owners |= {owner} if owner else set()
        for place in case.victims[:2]:
            source = case.source(place)
            statement = source.small_statement_at(place.line) if source is not None else None
            if source is None or statement is None:
                continue
            yield from self._operands(source, statement, place, owners)
            yield self._result(source, statement, place)

    def _operands(
        self, source: Source, statement: Any, place: Place, owners: set[str]
    ) -> Iterator[Candidate | None]:
        import libcst as cst

        found: dict[str, list[Edit | None]] = {}
        for node in source.nodes(statement):
            if not isinstance(node, (cst.Name, cst.Attribute)):
                continue
            text = written(source, node)
            outer = source.parent(node)
            if text is None or isinstance(outer, (cst.Attribute, cst.AssignTarget, cst.Param)):
                continue
            if isinstance(outer, cst.Call) and outer.func is node:
                continue  # a function's name
            if isinstance(outer, cst.Arg) and outer.keyword is node:
                continue
            is_wanted = text in owners or any(
                owner.rsplit(".", 1)[-1] == text.rsplit(".", 1)[-1] for owner in owners
            )
            if is_wanted:
                found.setdefault(text, []).append(
                    source.replace(node, f"{source.code(node)}.clone()")
                )
        for text, edits in found.items():
            yield candidate(f"compute with a copy of `{text}` at {at(place)}", source.path, edits)

    def _result(self, source: Source, statement: Any, place: Place) -> Candidate | None:
        import libcst as cst

        if not isinstance(statement, (cst.Assign, cst.Return, cst.AnnAssign)):
            return None
        value = statement.value
        if value is None or isinstance(value, (cst.Tuple, cst.List)):
            return None
        text = source.code(value)
        simple = isinstance(value, (cst.Call, cst.Name, cst.Attribute, cst.Subscript))
        made = f"{text}.clone()" if simple else f"({text}).clone()"
        title = f"hand out a copy of what {at(place)} computes"
        return candidate(title, source.path, [source.replace(value, made)])


class OfTheViews:
    """What unbind(), chunk() or split() hand out is copied, so that it may be written."""

    codes = frozenset({"GX105"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        for place in (*case.culprits, *case.victims):
            source = case.source(place)
            if source is None:
                continue
            for node in source.nodes():
                if not isinstance(node, cst.Call) or source.lines_of(node)[0] != place.line:
                    continue
                called = source.code(node.func).rsplit(".", 1)[-1]
                if called in {"unbind", "chunk", "split", "tensor_split", "hsplit", "vsplit"}:
                    text = f"[view.clone() for view in {source.code(node)}]"
                    title = f"copy what {called}() hands out at {at(place)}"
                    yield candidate(title, source.path, [source.replace(node, text)])


class OfNumpyMemory:
    """torch gets memory of its own: `torch.from_numpy(buffer).clone()`."""

    codes = frozenset({"GX401", "GX402", "GX405"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        for source in case.files():
            for node in source.nodes():
                if not isinstance(node, cst.Call) or not isinstance(node.func, cst.Attribute):
                    continue
                if node.func.attr.value in {"from_numpy", "frombuffer", "from_dlpack", "from_file"}:
                    line = source.lines_of(node)[0]
                    name = source.path.rsplit("/", 1)[-1]
                    end = source.span(node)[1]
                    title = f"give torch a copy of its own at {name}:{line}"
                    yield candidate(title, source.path, [Edit(end, end, ".clone()")])


STRATEGIES = (BeforeTheWrite(), AtTheSave(), OfTheViews(), OfNumpyMemory())
