"""A statement that saves what it writes: `h[t + 1] = cell(h[t])`, with a copy where it reads.

A copy made above such a statement is written by it all the same, after it was saved. Works on
source text through `ast` only.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from gradext.diagnosis.model import Frame, Site
from gradext.rules.rewrite import saver_copy
from gradext.source import bindings, sites, statements

# They read no values, or say how large the result is to be.
_NO_READ = {
    *("size", "dim", "numel", "stride", "new_zeros", "new_ones", "new_empty", "new_full"),
    *("new_tensor", "expand_as", "view_as", "reshape_as", "type_as", "element_size", "is_floating"),
    *("zeros_like", "ones_like", "empty_like", "rand_like", "randn_like", "full_like", "len"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ReadCopy:
    """How a statement that saves what it writes is to read.

    Attributes:
        help: all that is to be done, where nothing else saves what it writes.
        statement: the statement with its own copies, to be typed below a copy of the whole; None
            where a copy of the whole is of no use.
        is_aliased: it reads what it writes under another name too, which a later round writes:
            copies where the statement reads are not enough without one of the whole.
    """

    help: str | None
    statement: str | None
    is_aliased: bool = False


def within(culprit: Site, savers: Iterable[Site]) -> list[Site]:
    """The savers that the statement of a write runs itself, before it writes."""
    node = statements.statement(culprit)
    if node is None or culprit.stack or isinstance(node, statements.BLOCKS):
        return []
    return [saver for saver in savers if _depth(culprit, node, saver) is not None]


def read_copy(culprit: Site, savers: Sequence[Site]) -> ReadCopy | None:
    """None where a copy above the statement is as good as any.

    Args:
        savers: those that lie within the statement.
    """
    node, written = statements.statement(culprit), bindings.written_name(culprit)
    if node is None or written is None or not savers:
        return None
    values = _values(node)
    wanted: list[ast.expr] = []
    for saver in savers:
        expression = _expression_at(culprit, node, saver)
        wanted += _reads([expression], written) if expression is not None else []
    wanted = wanted or _reads(values, written)
    if wanted:
        text = saver_copy.with_copies(node, wanted)
        if _reads_alias(culprit, values, written):
            return ReadCopy(None, text, is_aliased=True)
        return ReadCopy(saver_copy.told(node, wanted, culprit.frame), text)
    inner = [
        frame
        for saver in savers
        for frame in (saver.frame, *saver.callers)[: _depth(culprit, node, saver)]
    ]
    for frame in inner:
        told = _in_function(frame, written)
        if told is not None:
            return ReadCopy(told, None)
    root = written.split(".")[0].split("[")[0]
    given = any(isinstance(n, ast.Name) and n.id == root for v in values for n in ast.walk(v))
    # What a method reads of `self` was looked for; what a function reads of an argument was not.
    return ReadCopy(None, None) if inner and given and root != "self" else None


def _depth(culprit: Site, node: ast.stmt, saver: Site) -> int | None:
    """How many calls below the statement of the write a save was made; None if not below it."""
    here = culprit.frame
    for number, frame in enumerate((saver.frame, *saver.callers)):
        is_same = (frame.file, frame.function) == (here.file, here.function)
        if is_same and node.lineno <= frame.line <= (node.end_lineno or node.lineno):
            return number
    return None


def _expression_at(culprit: Site, node: ast.stmt, saver: Site) -> ast.expr | None:
    """What of the statement ran when a tensor was saved; None where Python keeps no columns."""
    depth = _depth(culprit, node, saver)
    if depth is None:
        return None
    found = saver_copy.expression_of((saver.frame, *saver.callers)[depth])
    return found[1] if found is not None and found[2] else None


def _values(node: ast.stmt) -> list[ast.expr]:
    """What a statement reads, without the place that it writes."""
    if isinstance(node, (ast.Assign, ast.AugAssign)):
        return [node.value]
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        call = node.value
        return [*call.args, *(k.value for k in call.keywords if k.arg != "out")]
    return []


def _reads(values: Sequence[ast.expr], written: str) -> list[ast.expr]:
    """The outermost parts of expressions that are a tensor, or an item or a slice of it."""
    return [node for value in values for node in _parts(value, written)]


def _parts(node: ast.AST, written: str) -> Iterator[ast.expr]:
    if isinstance(node, ast.expr) and _is_part(node, written):
        if isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
            yield node
        return
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == written:
        return  # `h.shape`, `h.device`
    if isinstance(node, ast.Call):
        called = node.func
        short = called.attr if isinstance(called, ast.Attribute) else ast.unparse(called)
        if short in _NO_READ:
            # `a.expand_as(h)` reads `a`.
            if isinstance(called, ast.Attribute) and short.endswith("_as"):
                yield from _parts(called.value, written)
            return
        if isinstance(called, ast.Attribute):
            yield from _parts(called.value, written)
        for given in (*node.args, *(k.value for k in node.keywords)):
            yield from _parts(given, written)
        return
    for child in ast.iter_child_nodes(node):
        yield from _parts(child, written)


def _is_part(node: ast.expr, written: str) -> bool:
    at = node
    while isinstance(at, (ast.Name, ast.Attribute, ast.Subscript)):
        if ast.unparse(at) == written:
            return True
        is_view = isinstance(at, ast.Attribute) and at.attr in ("T", "mT", "real", "imag")
        if isinstance(at, ast.Name) or not (is_view or isinstance(at, ast.Subscript)):
            return False
        at = at.value
    return False


def _reads_alias(culprit: Site, values: Sequence[ast.expr], written: str) -> bool:
    """Whether a statement in a loop reads a name that the loop gives a part of what is written.

    `below` of `h[k] = cell(below, h[k])`, which `below = h[k]` follows.
    """
    loops = [n for n in statements.around(culprit) if isinstance(n, (ast.For, ast.While))]
    read = {n.id for value in values for n in ast.walk(value) if isinstance(n, ast.Name)}
    return any(
        isinstance(node, ast.Assign)
        and _is_part(node.value, written)
        and any(isinstance(target, ast.Name) and target.id in read for target in node.targets)
        for node in (ast.walk(loops[0]) if loops else ())
    )


def _in_function(frame: Frame, written: str) -> str | None:
    """The one statement of a function that the write's statement runs, with a copy of its read."""
    place = Site(frame=frame)
    function = bindings.function_of(place)
    root = written.split(".")[0].split("[")[0]
    if function is None or (root != "self" and _binds(function, root)):
        return None
    found: list[tuple[ast.stmt, list[ast.expr]]] = []
    for node in ast.walk(function):
        if isinstance(node, ast.stmt) and not isinstance(node, statements.BLOCKS):
            values = [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.expr)]
            wanted = _reads(values, written)
            if wanted:
                found.append((node, wanted))
    if len(found) != 1:
        return None
    node, wanted = found[0]
    return saver_copy.told(node, wanted, dataclasses.replace(frame, line=node.lineno))


def _binds(function: ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> bool:
    """Whether a name is the function's own, and so another one than the caller's."""
    if any(isinstance(n, ast.arg) and n.arg == name for n in ast.walk(function)):
        return True
    return any(
        isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Store)
        for n in ast.walk(function)
    )


def place_of(savers: Sequence[Site]) -> str:
    """Where a copy is to be read, for a sentence."""
    return " and ".join(dict.fromkeys(sites.where(saver.frame) for saver in savers))
