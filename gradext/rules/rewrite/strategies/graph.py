"""A graph that was used up: cut what is carried over, drop a call, or keep the graph."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from typing import Any

from gradext.rules.rewrite.strategies.case import Candidate, Case, Place, at, candidate
from gradext.rules.rewrite.strategies.cuts import with_keyword
from gradext.source.edits import Edit, Source, written


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


def _is_assignment(node: Any) -> bool:
    import libcst as cst

    return isinstance(node, (cst.Assign, cst.AugAssign, cst.AnnAssign))


class OneCallLess:
    """The second backward() of one loss is taken out."""

    codes = frozenset({"GX302"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        if "each call adds the same gradients" not in case.message:
            return
        for place, source, statement in case.statements(case.culprits[:1]):
            edit = source.replace(statement, "pass")
            block = source.block_of(statement)
            if block is not None and len(block[1]) > 1:
                edit = Edit(*source.lines_span(block[1][block[2]]), "")
            yield candidate(f"call backward() once: not at {at(place)}", source.path, [edit])


class DetachAfterBackward:
    """`h = h.detach()` below the backward() that frees the graph which `h` leads back into.

    What was computed up to there keeps its gradients, whatever the next graph starts from.
    """

    codes = frozenset({"GX302"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        held = [name for name in _HELD.findall(case.message) if name]
        for name in [*held, *self._written_name(case)]:
            for place, source, statement in case.statements(_freeing(case)):
                for known in _held_elsewhere(case, source, statement, name):
                    yield from _cuts_after(source, statement, known, place)
                if not _is_known(source, statement, name):
                    continue
                if not _is_carried(source, place, name, case):
                    break
                yield from _cuts_after(source, statement, name, place)
                break

    def _written_name(self, case: Case) -> Iterator[str]:
        """What the line that carries the state on assigns."""
        for _, source, statement in case.statements(case.culprits[:1]):
            yield from assigned(source, statement)


def _held_elsewhere(case: Case, source: Source, statement: Any, name: str) -> Iterator[str]:
    """`env.pos` for `self.pos`, an attribute of Env, where `env = Env()` stands in reach."""
    import libcst as cst

    kind = re.search(r"`, (?:an attribute|a buffer) of (\w+),? was used", case.message)
    if kind is None or not name.startswith("self."):
        return
    function = source.function_of(statement)
    for node in source.nodes():
        if not isinstance(node, cst.Assign) or not isinstance(node.value, cst.Call):
            continue
        if source.code(node.value.func).rsplit(".", 1)[-1] != kind[1]:
            continue
        holder = written(source, node.targets[0].target)
        place = source.function_of(node)
        if holder is not None and (place is function or not isinstance(place, cst.FunctionDef)):
            yield f"{holder}.{name.removeprefix('self.')}"


_HELD = re.compile(r"`([A-Za-z_][\w.]*(?:\[[^\]`]+\])?)`, (?:a|an) ")


def _freeing(case: Case) -> Iterator[Place]:
    """The lines of the backward() that freed the graph, with those that called it."""
    named = [place for place in (*case.culprits, *case.victims) if "freed the graph" in place.label]
    for place in named:
        yield from place.way
    # In a loop the call that fails is, one round earlier, the call that freed the graph.
    yield from case.failed_at


def _is_carried(source: Source, freed: Place, name: str, case: Case) -> bool:
    """Whether `name` may be cut after the backward() that freed its graph.

    Where the failing backward() stands below that one and nothing between binds the name anew, both
    are of one forward pass: cut there, the second loss would train nothing behind it.
    """
    if "." in name or "[" in name:
        return True
    for place in case.failed_at:
        same = (place.file, place.function) == (freed.file, freed.function)
        if not same or place.file != source.path or place.line <= freed.line:
            continue
        return any(
            name in assigned(source, node) and freed.line < source.lines_of(node)[0] <= place.line
            for node in source.nodes()
            if _is_assignment(node)
        )
    return True


def _is_known(source: Source, statement: Any, name: str) -> bool:
    """Whether a name means the same, at a statement, as where the state is carried on.

    A plain name is carried on where a loop around the statement binds it anew.
    """
    import libcst as cst

    root = name.split(".")[0].split("[")[0]
    function = source.function_of(statement)
    if root == "self":
        return isinstance(function, cst.FunctionDef) and any(
            isinstance(outer, cst.ClassDef) for outer in source.above(function)
        )
    loops = source.loops_around(statement)
    if root == name:
        return any(
            name in assigned(source, node)
            for loop in loops[-1:] or [function]
            for node in source.nodes(loop.body if loops else function)
        )
    within = source.module if not isinstance(function, cst.FunctionDef) else function
    return any(
        (isinstance(n, cst.Name) and n.value == root) for n in source.nodes(within)
    ) or not isinstance(function, cst.FunctionDef)


def _cuts_after(
    source: Source, statement: Any, name: str, place: Place
) -> Iterator[Candidate | None]:
    title = f"cut the history of `{name}` after the backward() at {at(place)}"
    if name.endswith("]"):
        holder, key = name[:-1].rsplit("[", 1)
        title = f"cut the history of what `{holder}` holds after the backward() at {at(place)}"
        each = ["items()", "enumerate"] if not key.lstrip("-").isdigit() else ["enumerate"]
        for number, (kind, entry) in enumerate(itertools.product(each, _ENTRIES)):
            over = f"enumerate({holder})" if kind == "enumerate" else f"{holder}.items()"
            text = f"for key, entry in {over}:\n    {holder}[key] = {entry}"
            how = ", of tuples" if number % 2 else ""
            named = f"{title} (by {kind}{how})" if number else title
            edits = [source.insert_lines(statement, text, after=True)]
            found = candidate(named, source.path, edits)
            yield found and dataclasses.replace(found, instead=number > 0)
        return
    for text, instead in ((f"{name} = {name}.detach()", False), (several(name), True)):
        named = f"{title} (a tuple, or None)" if instead else title
        found = candidate(named, source.path, [source.insert_lines(statement, text, after=True)])
        yield found and dataclasses.replace(found, instead=instead)


_ENTRIES = ("entry.detach()", "tuple(s.detach() for s in entry)")


def several(name: str) -> str:
    """Detaches a tensor, the tensors of a tuple, or nothing where there is None yet."""
    return (
        f"{name} = tuple(s.detach() for s in {name}) if isinstance({name}, tuple) "
        f"else {name} if {name} is None else {name}.detach()"
    )


class ResetState:
    """The module's own method that gives its state a first value is called after the backward().

    A class that carries state on often has one (`reset()`, `init_hidden()`), which the loop forgot.
    """

    codes = frozenset({"GX302"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        held = _KEPT.search(case.message)
        if held is None:
            return
        path, kind = held[1], held[2]
        owner, _, attribute = path.split("[")[0].rpartition(".")
        methods = [name for source in case.files() for name in _resetting(source, kind, attribute)]
        for place, source, statement in case.statements(_freeing(case)):
            owners = [owner] if _is_known(source, statement, path) else []
            owners += [
                known.rpartition(".")[0]
                for known in _held_elsewhere(case, source, statement, path.split("[")[0])
            ]
            for known, method in itertools.product(owners, methods):
                edit = source.insert_lines(statement, f"{known}.{method}()", after=True)
                title = f"call `{known}.{method}()` after the backward() at {at(place)}"
                yield candidate(title, source.path, [edit])
            if owners:
                return


_KEPT = re.compile(r"`([A-Za-z_][\w.]*\.\w+(?:\[[^\]`]+\])?)`, (?:an attribute|a buffer) of (\w+)")


def _resetting(source: Source, kind: str, attribute: str) -> Iterator[str]:
    """The methods of a class that need no argument and bind `self.attribute` to a first value.

    One that reads the attribute is none, but for `self.h = self.h.detach()`.
    """
    import libcst as cst

    for node in source.nodes():
        if not isinstance(node, cst.ClassDef) or node.name.value != kind:
            continue
        for method in source.nodes(node.body):
            if not isinstance(method, cst.FunctionDef) or method.decorators:
                continue
            name = method.name.value
            given = method.params
            needed = [p for p in (*given.params, *given.kwonly_params) if p.default is None]
            if name == "forward" or name.startswith("__") or len(needed) != 1:
                continue
            if any(isinstance(inner, (cst.Return, cst.Yield)) for inner in source.nodes(method)):
                continue
            bound = [
                inner
                for inner in source.nodes(method.body)
                if isinstance(inner, cst.Assign) and f"self.{attribute}" in assigned(source, inner)
            ]
            if bound and all(
                ".detach" in source.code(inner.value)
                or f"self.{attribute}" not in source.code(inner.value)
                for inner in bound
            ):
                yield name


class StartTheSumAnew:
    """A sum that leads back into the graph of an earlier backward() starts at zero again."""

    codes = frozenset({"GX302"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        if "a running sum" not in case.message:
            return
        name = next(iter(_HELD.findall(case.message)), None)
        for place, source, statement in case.statements(case.culprits[1:2]):
            loops = source.loops_around(statement)
            if not loops or name is None:
                continue
            edit = source.insert_lines(loops[0], f"{name} = 0", after=False)
            yield candidate(f"start `{name}` anew before {at(place)}", source.path, [edit])


class DetachedReset:
    """`buffer.zero_()` becomes `buffer.zero_().detach_()`: its values go, and its history too."""

    codes = frozenset({"GX302"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        for place, source, statement in case.statements(case.culprits):
            if not isinstance(statement, cst.Expr):
                continue
            call = statement.value
            if not isinstance(call, cst.Call) or not isinstance(call.func, cst.Attribute):
                continue
            if call.func.attr.value in {"zero_", "fill_", "copy_", "normal_", "uniform_"}:
                end = source.span(call)[1]
                title = f"cut the history of what is reset at {at(place)}"
                yield candidate(title, source.path, [Edit(end, end, ".detach_()")])


class DetachCarried:
    """`h = h.detach()` before the line that carries `h` on into the next graph."""

    codes = frozenset({"GX101", "GX302"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        for place in (*case.culprits, *case.victims):
            for at_place in place.way[:3]:
                source = case.source(at_place)
                statement = source.small_statement_at(at_place.line) if source else None
                if source is not None and statement is not None:
                    yield from self._of(source, statement, at_place, case)

    def _of(
        self, source: Source, statement: Any, place: Place, case: Case
    ) -> Iterator[Candidate | None]:
        import libcst as cst

        names = assigned(source, statement)
        value = getattr(statement, "value", None)
        read = {written(source, n) for n in source.nodes(value)} if value is not None else set()
        is_sum = isinstance(statement, cst.AugAssign) and isinstance(
            statement.operator, (cst.AddAssign, cst.SubtractAssign)
        )
        is_sum = is_sum and not isinstance(value, (cst.Integer, cst.Float))
        for name in dict.fromkeys(names):
            if is_sum and value is not None:
                text = source.code(value)
                simple = isinstance(value, (cst.Name, cst.Attribute, cst.Call, cst.Subscript))
                made = f"{text}.detach()" if simple else f"({text}).detach()"
                title = f"let `{name}` sum values without their history at {at(place)}"
                yield candidate(title, source.path, [source.replace(value, made)])
            if name in read or isinstance(statement, cst.AugAssign):
                title = f"cut the history of `{name}` before {at(place)}"
                edit = source.insert_before(statement, f"{name} = {name}.detach()")
                yield candidate(title, source.path, [edit])
                edit = source.insert_before(statement, several(name))
                found = candidate(title + " (a tuple, or None)", source.path, [edit])
                yield found and dataclasses.replace(found, instead=True)
            elif (
                case.code == "GX302"
                and _is_bound_again(source, statement, case)
                and all(_is_carried(source, freed, name, case) for freed in _freeing(case))
            ):
                # Elsewhere it would cut what is to be trained, to be rid of an error.
                edit = source.insert_lines(statement, f"{name} = {name}.detach()", after=True)
                title = f"cut the history of `{name}` after {at(place)}"
                yield candidate(title, source.path, [edit])


def _is_bound_again(source: Source, statement: Any, case: Case) -> bool:
    """Whether the statement runs once for each backward(), and not once for all of them."""
    function = source.function_of(statement)
    for place in case.failed_at:
        if place.file != source.path:
            continue
        other = source.small_statement_at(place.line)
        if other is not None and source.function_of(other) is function:
            loops = source.loops_around(other)
            return not loops or bool(
                set(map(id, loops)) & set(map(id, source.loops_around(statement)))
            )
    return True


class DetachState:
    """What a method reads of `self` and then assigns anew is cut off where it is first used."""

    codes = frozenset({"GX101", "GX302"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        for place, source, statement in case.statements((*case.victims, *case.culprits)):
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
            text = f"{', '.join(carried)} = {values}"
            title = f"cut the history of {' and '.join(carried)} before {at(place)}"
            # The steps of one sequence are one graph: it is cut where the method begins.
            loops = source.loops_around(statement)
            if loops:
                edit = source.insert_lines(loops[-1], text, after=False)
            else:
                edit = source.insert_before(statement, text)
            yield candidate(title, source.path, [edit])


class DetachInTheFirst:
    """Of two losses of one round, the first is computed from values: `net_d(fake.detach())`.

    As a discriminator's loss is, which is not to train the generator: between the two an optimizer
    steps. Without a step both losses may be meant for what they share.
    """

    codes = frozenset({"GX302"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        name = next((n for n in _HELD.findall(case.message) if n.isidentifier()), None)
        if name is None:
            return
        for freed, source, statement in case.statements(_freeing(case)):
            for place in case.failed_at:
                same = (place.file, place.function) == (freed.file, freed.function)
                if not same or place.line <= freed.line:
                    continue
                function = source.function_of(statement)
                made = [
                    source.lines_of(node)[1]
                    for node in source.nodes(function)
                    if _is_assignment(node) and name in assigned(source, node)
                ]
                begin = max((line for line in made if line < freed.line), default=None)
                if begin is None or any(freed.line < line <= place.line for line in made):
                    continue  # bound anew: it is another tensor that the second loss is made of
                if not any(
                    isinstance(node, cst.Attribute)
                    and node.attr.value == "step"
                    and freed.line < source.lines_of(node)[0] < place.line
                    for node in source.nodes(function)
                ):
                    continue
                edits: list[Edit | None] = [
                    source.replace(node.value, f"{name}.detach()")
                    for node in source.nodes(function)
                    if isinstance(node, cst.Arg)
                    and source.code(node.value) == name
                    and begin < source.lines_of(node)[0] <= freed.line
                ]
                title = f"compute the first loss from `{name}.detach()`, before {at(freed)}"
                yield candidate(title, source.path, edits)
                return


class KeepForTheNext:
    """A loop over losses that share a graph: backward() keeps it for the next one."""

    codes = frozenset({"GX302"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        if "computed before it, share it" in case.message:
            yield from RetainGraph().propose(case)


class BlockWithinTheLoop:
    """`with parametrize.cached():` stands in the loop, and keeps no weight for the next one."""

    codes = frozenset({"GX302"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        for place in case.culprits[:1]:
            source = case.source(place)
            block = source.compound_at(place.line) if source is not None else None
            if source is None or not isinstance(block, cst.With):
                continue
            inner = block.body.body[0] if isinstance(block.body, cst.IndentedBlock) else None
            if not isinstance(inner, (cst.For, cst.While)) or len(block.body.body) > 1:
                continue
            starts = source.span(block)[0], source.span(inner)[0]
            ends = tuple(source.text.index("\n", start) for start in starts)
            texts = [source.text[a:b].rstrip() for a, b in zip(starts, ends, strict=True)]
            if "keeps each weight" not in place.label or inner.orelse is not None:
                continue
            if not all(re.search(r":\s*(#.*)?$", text) for text in texts):
                continue  # a header of several lines
            edits = [
                Edit(start, start + len(mine), other)
                for start, mine, other in zip(starts, texts, texts[::-1], strict=True)
            ]
            yield candidate(f"enter the block of {at(place)} in each iteration", source.path, edits)


class RetainGraph:
    """The first backward() keeps the graph: the costliest way, and so the last."""

    codes = frozenset({"GX302"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        places = [p for p in (*case.culprits, *case.victims) if "freed the graph" in p.label]
        for place in places or case.failed_at[:1]:
            source = case.source(place)
            statement = source.small_statement_at(place.line) if source is not None else None
            for node in source.nodes(statement) if source and statement is not None else ():
                if not isinstance(node, cst.Call) or source is None:
                    continue
                asked = next(
                    (a for a in node.args if a.keyword and a.keyword.value == "retain_graph"), None
                )
                if asked is not None and source.code(asked.value) == "True":
                    continue
                if source.code(node.func).rsplit(".", 1)[-1] in {"backward", "grad"}:
                    edit = with_keyword(source, node, "retain_graph=True")
                    if asked is not None:  # `retain_graph=k < 2`, which was false
                        edit = source.replace(asked.value, "True")
                    title = f"keep the graph at {at(place)}"
                    yield candidate(title, source.path, [edit])
                    break


STRATEGIES = (
    OneCallLess(),
    KeepForTheNext(),
    BlockWithinTheLoop(),
    StartTheSumAnew(),
    DetachedReset(),
    DetachState(),
    DetachAfterBackward(),
    ResetState(),
    DetachCarried(),
    DetachInTheFirst(),
    RetainGraph(),
)
