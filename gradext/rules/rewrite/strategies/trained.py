"""A parameter that no optimizer has is made one that it has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from gradext.base import source_lines
from gradext.diagnosis.model import Frame, Site
from gradext.rules.rewrite import optimizer_order, registered
from gradext.rules.rewrite.strategies.case import Candidate, Case, Place, at, candidate
from gradext.source.edits import Edit, Source

_CONTAINER = re.compile(r"a plain (\w+) of (module|parameter)s")
_NO_PARAMETER = ("computed from a parameter", "a tensor, and no Parameter", "a buffer that")


class InAContainer:
    """`nn.ModuleList([...])` for a list of modules, `nn.ParameterDict({...})` and the like."""

    codes = frozenset({"GX306"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        for place in case.culprits[:1]:
            said = _CONTAINER.match(place.label)
            source, value = _value(case, place)
            if said is None or source is None or value is None:
                continue
            kind = "Module" if said[2] == "module" else "Parameter"
            kept, nn, name = source.code(value), _nn(source), f"{kind}List"
            if said[1] == "dict":
                name = f"{kind}Dict"
            title = f"keep them in an nn.{name} at {at(place)}"
            yield candidate(title, source.path, [source.replace(value, f"{nn}{name}({kept})")])
            if name == "ModuleList":
                rows = f"{nn}{name}({nn}{name}(row) for row in {kept})"
                title = f"keep them in lists of an nn.{name} at {at(place)}"
                yield candidate(title, source.path, [source.replace(value, rows)])


class ParameterLast:
    """`nn.Parameter(x.to(dtype))` for `nn.Parameter(x).to(dtype)`."""

    codes = frozenset({"GX302", "GX306"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        places = case.culprits[:1] if case.code == "GX306" else (*case.culprits, *case.victims)
        for place in places:
            source, value = _value(case, place)
            is_told = place.label.startswith(_NO_PARAMETER)
            if source is None or value is None or (case.code == "GX306" and not is_told):
                continue
            text = registered.as_parameter(source.code(value), _nn(source), of_any=is_told)
            if text is not None:
                title = f"make a parameter of the result at {at(place)}"
                yield candidate(title, source.path, [source.replace(value, text)])


class OptimizerBelow:
    """The optimizer is made below the line that makes what it is to have."""

    codes = frozenset({"GX306"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        for made in case.victims[:1]:
            for given in case.culprits[:1]:
                order = optimizer_order.order_of(_site(made), _site(given))
                source = case.sources.get(order.file) if order is not None else None
                if order is None or source is None:
                    continue
                if "".join(source_lines.getlines(order.file)) != source.text:
                    continue  # a patch has moved the lines that were read
                edits, moved = [], ""
                for node in order.first:
                    start = source.offset(node.lineno, 0)
                    end = _next_line(source, node)
                    moved += source.text[start:end]
                    edits.append(Edit(start, end, ""))
                target = _next_line(source, order.last)
                if target == len(source.text) and not source.text.endswith(("\n", "\r")):
                    moved = source.newline + moved
                title = f"make the optimizer below line {order.below}, at {at(made)}"
                yield candidate(title, source.path, [*edits, Edit(target, target, moved)])


def _value(case: Case, place: Place) -> tuple[Source | None, Any]:
    """What the assignment at a line gives to its target."""
    import libcst as cst

    for _, source, statement in case.statements([place]):
        if isinstance(statement, (cst.Assign, cst.AnnAssign)):
            value: Any = statement.value
            target = statement.targets[0].target if isinstance(statement, cst.Assign) else None
            if isinstance(target, cst.Tuple) and isinstance(value, cst.Tuple):
                for element in value.elements:
                    line, column = source.place(source.span(element.value)[0])
                    if (line, column) == (place.line, place.column):
                        return source, element.value
                return None, None
            return source, value
    return None, None


def _nn(source: Source) -> str:
    return "nn." if re.search(r"(?<!\.)\bnn\.", source.text) else "torch.nn."


def _site(place: Place) -> Site:
    frames = [Frame(p.file, p.line, p.function, p.code, column=p.column) for p in place.way]
    return Site(frames[0], callers=tuple(frames[1:]))


def _next_line(source: Source, node: ast.stmt) -> int:
    last = node.end_lineno or node.lineno
    lines = source.text.count("\n") + 1
    return source.offset(last + 1, 0) if last < lines else len(source.text)


STRATEGIES = (InAContainer(), ParameterLast(), OptimizerBelow())
