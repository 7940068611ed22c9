"""A copy is made: before the write, or at the line that saves the tensor."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from gradext.rules.rewrite.strategies.case import (
    SAVED,
    WRITTEN,
    Candidate,
    Case,
    Place,
    at,
    candidate,
)
from gradext.rules.rewrite.strategies.in_place import entry_of_write, is_namespace, owner_of_write
from gradext.source.edits import Edit, Source, is_read_after, written

_NAMED = re.compile(r"`([A-Za-z_][\w.]*(?:\[\d+\])?)`")


class BeforeTheWrite:
    """`x = x.clone()` on a line before the write."""

    codes = frozenset(
        {"GX101", "GX103", "GX104", "GX105", "GX106", "GX202", "GX401", "GX404", "GX406"}
    )

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        ways = [place for victim in case.victims for place in (victim, *victim.callers)]
        saving = {(source.path, source.span(node)) for _, source, node in case.statements(ways)}
        for place, source, statement in case.statements(case.culprits[:2]):
            owner = owner_of_write(source, statement)
            named = [n for n in source.nodes(statement) if isinstance(n, (cst.Name, cst.Attribute))]
            is_read = sum(source.code(node) == owner for node in named) > 1
            if is_read and (source.path, source.span(statement)) in saving:
                # It saves what it writes: a copy above it would be written as well.
                if owner is not None and _reads_alias(source, statement, owner):
                    yield self._of_both(source, statement, owner, place)
                continue
            if owner is not None and is_read_after(source, statement, owner):
                edit = source.insert_before(statement, f"{owner} = {owner}.clone()")
                title = f"copy `{owner}` before the write at {at(place)}"
                yield candidate(title, source.path, [edit], copies=WRITTEN)
            yield from self._entry(source, statement, place)

    def _of_both(
        self, source: Source, statement: Any, owner: str, place: Place
    ) -> Candidate | None:
        """A copy of the whole above the statement, and of what the statement reads of it."""
        edits = [source.insert_before(statement, f"{owner} = {owner}.clone()")]
        for node in _parts_read(source, statement.value, owner):
            end = source.outer_span(node)[1]
            edits.append(Edit(end, end, ".clone()"))
        title = f"copy `{owner}` before the write at {at(place)}, and what it reads of it"
        return candidate(title, source.path, edits, copies=WRITTEN)

    def _entry(self, source: Source, statement: Any, place: Place) -> Iterator[Candidate | None]:
        """Where what is written is an entry of a list, a dict or a tuple."""
        entry = entry_of_write(source, statement)
        held = written(source, entry.value) if entry is not None else None
        if held is None or not is_read_after(source, statement, held):
            return
        text = source.code(entry)
        title = f"copy `{text}` before the write at {at(place)}"
        edit = source.insert_before(statement, f"{text} = {text}.clone()")
        yield candidate(title, source.path, [edit], copies=WRITTEN)
        key = source.code(entry.slice[0].slice.value)
        if not key.isdigit():
            return
        others = [f"*{held}[:{key}]"] if int(key) else []
        made = ", ".join([*others, f"{text}.clone()", f"*{held}[{int(key) + 1}:]"])
        edit = source.insert_before(statement, f"{held} = ({made})")
        found = candidate(f"{title} (of a tuple)", source.path, [edit], copies=WRITTEN)
        yield found and dataclasses.replace(found, instead=True)


def _parts_read(source: Source, root: Any, owner: str) -> Iterator[Any]:
    """`h[k]` and `h` within an expression, the outermost ones."""
    import libcst as cst

    node = root
    while isinstance(node, cst.Subscript):
        node = node.value
    if isinstance(node, (cst.Name, cst.Attribute)) and source.code(node) == owner:
        yield root
        return
    for child in root.children:
        yield from _parts_read(source, child, owner)


def _reads_alias(source: Source, statement: Any, owner: str) -> bool:
    """Whether a loop gives a name that the statement reads a part of what is written."""
    import libcst as cst

    loops, value = source.loops_around(statement), getattr(statement, "value", None)
    if not loops or value is None or not isinstance(statement, cst.Assign):
        return False
    read = {node.value for node in source.nodes(value) if isinstance(node, cst.Name)}
    for node in source.nodes(loops[-1]):
        if isinstance(node, cst.Assign) and isinstance(node.value, (cst.Name, cst.Subscript)):
            names = {source.code(target.target) for target in node.targets}
            if names & read and node.value in _parts_read(source, node.value, owner):
                return True
    return False


class WhereItIsHandedIn:
    """The call within which it is saved gets a copy: `self.attend(q, memory.clone())`."""

    codes = frozenset({"GX101", "GX401", "GX402"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        texts = set(_NAMED.findall(case.message))
        for _, source, statement in case.statements(case.culprits[:2]):
            entry = entry_of_write(source, statement)
            texts |= {source.code(entry)} if entry is not None else set()
            texts |= {owner} if (owner := owner_of_write(source, statement)) else set()
        for victim in case.victims[:2]:
            for place, source, statement in case.statements(victim.callers[:2]):
                for node in source.nodes(statement):
                    if not isinstance(node, cst.Arg) or source.code(node.value) not in texts:
                        continue
                    text = source.code(node.value)
                    edit = source.replace(node.value, f"{text}.clone()")
                    title = f"hand in a copy of `{text}` at {at(place)}"
                    yield candidate(title, source.path, [edit], copies=SAVED)


class AtTheSave:
    """The line that saves a tensor gets a copy of it, or hands out a copy of what it keeps."""

    codes = frozenset({"GX101", "GX201", "GX401", "GX402"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        owners = set(_NAMED.findall(case.message))
        for _, source, statement in case.statements(case.culprits[:2]):
            owner = owner_of_write(source, statement)
            owners |= {owner} if owner else set()
        for place, source, statement in case.statements(case.victims[:2]):
            yield from self._operands(source, statement, place, owners)
            yield self._result(source, statement, place)

    def _operands(
        self, source: Source, statement: Any, place: Place, owners: set[str]
    ) -> Iterator[Candidate | None]:
        import libcst as cst

        found: dict[str, list[Edit | None]] = {}
        names: dict[str, str] = {}
        for node in source.nodes(statement):
            if not isinstance(node, (cst.Name, cst.Attribute)):
                continue
            text = written(source, node)
            if text is None:
                continue
            used: Any = node
            outer = source.parent(used)
            while isinstance(outer, cst.Subscript) and outer.value is used:
                used, outer = outer, source.parent(outer)  # of `x[0]` no more than that is copied
            if isinstance(outer, (cst.Attribute, cst.AssignTarget, cst.Param)) and used is node:
                continue
            if isinstance(outer, cst.AssignTarget):
                continue
            if isinstance(outer, cst.Call) and outer.func is used:
                continue  # a function's name
            if isinstance(outer, cst.AugAssign) and outer.target is used:
                continue
            if isinstance(outer, cst.Arg) and outer.keyword is used:
                continue
            is_wanted = text in owners or any(
                owner.rsplit(".", 1)[-1] == text.rsplit(".", 1)[-1] for owner in owners
            )
            if is_wanted:
                edit = source.replace(used, f"{source.code(used)}.clone()")
                found.setdefault(text, []).append(edit)
                names.setdefault(text, source.code(used))
        for name, edits in found.items():
            text = names[name] if len(edits) == 1 else name
            title = f"compute with a copy of `{text}` at {at(place)}"
            yield candidate(title, source.path, edits, copies=SAVED)

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
        return candidate(title, source.path, [source.replace(value, made)], copies=SAVED)


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


class EachByItself:
    """`x.unbind()` becomes a list of views each of which is made by itself, and may be written.

    Their writes reach `x`, as before; where nobody reads `x` behind it, copies do as well.
    """

    codes = frozenset({"GX105"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        for place in (*case.culprits, *case.victims):
            source = case.source(place)
            for node in source.nodes() if source is not None else ():
                if source is None or not isinstance(node, cst.Call):
                    continue
                if source.lines_of(node)[0] != place.line:
                    continue
                found = _unbound(source, node)
                if found is not None and _is_read_behind(source, node, found[0]):
                    name, dim = found
                    text = f"[{name}.select({dim}, n) for n in range({name}.size({dim}))]"
                    title = f"make each view of `{name}` by itself at {at(place)}"
                    yield candidate(title, source.path, [source.replace(node, text)])


def _is_read_behind(source: Source, call: Any, name: str) -> bool:
    import libcst as cst

    end = source.span(call)[1]
    return any(
        written(source, node) == name and source.span(node)[0] > end
        for node in source.nodes(source.function_of(call))
        if isinstance(node, (cst.Name, cst.Attribute))
    )


def _unbound(source: Source, call: Any) -> tuple[str, str] | None:
    """("x", "0") of `x.unbind()` and `torch.unbind(x)`; None of anything else."""
    import libcst as cst

    if not isinstance(call.func, cst.Attribute) or call.func.attr.value != "unbind":
        return None
    given = list(call.args)
    tensor: Any = call.func.value
    if is_namespace(source, tensor):
        if not given:
            return None
        tensor = given.pop(0).value
    name = written(source, tensor)
    if name is None or len(given) > 1 or any(a.star for a in given):
        return None
    return name, source.code(given[0].value) if given else "0"


class ByIndex:
    """`for row in x: row.mul_(2)` takes the rows by index, each of which is a view of its own.

    Iterating a tensor is unbind(), whose views may not be written. The writes reach `x` as before.
    """

    codes = frozenset({"GX105"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        for place in (*case.victims, *case.culprits):
            source = case.source(place)
            loop = source.compound_at(place.line) if source is not None else None
            if source is not None and loop is not None:
                yield self._of(source, loop, place)

    def _of(self, source: Source, loop: Any, place: Place) -> Candidate | None:
        import libcst as cst

        if not isinstance(loop, cst.For) or not isinstance(loop.body, cst.IndentedBlock):
            return None
        iterated, targets = loop.iter, [loop.target]
        counter, edits = "index", []
        used = {n.value for n in source.nodes() if isinstance(n, cst.Name)}
        while counter in used:
            counter += "_"
        called = source.code(iterated.func) if isinstance(iterated, cst.Call) else ""
        rows: list[Any] = [iterated]
        if isinstance(iterated, cst.Call):
            if called not in {"zip", "enumerate"}:
                return None
            rows = [a.value for a in iterated.args]
            if not isinstance(loop.target, cst.Tuple):
                return None
            targets = [element.value for element in loop.target.elements]  # type: ignore[misc]
        if called == "enumerate":
            if not isinstance(targets[0], cst.Name) or len(rows) != 1 or len(targets) != 2:
                return None
            counter, targets = targets[0].value, targets[1:]
        else:
            start, end = source.outer_span(loop.target)
            target = source.code(loop.target)
            if isinstance(loop.target, cst.Tuple) and not loop.target.lpar:
                target = f"({target})"
            edits.append(Edit(start, end, f"{counter}, {target}"))
            edits.append(source.replace(iterated, f"enumerate({source.code(iterated)})"))
        lines = [
            f"{target.value} = {text}[{counter}]"
            for row, target in zip(rows, targets, strict=False)
            if (text := written(source, row)) is not None and isinstance(target, cst.Name)
        ]
        if called == "zip":  # of several only what is written has to be a view of its own
            names = _written_in(source, loop)
            lines = [line for line in lines if line.split(" ", 1)[0] in names]
        if not lines:
            return None
        first = source.insert_lines(loop.body.body[0], "\n".join(lines), after=False)
        if first is None:
            return None
        return candidate(
            f"take what is written by index at {at(place)}", source.path, [*edits, first]
        )


def _written_in(source: Source, loop: Any) -> set[str]:
    """The names that the lines of a loop write in place."""
    import libcst as cst

    return {
        owner
        for node in source.nodes(loop.body)
        if isinstance(node, cst.BaseSmallStatement)
        and (owner := owner_of_write(source, node)) is not None
    }


class OfWhatIsAliased:
    """`mem = q.detach().numpy()`: the memory that is written becomes a copy of `q`'s.

    The name itself is bound to the copy, so that whoever reads `q` below sees the writes as before.
    """

    codes = frozenset({"GX401", "GX402"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        for _, source, statement in case.statements(case.culprits[:2]):
            function = source.function_of(statement)
            names = {n.value for n in source.nodes(statement) if isinstance(n, cst.Name)}
            end = source.span(statement)[0]
            for node in source.nodes(function):
                if not isinstance(node, cst.Assign) or source.span(node)[1] > end:
                    continue
                name = _aliased(source, node.value)
                bound = source.code(node.targets[0].target)
                if name is None or bound not in names or source.function_of(node) is not function:
                    continue
                if is_read_after(source, node, name):
                    edit = source.insert_before(node, f"{name} = {name}.clone()")
                    title = f"copy `{name}` before {source.path.rsplit('/', 1)[-1]}"
                    title += f":{source.lines_of(node)[0]}, where its memory gets a second name"
                    yield candidate(title, source.path, [edit])


_ALIASES = {"detach", "numpy", "data", "view", "reshape", "view_as", "data_ptr", "T", "t"}


def _aliased(source: Source, node: Any) -> str | None:
    """`q` of `q.detach().numpy()`; None where no call or attribute of the chain is an alias."""
    import libcst as cst

    found = False
    while True:
        if isinstance(node, cst.Call) and isinstance(node.func, cst.Attribute):
            node = node.func
        elif isinstance(node, cst.Attribute) and node.attr.value in _ALIASES:
            node, found = node.value, True
        else:
            return written(source, node) if found and not isinstance(node, cst.Call) else None


def writes_unrecorded(case: Case) -> bool:
    """Whether the write goes through `.data` or `.detach()`: autograd had a part in the tensor.

    The write has no derivative then, and whether it ought to have one only the author knows. Within
    the forward() of an autograd.Function it is what the Function's backward() is written for.
    """
    import libcst as cst

    for place in case.culprits[:1]:
        source = case.source(place)
        statement = source.small_statement_at(place.line) if source is not None else None
        if source is None or statement is None:
            return True
        function = source.function_of(statement)
        if isinstance(function, cst.FunctionDef) and function.name.value == "forward":
            first = [*function.params.params][:1]
            if first and first[0].name.value == "ctx":
                return False
        names = {n.value for n in source.nodes(statement) if isinstance(n, cst.Name)}
        nodes = [statement]
        for node in source.nodes(function):
            if isinstance(node, cst.Assign) and source.code(node.targets[0].target) in names:
                nodes.append(node)
        return any(
            isinstance(n, cst.Attribute) and n.attr.value in {"data", "detach"}
            for node in nodes
            for n in source.nodes(node)
        )
    return False


class RecordedWrite:
    """`h.data.clamp_(0, 1)` becomes `h = h.clamp(0, 1)`, which autograd takes part in."""

    codes = frozenset({"GX401"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        for place, source, statement in case.statements(case.culprits[:1]):
            owner = owner_of_write(source, statement)
            if owner is None or not owner.endswith(".data"):
                continue
            name = owner.removesuffix(".data")
            edits: list[Edit | None] = [
                Edit(source.span(n.value)[1], source.span(n)[1], "")
                for n in source.nodes(statement)
                if isinstance(n, cst.Attribute) and written(source, n) == owner
            ]
            if not is_read_after(source, statement, name):
                continue
            call = statement.value if isinstance(statement, cst.Expr) else None
            called = call.func if isinstance(call, cst.Call) else None
            if isinstance(called, cst.Attribute) and written(source, called.value) == owner:
                start = source.span(call)[0]  # type: ignore[arg-type]
                edits += [Edit(start, start, f"{name} = ")]
                edits += [source.replace(called.attr, called.attr.value.removesuffix("_"))]
                title = f"let autograd see the write at {at(place)}"
                yield candidate(title, source.path, edits)
                continue
            target = getattr(statement, "target", None)
            if isinstance(statement, cst.AugAssign) and written(source, target) == owner:
                sign = source.text[
                    source.span(statement.target)[1] : source.outer_span(statement.value)[0]
                ]
                sign = sign.strip().removesuffix("=")
                text = f"{name} = {name} {sign} ({source.code(statement.value)})"
                edits = [source.replace(statement, text)]
            else:
                edits.append(source.insert_before(statement, f"{name} = {name}.clone()"))
            yield candidate(f"let autograd see the write at {at(place)}", source.path, edits)


_SHARES_MEMORY = {"from_numpy", "as_tensor", "asarray", "frombuffer", "from_dlpack", "from_file"}


def _is_copied(source: Source, call: Any) -> bool:
    """Whether the call is of no function of torch's, or a copy is made of what it gives."""
    import libcst as cst

    outer = source.parent(call)
    copied = isinstance(outer, cst.Attribute) and outer.attr.value == "clone"
    return copied or not is_namespace(source, call.func.value)


class OfNumpyMemory:
    """torch gets memory of its own: `torch.from_numpy(buffer).clone()`."""

    codes = frozenset({"GX401", "GX402", "GX405"})

    def propose(self, case: Case) -> Iterator[Candidate | None]:
        import libcst as cst

        for source in case.files():
            for node in source.nodes():
                if not isinstance(node, cst.Call) or not isinstance(node.func, cst.Attribute):
                    continue
                if node.func.attr.value in _SHARES_MEMORY and not _is_copied(source, node):
                    line = source.lines_of(node)[0]
                    name = source.path.rsplit("/", 1)[-1]
                    end = source.span(node)[1]
                    title = f"give torch a copy of its own at {name}:{line}"
                    yield candidate(title, source.path, [Edit(end, end, ".clone()")])


STRATEGIES = (
    ByIndex(),
    RecordedWrite(),
    OfWhatIsAliased(),
    BeforeTheWrite(),
    AtTheSave(),
    WhereItIsHandedIn(),
    EachByItself(),
    OfTheViews(),
    OfNumpyMemory(),
)
