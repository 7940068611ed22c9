"""Whether a value that left torch on one line may have come back on another, read in the source.

What Python and numpy compute in between no recorder sees. So names are followed: what a statement
assigns from a followed name is followed, too, through the functions that both lines were run in.
Says False where the source is not there. Works on text through `ast` only.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from gradext.diagnosis.model import Frame
from gradext.source import syntax

_ROUNDS = 8  # of following; each goes through all statements of a function
_INSIDE = ("<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>", "<lambda>")
_WRITES_FIRST = {"copyto", "put", "place", "putmask", "memmove", "pack_into"}
# Calls whose result is the memory of what they are given, and methods that give that on.
_OF_MEMORY = {"frombuffer", "from_numpy", "ndarray", "memoryview", "asarray", "as_tensor", "numpy"}
_OF_VIEWS = {"reshape", "view", "ravel", "squeeze", "unsqueeze", "transpose", "permute", "cast"}
_MAKES = ("__init__", "__post_init__", "__enter__")
_OBJECTS = ("self", "cls")  # too much hangs on them to be followed as a whole


class ValueFlow:
    """Answers for one diagnosis, which asks of each round of a loop about the same few lines."""

    def __init__(self) -> None:
        self._lines: dict[_Place, _Line] = {}
        self._followed: dict[tuple[_Place, ...], frozenset[str]] = {}
        self._answers: dict[tuple[tuple[_Place, ...], tuple[_Place, ...]], bool] = {}

    def leads(self, left: Sequence[Frame], came: Sequence[Frame]) -> bool:
        """Whether a value that left at the frames `left` may be what came back at `came`.

        Args:
            left, came: innermost first, as a recording has them.
        """
        outer, inner = [*left][::-1], [*came][::-1]
        key = tuple(map(_place, outer)), tuple(map(_place, inner))
        if key not in self._answers:
            self._answers[key] = self._leads(outer, inner)
        return self._answers[key]

    def returns(self, frame: Frame) -> bool:
        """Whether what a line of a function computes is what the function returns."""
        return self._escapes([frame]) == set()

    def _leads(self, outer: Sequence[Frame], inner: Sequence[Frame]) -> bool:
        at = 0
        while at < min(len(outer), len(inner)) and _place(outer[at]) == _place(inner[at]):
            at += 1
        if at and (
            at == len(outer) or at == len(inner) or _function(outer[at]) != _function(inner[at])
        ):
            # Both within one statement: `torch.tensor(score(x))`, where it leaves in score().
            return at >= len(outer) or self._escapes(outer[at:]) is not None
        if at >= len(outer) or at >= len(inner) or _function(outer[at]) != _function(inner[at]):
            return False
        deeper = outer[at:]
        key = tuple(map(_place, deeper))
        if key not in self._followed:
            self._followed[key] = frozenset(self._followed_from(deeper))
        followed = self._followed[key]
        if not followed:
            return False
        target = self._line(inner[at])
        return not followed.isdisjoint(target.reads | target.targets)

    def _followed_from(self, frames: Sequence[Frame]) -> set[str]:
        """The names that hold the value in the function of the first frame, the outermost."""
        here, *deeper = frames
        node = self._line(here).node
        if node is None:
            return set()
        start = set(self._line(here).targets)
        if deeper:
            ways = self._escapes(deeper)
            if ways is None:
                return set()
            if ways:  # through attributes of an object: of this one, or of whose method was called
                if not self._hands_on_its_object(deeper[0]):
                    start.clear()  # what the call returns has not got the value
                start |= ways | _objects_called(node, ways, deeper[0].function)
        return self._closure(here, start)

    def _escapes(self, frames: Sequence[Frame]) -> set[str] | None:
        """How a value gets out of the functions of `frames`, outermost first: None for not at all.

        An empty set: it is returned. Else the attributes of `self` that hold it, and names that are
        `global` or `nonlocal` there.

        A library's function that the user's own code is called by hands on what that returns
        (Module.__call__). One in which the value left need not: a check of arguments reads truth
        values of them, and returns none. So these are read, where they have a source.
        """
        ways: set[str] = set()
        is_outside = False
        for frame in reversed(frames):
            is_outside = is_outside or frame.is_user
            if frame.function.rsplit(".", 1)[-1] in _INSIDE or is_outside > frame.is_user:
                continue
            line = self._line(frame)
            if line.node is None:
                if not frame.is_user:
                    continue
                return None
            followed = self._closure(frame, line.targets | ways)
            kept = {name for name in followed if name.startswith("self.")}
            kept |= followed & line.function.outside
            if isinstance(line.node, ast.Return) or any(
                not followed.isdisjoint(reads) for reads in line.function.returned
            ):
                ways = set()
            elif kept:
                ways = kept
            else:
                return None
        return ways

    def _hands_on_its_object(self, frame: Frame) -> bool:
        """Whether a call of a method gives its object: `Batch(x)`, or one with `return self`."""
        if frame.function.rsplit(".", 1)[-1] in _MAKES:
            return True
        function = self._line(frame).function.node
        return any(
            isinstance(part, ast.Return)
            and isinstance(part.value, ast.Name)
            and part.value.id in _OBJECTS
            for part in _parts(function)
        )

    def _closure(self, frame: Frame, start: Iterable[str]) -> set[str]:
        """`start`, and all names of the frame's function that are made of those."""
        followed = {name for name in start if name not in _OBJECTS}
        statements = self._line(frame).function.statements
        for _ in range(_ROUNDS if followed else 0):
            before = len(followed)
            for reads, targets in statements:
                if not followed.isdisjoint(reads):
                    followed |= targets
            if len(followed) == before:
                break
        return followed

    def _line(self, frame: Frame) -> _Line:
        place = _place(frame)
        known = self._lines.get(place)
        if known is None:
            known = self._lines[place] = self._read(frame)
        return known

    def _read(self, frame: Frame) -> _Line:
        around = syntax.statements(frame.file, frame.line)
        scope = _scope(frame, around)
        function = _function_of(scope)
        if not around:
            return _Line(None, frozenset(), frozenset(), function)
        node = around[-1]
        return _Line(node, frozenset(_reads(node)), frozenset(_targets(node)), function)


