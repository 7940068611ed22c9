"""inference_mode becomes no_grad; no_grad no longer spans what is to be trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gradext.rules.rewrite.strategies.case import Candidate, Case, Place, at, candidate
from gradext.rules.rewrite.strategies.cuts import with_keyword
from gradext.source.edits import Edit, Source, written


def _mode_names(source: Source, name: str) -> Iterator[Any]:
    """The nodes that say `inference_mode`, as in `torch.inference_mode()`."""
    import libcst as cst

    for node in source.nodes():
        if isinstance(node, cst.Attribute) and node.attr.value == name:
            yield node.attr


class NoGradForInferenceMode:
    """The block or decorator that made the inference tensor uses no_grad."""

    codes = frozenset({"GX201", "GX202", "GX203", "GX204", "GX301"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        places = [p for site in (*case.culprits, *case.victims) for p in site.way]
        for source in case.files():
            lines = {place.line for place in places if place.file == source.path}
            named = list(_mode_names(source, "inference_mode"))
            near = [n for n in named if source.lines_of(n)[0] in lines]
            for chosen in (near, named):
                edits: list[Edit | None] = [source.replace(node, "no_grad") for node in chosen]
                if edits:
                    where = f"at {source.path.rsplit('/', 1)[-1]}:{source.lines_of(chosen[0])[0]}"
                    title = f"use no_grad in place of inference_mode {where}"
                    yield candidate(title, source.path, edits, undoes_stop=case.code == "GX301")


class WithGradMode:
    """Grad mode stays on where the loss is computed."""

    codes = frozenset({"GX104", "GX301", "GX302", "GX303", "GX304"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        for place in (*case.culprits, *case.victims):
            source = case.source(place)
            if source is None:
                continue
            yield self._block(source, place, place.line)
            yield self._switch(source, place)
        if case.code != "GX104":
            return
        # Of each way here one line is within the block that made the view.
        ways = (p for site in (*case.victims, *case.culprits) for p in site.way)
        for _, source, statement in case.statements(ways):
            for outer in source.above(statement):
                yield self._of(source, outer)

    def _block(self, source: Source, place: Place, line: int) -> Candidate | None:
        import libcst as cst

        edits: list[Edit | None] = []
        for node in source.nodes():
            if isinstance(node, (cst.Decorator, cst.With)) and source.lines_of(node)[0] == line:
                edits += _without_mode(source, node)
        return candidate(f"leave grad mode on at {at(place)}", source.path, edits, undoes_stop=True)

    def _of(self, source: Source, outer: Any) -> Candidate | None:
        edits = _without_mode(source, outer)
        for decorator in getattr(outer, "decorators", ()):
            edits += _without_mode(source, decorator)
        where = f"{source.path.rsplit('/', 1)[-1]}:{source.lines_of(outer)[0]}"
        return candidate(f"leave grad mode on at {where}", source.path, edits, undoes_stop=True)

    def _switch(self, source: Source, place: Place) -> Candidate | None:
        import libcst as cst

        statement = source.small_statement_at(place.line)
        for node in source.nodes(statement) if statement is not None else ():
            if not isinstance(node, cst.Call) or len(node.args) != 1:
                continue
            value = node.args[0].value
            if "set_grad_enabled" in source.code(node.func) and source.code(value) == "False":
                edit = source.replace(value, "True")
                return candidate(
                    f"leave grad mode on at {at(place)}", source.path, [edit], undoes_stop=True
                )
        return None


_OFF = ("no_grad", "inference_mode")


def _without_mode(source: Source, node: Any) -> list[Edit | None]:
    """The edits that let a decorator or a `with` leave grad mode on."""
    import libcst as cst

    edits: list[Edit | None] = []
    if isinstance(node, cst.Decorator) and any(n in source.code(node.decorator) for n in _OFF):
        edits.append(Edit(*source.lines_span(node), ""))
    if isinstance(node, cst.With):
        for item in node.items:
            if any(name in source.code(item.item) for name in _OFF):
                edits.append(source.replace(item.item, "torch.enable_grad()"))
            call: Any = item.item
            if (
                isinstance(call, cst.Call)
                and source.code(call.func).rpartition(".")[2] == "set_grad_enabled"
                and len(call.args) == 1
                and source.code(call.args[0].value) != "True"
            ):
                edits.append(source.replace(call.args[0].value, "True"))
    return edits


class FreezeInPlaceOfNoGrad:
    """`model.requires_grad_(False)` in place of a block that runs `model` under no_grad.

    A frozen module's parameters get no gradient then either; what goes through it keeps its own.
    """

    codes = frozenset({"GX301", "GX303", "GX304"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        for place in (*case.culprits, *case.victims):
            source = case.source(place)
            for node in source.nodes() if source is not None else ():
                if source is None or not isinstance(node, cst.With):
                    continue
                if source.lines_of(node)[0] != place.line or len(node.items) > 1:
                    continue
                edits = _without_mode(source, node)
                frozen = list(dict.fromkeys(_called(source, node.body)))
                if not edits or not frozen:
                    continue
                text = "\n".join(f"{name}.requires_grad_(False)" for name in frozen)
                title = f"freeze {' and '.join(f'`{n}`' for n in frozen)} in place of no_grad"
                edits = [source.insert_lines(node, text, after=False), *edits]
                yield candidate(f"{title} at {at(place)}", source.path, edits, undoes_stop=True)


def _called(source: Source, block: Any) -> Iterator[str]:
    """The names that are called within a block as modules are: `model` of `model(x)`, `self.lm` of
    `self.lm.embed(x)`. Whether it is one, the run tells."""
    import libcst as cst

    for node in source.nodes(block):
        if not isinstance(node, cst.Call):
            continue
        name = written(source, node.func)
        if name is None:
            continue
        parts = name.split(".")
        if parts[0] == "self":
            if len(parts) > 1 and not _is_method(source, node, parts[1]):
                yield ".".join(parts[:2])
        elif parts[0] not in {"torch", "nn", "F", "np", "math"} and _is_bound(source, node, parts):
            yield parts[0]


def _is_method(source: Source, node: Any, name: str) -> bool:
    """Whether the class around a node has a method of that name."""
    import libcst as cst

    for outer in source.above(node):
        if isinstance(outer, cst.ClassDef):
            return any(
                isinstance(inner, cst.FunctionDef) and inner.name.value == name
                for inner in source.nodes(outer.body)
            )
    return False


def _is_bound(source: Source, node: Any, parts: list[str]) -> bool:
    """Whether the first name is a variable or an argument, and no function, class or module."""
    import libcst as cst

    if any(
        isinstance(n, (cst.FunctionDef, cst.ClassDef)) and n.name.value == parts[0]
        for n in source.nodes()
    ):
        return False
    return any(
        (isinstance(n, cst.Param) and n.name.value == parts[0])
        or (
            isinstance(n, cst.AssignTarget)
            and any(
                isinstance(inner, cst.Name) and inner.value == parts[0]
                for inner in source.nodes(n.target)
            )
        )
        for n in source.nodes()
    )


class InputThatRequiresGrad:
    """What goes into a reentrant checkpoint, or another Function, is made to require grad."""

    codes = frozenset({"GX301", "GX304"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        for place in case.victims:
            if "does not require grad" not in place.label:
                continue
            source = case.source(place)
            statement = source.small_statement_at(place.line) if source is not None else None
            value = getattr(statement, "value", None)
            if source is None or not isinstance(statement, cst.Assign) or value is None:
                continue
            text = source.code(value)
            simple = isinstance(value, (cst.Call, cst.Name, cst.Attribute, cst.Subscript))
            made = f"{text if simple else f'({text})'}.requires_grad_()"
            title = f"let what goes in require grad at {at(place)}"
            yield candidate(title, source.path, [source.replace(value, made)], undoes_stop=True)


class NonReentrantCheckpoint:
    """`checkpoint(..., use_reentrant=False)`, which needs no input that requires grad."""

    codes = frozenset({"GX101", "GX301", "GX302", "GX304", "GX406"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        for source in case.files():
            # Few files have one, and a text is searched faster than a tree.
            for node in source.nodes() if "checkpoint" in source.text else ():
                if not isinstance(node, cst.Call):
                    continue
                name = source.code(node.func).rsplit(".", 1)[-1]
                if name not in {"checkpoint", "checkpoint_sequential"}:
                    continue
                line = source.lines_of(node)[0]
                title = f"use_reentrant=False at {source.path.rsplit('/', 1)[-1]}:{line}"
                given = [a for a in node.args if a.keyword and a.keyword.value == "use_reentrant"]
                if not given:
                    edit = with_keyword(source, node, "use_reentrant=False")
                    yield candidate(title, source.path, [edit], undoes_stop=True)
                elif source.code(given[0].value) == "True":
                    edit = source.replace(given[0].value, "False")
                    yield candidate(title, source.path, [edit], undoes_stop=True)


class PreserveRandomState:
    """`checkpoint(..., preserve_rng_state=True)`: the block draws the same numbers when run again.

    Source: torch.utils.checkpoint, whose default it is.
    """

    codes = frozenset({"GX406"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        for source in case.files():
            for node in source.nodes() if "preserve_rng_state" in source.text else ():
                is_given = isinstance(node, cst.Arg) and node.keyword is not None
                if not is_given or node.keyword.value != "preserve_rng_state":  # type: ignore[attr-defined]
                    continue
                value = node.value  # type: ignore[attr-defined]
                line = source.lines_of(node)[0]
                if source.code(value) != "True":
                    title = f"preserve_rng_state=True at {source.path.rsplit('/', 1)[-1]}:{line}"
                    yield candidate(title, source.path, [source.replace(value, "True")])


STRATEGIES = (
    PreserveRandomState(),
    NonReentrantCheckpoint(),
    InputThatRequiresGrad(),
    NoGradForInferenceMode(),
    WithGradMode(),
    FreezeInPlaceOfNoGrad(),
)
