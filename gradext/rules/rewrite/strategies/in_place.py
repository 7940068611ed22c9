"""A write in place becomes an op that makes a new tensor."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from gradext.rules.rewrite.strategies.case import WRITTEN, Candidate, Case, at, candidate
from gradext.source.edits import Edit, Source, is_read_after, written

# In-place methods without an out-of-place twin of that name. {0}: the receiver, {1}: the argument.
_TWINS = {
    "zero_": "torch.zeros_like({0})",
    "fill_": "torch.full_like({0}, {1})",
    "copy_": "{1}.clone()",
    "uniform_": "torch.rand_like({0})",
    "normal_": "torch.randn_like({0})",
}
_IN_PLACE = re.compile(r"[a-z]\w*[a-z0-9]_")
_NOT_WRITES = {"requires_grad_", "retain_grad_", "detach_", "share_memory_"}
_MODULES = {"torch", "F", "nn", "functional", "init"}


def is_namespace(source: Source, node: Any) -> bool:
    """Whether an expression is torch or a module of it, whose functions take the tensor first."""
    name = written(source, node)
    return name is not None and name.split(".")[0] in _MODULES


def owner_of_write(source: Source, statement: Any) -> str | None:
    """What the statement writes into, where it is a name or an attribute: `x` of `x[0].mul_(2)`."""
    import libcst as cst

    target = _target_of_write(source, statement)
    while isinstance(target, cst.Subscript):
        target = target.value
    return written(source, target)


def entry_of_write(source: Source, statement: Any) -> Any:
    """`out[0]` of `out[0][:, 1] = y` and of `out[0].add_(y)`: a tensor, if `out` is a container.

    The node; None where the statement writes no entry by a number, a text or a name.
    """
    import libcst as cst

    target = _target_of_write(source, statement)
    is_assigned = isinstance(statement, (cst.Assign, cst.AugAssign))
    if is_assigned and isinstance(target, cst.Subscript):
        target = target.value  # what is written into
    while isinstance(target, cst.Subscript) and isinstance(target.value, cst.Subscript):
        target = target.value
    if not isinstance(target, cst.Subscript) or len(target.slice) != 1:
        return None
    index = target.slice[0].slice
    simple = (cst.Integer, cst.SimpleString, cst.Name, cst.Attribute)
    return target if isinstance(index, cst.Index) and isinstance(index.value, simple) else None


def _target_of_write(source: Source, statement: Any) -> Any:
    import libcst as cst

    if isinstance(statement, cst.AugAssign):
        return statement.target
    if isinstance(statement, cst.Assign) and len(statement.targets) == 1:
        target = statement.targets[0].target
        if isinstance(target, cst.Subscript):
            return target
    for call in _calls(source, statement):
        target = _written_by(source, call)
        if target is not None:
            return target
    return None


def _calls(source: Source, statement: Any) -> Iterator[Any]:
    """Calls of a statement, the outermost first."""
    import libcst as cst

    return (node for node in source.nodes(statement) if isinstance(node, cst.Call))


def _written_by(source: Source, call: Any) -> Any:
    """What a call writes in place, by its form; None where it has none."""
    import libcst as cst

    for argument in call.args:
        if argument.keyword is not None and argument.keyword.value == "out":
            return argument.value
    method = call.func.attr.value if isinstance(call.func, cst.Attribute) else ""
    inplace = any(
        a.keyword is not None and a.keyword.value == "inplace" and source.code(a.value) == "True"
        for a in call.args
    )
    if not inplace and (not _IN_PLACE.fullmatch(method) or method in _NOT_WRITES):
        return None
    if isinstance(call.func, cst.Attribute) and not is_namespace(source, call.func.value):
        receiver = call.func.value
        while isinstance(receiver, cst.Call) and isinstance(receiver.func, cst.Attribute):
            receiver = receiver.func.value  # `x` of `x.mul_(a).add_(b)`
        return receiver
    return call.args[0].value if call.args else None


class OutOfPlace:
    """`x += y` becomes `x = x + y`; `x.mul_(y)` becomes `x = x.mul(y)`."""

    codes = frozenset({"GX101", "GX401", "GX402", "GX404", "GX406"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        for place in case.culprits[:2]:
            source = case.source(place)
            statement = source.small_statement_at(place.line) if source is not None else None
            if source is not None and statement is not None:
                title = f"make a new tensor in place of the write at {at(place)}"
                yield candidate(title, source.path, self.edits(source, statement), copies=WRITTEN)

    def edits(
        self, source: Source, statement: Any, *, is_handed_on: bool = False
    ) -> list[Edit | None]:
        """What takes the write out of one statement; empty where it is none.

        `is_handed_on`: the new tensor is returned, by a further edit.
        """
        import libcst as cst

        owner = owner_of_write(source, statement)
        binds = isinstance(statement, (cst.AugAssign, cst.Expr))
        is_read = is_handed_on or owner is None or is_read_after(source, statement, owner)
        if binds and not is_read:
            return []  # the new tensor would reach nobody
        if isinstance(statement, cst.AugAssign):
            return [self._augmented(source, statement)]
        if isinstance(statement, cst.Assign) and isinstance(
            statement.targets[0].target, cst.Subscript
        ):
            return []  # copies.BeforeTheWrite has that
        edits: list[Edit | None] = []
        for call in _calls(source, statement):
            edits += _renamed(source, call)
        if not edits:
            return []
        if isinstance(statement, cst.Expr):
            outer = statement.value
            target = _written_by(source, outer) if isinstance(outer, cst.Call) else None
            name = written(source, target)
            if name is None:
                return []
            twin = self._twin(source, outer)
            if twin is not None:
                return [source.replace(statement, f"{name} = {twin}")]
            start, _ = source.span(statement)
            edits.append(Edit(start, start, f"{name} = "))
        return edits

    def _twin(self, source: Source, call: Any) -> str | None:
        import libcst as cst

        if not isinstance(call.func, cst.Attribute) or call.func.attr.value not in _TWINS:
            return None
        text = _TWINS[call.func.attr.value]
        if "{1}" in text and not call.args:
            return None
        argument = source.code(call.args[0].value) if call.args else ""
        if text.startswith("{1}") and not re.fullmatch(r"[\w.]+(\([^()]*\))?", argument):
            argument = f"({argument})"
        return text.format(source.code(call.func.value), argument)

    def _augmented(self, source: Source, statement: Any) -> Edit | None:
        name = written(source, statement.target)
        if name is None:
            # An entry: of a dict or list a new tensor takes its place, of a tensor it is written.
            name = source.code(statement.target)
        sign = source.text[source.span(statement.target)[1] : source.outer_span(statement.value)[0]]
        sign = sign.strip().removesuffix("=")
        value = source.code(statement.value)
        if not re.fullmatch(r"[\w.]+|\(.*\)", value, re.DOTALL) and not _binds_tightly(statement):
            value = f"({value})"
        return Edit(*source.span(statement), f"{name} = {name} {sign} {value}")


def _binds_tightly(statement: Any) -> bool:
    """Whether the value needs no parentheses behind an operator."""
    import libcst as cst

    return isinstance(
        statement.value, (cst.Call, cst.Subscript, cst.Name, cst.Attribute, cst.Integer, cst.Float)
    )


def _renamed(source: Source, call: Any) -> list[Edit | None]:
    """The edits that take the write out of one call: its name, `inplace=True`, `out=`."""
    import libcst as cst

    edits: list[Edit | None] = []
    if isinstance(call.func, cst.Attribute):
        method = call.func.attr.value
        if _IN_PLACE.fullmatch(method) and method not in _NOT_WRITES:
            edits.append(source.replace(call.func.attr, method[:-1]))
    for argument in call.args:
        word = argument.keyword.value if argument.keyword is not None else None
        if (word == "inplace" and source.code(argument.value) == "True") or word == "out":
            edits.append(without_argument(source, call, argument))
    return edits


def without_argument(source: Source, call: Any, argument: Any) -> Edit | None:
    """Takes one argument out of a call, and the comma that is one too many."""
    index = list(call.args).index(argument)
    start, end = source.span(argument)
    if index:
        start = source.span(call.args[index - 1])[1]
        return Edit(start, end, "")
    if len(call.args) > 1:
        return Edit(start, source.span(call.args[1])[0], "")
    return Edit(start, end, "")


class ModuleWithoutInplace:
    """`nn.ReLU(inplace=True)` loses its `inplace=True` where the module is constructed."""

    codes = frozenset({"GX101", "GX102", "GX103", "GX104", "GX105", "GX106"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        if not any(place.in_library for place in case.culprits):
            return
        for source in case.files():
            edits: list[Edit | None] = []
            for call in _calls(source, source.module):
                for argument in call.args:
                    word = argument.keyword.value if argument.keyword is not None else None
                    if word == "inplace" and source.code(argument.value) == "True":
                        edits.append(without_argument(source, call, argument))
                is_relu = re.search(
                    r"\b(ReLU6?|ELU|SELU|CELU|SiLU|Hardtanh)$", source.code(call.func)
                )
                first = call.args[0] if call.args else None
                is_positional = is_relu and first is not None and first.keyword is None
                if first is not None and is_positional and source.code(first.value) == "True":
                    edits.append(without_argument(source, call, first))
            if edits:
                many = f"{len(edits)} modules" if len(edits) > 1 else "the module"
                yield candidate(
                    f"construct {many} without inplace=True", source.path, edits, copies=WRITTEN
                )


STRATEGIES = (OutOfPlace(), ModuleWithoutInplace())