def _objects_called(node: ast.stmt, ways: Iterable[str], function: str) -> set[str]:
    """Whose methods a statement calls: `a` of `a.f(x)`; and `net.aux` of `net(x)`, for `self.aux`.

    What is called may be a function as well: then nothing reads an attribute of that name. Of
    several calls it is the one by the name of `function`, where there is one.
    """
    called = [n.func for n in ast.walk(node) if isinstance(n, ast.Call)]
    name = function.rsplit(".", 1)[-1]
    called = [
        c
        for c in called
        if name in (getattr(c, "attr", ""), getattr(c, "id", ""))  # an Attribute, or a Name
    ] or called
    owners = {_dotted(c.value) for c in called if isinstance(c, ast.Attribute)}
    objects = {text for text in owners if text is not None and text not in _OBJECTS}
    for text in filter(None, map(_dotted, called)):
        objects |= {f"{text}.{way.removeprefix('self.')}" for way in ways}
    return objects


_Place = tuple[str, str, int]


class _Function(NamedTuple):
    """What the statements of a function, or of a module, do with names."""

    node: ast.AST | None
    statements: tuple[tuple[frozenset[str], frozenset[str]], ...]  # names read, names followed on
    returned: tuple[frozenset[str], ...]  # read by each `return` and `yield`
    outside: frozenset[str]  # names that are `global` or `nonlocal`

    @classmethod
    def of(cls, node: ast.AST | None) -> _Function:
        parts = [*_parts(node)]
        statements = [part for part in parts if isinstance(part, ast.stmt)]
        ways = [(_reads(each), _targets(each) - {*_OBJECTS}) for each in statements]
        ways += _into_memory(statements)
        return cls(
            node,
            tuple((frozenset(reads), frozenset(targets)) for reads, targets in ways),
            tuple(
                frozenset(_reads(part.value))
                for part in parts
                if isinstance(part, (ast.Return, ast.Yield)) and part.value is not None
            ),
            frozenset(
                name
                for part in parts
                if isinstance(part, (ast.Global, ast.Nonlocal))
                for name in part.names
            ),
        )


def _function_of(scope: ast.AST | None) -> _Function:
    """_Function.of(), read once for each tree: what was read is kept in the node (syntax.py)."""
    if scope is None:
        return _Function.of(scope)
    kept = vars(scope).get(_KEPT)
    if kept is None:
        found = _Function.of(scope)
        setattr(scope, _KEPT, found[1:])  # not the node: that is a cycle
        return found
    return _Function(scope, *kept)


_KEPT = "gradext_value_flow"  # an attribute of a node: ast's own functions read none but `_fields`


class _Line(NamedTuple):
    """The statement that a frame is in, and its function."""

    node: ast.stmt | None
    reads: frozenset[str]
    targets: frozenset[str]
    function: _Function


def _place(frame: Frame) -> _Place:
    return frame.file, frame.function, frame.line


def _function(frame: Frame) -> tuple[str, str]:
    return frame.file, frame.function


def _scope(frame: Frame, statements: Sequence[ast.stmt]) -> ast.AST | None:
    """The function around a frame's line, or the module; `statements` are those around the line."""
    name = frame.function.rsplit(".", 1)[-1]
    for node in reversed(statements):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (
            node.name == name or name in _INSIDE
        ):
            return node
    return syntax.around(frame.file, frame.line)


def _parts(scope: ast.AST | None) -> Iterator[ast.AST]:
    """The statements and expressions of a function, without those of functions within it."""
    pending = list(ast.iter_child_nodes(scope)) if scope is not None else []
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            pending += ast.iter_child_nodes(node)


def _heads(node: ast.AST) -> list[ast.AST]:
    """What a statement evaluates itself, without the statements in its block."""
    if isinstance(node, (ast.For, ast.AsyncFor)):
        return [node.iter]
    if isinstance(node, (ast.If, ast.While)):
        return [node.test]
    if isinstance(node, (ast.With, ast.AsyncWith)):
        return [item.context_expr for item in node.items]
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Try)):
        return []
    return [node]


def _reads(node: ast.AST) -> set[str]:
    """The names that a statement or an expression reads, with those of attributes: `a`, `a.b`."""
    found = set()
    for head in _heads(node):
        for part in ast.walk(head):
            if isinstance(part, (ast.Name, ast.Attribute)):
                is_read = isinstance(part.ctx, ast.Load) or isinstance(node, ast.AugAssign)
                if is_read and (text := _dotted(part)) is not None:
                    found.add(text)
    return found - set(_OBJECTS)


def _targets(node: ast.AST) -> set[str]:
    """What a statement gives a value to: names, attributes, containers that an item is put in."""
    targets: list[ast.AST] = []
    if isinstance(node, ast.Assign):
        targets += node.targets
    elif isinstance(node, (ast.AnnAssign, ast.AugAssign, ast.For, ast.AsyncFor)):
        targets.append(node.target)
    elif isinstance(node, (ast.With, ast.AsyncWith)):
        targets += [item.optional_vars for item in node.items if item.optional_vars]
    for part in (n for head in _heads(node) for n in ast.walk(head)):
        if isinstance(part, ast.NamedExpr):
            targets.append(part.target)
        elif isinstance(part, ast.Call):
            targets += [word.value for word in part.keywords if word.arg == "out"]
            called = part.func
            name = called.attr if isinstance(called, ast.Attribute) else ""
            if name in _WRITES_FIRST:
                targets += part.args[:1]
            is_whole = isinstance(node, ast.Expr) and part is node.value
            if is_whole and isinstance(called, ast.Attribute) and part.args:
                targets.append(called.value)  # `losses.append(x)`
    return set(_names_of(targets))


def _into_memory(statements: Sequence[ast.stmt]) -> list[tuple[set[str], set[str]]]:
    """Steps from each array that is written to the memory it was made of, and on from there."""
    shared = [*map(_shared_memory, statements)]
    filled = {name for each in statements for name in _filled(each)}
    found: list[tuple[set[str], set[str]]] = []
    for _ in range(_ROUNDS):
        more = [pair for pair in shared if pair[0] & filled and pair not in found]
        filled |= {name for _, theirs in more for name in theirs}
        found += more
    return found


def _filled(node: ast.stmt) -> set[str]:
    """What a statement writes into, without giving it a new value: `a[:] = x`, `copyto(a, x)`."""
    bound = {
        text for target in getattr(node, "targets", ()) if (text := _dotted(target)) is not None
    }
    return _targets(node) - bound


def _shared_memory(node: ast.stmt) -> tuple[set[str], set[str]]:
    """`ours = np.frombuffer(memory).reshape(2, 3)`: what is written to `ours` is in `memory`.

    Two empty sets for a statement of another kind.
    """
    if not isinstance(node, ast.Assign) or len(node.targets) != 1:
        return set(), set()
    ours, value = _dotted(node.targets[0]), node.value
    while isinstance(value, ast.Call):
        called = value.func
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        words = {word.arg: word.value for word in value.keywords}
        if name in _OF_MEMORY and "buffer" in words:
            value = words["buffer"]
        elif name in _OF_MEMORY and value.args and name != "ndarray":
            value = value.args[0]
        elif name in _OF_VIEWS | _OF_MEMORY and isinstance(called, ast.Attribute):
            value = called.value
        else:
            return set(), set()
    while isinstance(value, ast.Subscript):
        value = value.value
    theirs = _dotted(value)
    if value is node.value or ours is None or theirs is None:
        return set(), set()
    return {ours}, {theirs}


def _names_of(targets: Iterable[ast.AST]) -> Iterator[str]:
    pending = list(targets)
    while pending:
        target = pending.pop()
        if isinstance(target, (ast.Tuple, ast.List)):
            pending += target.elts
        elif isinstance(target, (ast.Starred, ast.Subscript)):
            pending.append(target.value)
        elif isinstance(target, ast.Call) and isinstance(target.func, ast.Attribute):
            pending.append(target.func.value)  # `t.numpy()`: what is written there is t's
        elif (text := _dotted(target)) is not None:
            yield text


def _dotted(node: ast.AST) -> str | None:
    """`a.b.c` of such an expression; None for any other."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return ".".join([node.id, *reversed(names)])
