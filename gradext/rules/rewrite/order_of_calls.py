"""Which of two calls came first, in the function that both were made below, and what may move.

Works on frames and source text; knows no tensor.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Sequence

from gradext.diagnosis.model import Frame, Site
from gradext.source import sites, statements, syntax


def meeting(first: Sequence[Frame], second: Sequence[Frame]) -> tuple[Frame, Frame] | None:
    """The lines of the innermost call of one function that two stacks, innermost first, share."""
    found = None
    for one, other in zip(_user(first), _user(second), strict=False):
        if (one.file, one.function) != (other.file, other.function):
            break
        found = one, other
        if one.line != other.line:
            break
    return found


def _user(frames: Sequence[Frame]) -> list[Frame]:
    return [frame for frame in reversed(frames) if frame.is_user]


def may_move_below(site: Site, last: Frame) -> str | None:
    """What of a site can stand below the statement of `last`: "`bank.zero_()` (train.py:9)".

    The statement, if both are in one block; or the loop or `with` around it that does nothing else.
    """
    found = _block(site.frame, last)
    if found is None:
        return None
    moved, *others = found
    # What lies between must not read what the statement gives a name.
    made = _names(moved, ast.Store)
    if any(made & _names(node, ast.Load) for node in others):
        return None
    if not isinstance(moved, statements.BLOCKS):
        return spoken(site.frame)
    does = [node for node in ast.walk(moved) if isinstance(node, ast.stmt)]
    if sum(not isinstance(node, statements.BLOCKS) for node in does) != 1:
        return None  # what else is in the block has to run where it is
    name = sites.where(dataclasses.replace(site.frame, line=moved.lineno))
    return f"the block at {name} that runs `{statements.text_of(site)}`"


def above(moved: Frame, place: Frame) -> Frame | None:
    """The line above which the statement of `moved` can stand, to run before that of `place`."""
    found = _block(place, moved)
    if found is None or isinstance(found[-1], statements.BLOCKS):
        return None
    *others, last = found
    made = set().union(*(_names(node, ast.Store) for node in others))
    if made & _names(last, ast.Load):
        return None
    return Frame(file=place.file, line=others[0].lineno, function=place.function)


def _names(node: ast.AST, context: type[ast.expr_context]) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, context)}


def calls_between(upper: Frame, lower: Frame, name: str) -> bool:
    """Whether a statement of the block between two lines calls what is named: `opt.zero_grad`."""
    return any(
        isinstance(part, ast.Call) and ast.unparse(part.func) == name
        for node in (_block(upper, lower) or [])[1:-1]
        for part in ast.walk(node)
    )


def _block(upper: Frame, lower: Frame) -> list[ast.stmt] | None:
    """The statements of one block from one line's to another's; None where they share none."""
    if (upper.file, upper.function) != (lower.file, lower.function):
        return None
    one, other = (statements.around(Site(frame=frame)) for frame in (upper, lower))
    depth = 0
    while depth < min(len(one), len(other)) and one[depth] is other[depth]:
        depth += 1
    if depth >= min(len(one), len(other)):
        return None
    first, last = one[depth], other[depth]
    parent = one[depth - 1] if depth else syntax.around(upper.file, upper.line)
    for _, block in ast.iter_fields(parent) if parent is not None else ():
        # Not of the two branches of an `if`.
        if isinstance(block, list) and first in block and last in block:
            found = block[block.index(first) : block.index(last) + 1]
            return found if len(found) > 1 else None
    return None


def between(start: Frame, end: Frame, last: Frame) -> list[ast.stmt]:
    """The statements above the line of `end` by which that of `start` leads to that of `last`.

    The first one is that of `start`; empty where the three are not in one block.
    """
    block = _block(start, last)
    if block is None or (start.file, start.function) != (end.file, end.function):
        return []
    made = _given(block[0])
    reached = [block[0]]
    for node in block[1:-1]:
        if made & _names(node, ast.Load) and _given(node):
            made |= _given(node)
            reached.append(node)
    wanted = _names(block[-1], ast.Load)
    found: list[ast.stmt] = []
    for node in reversed(reached):
        if node is block[0] or wanted & _given(node):
            wanted |= _names(node, ast.Load)
            if (node.end_lineno or node.lineno) < end.line:
                found.append(node)
    return found[::-1]


def _given(node: ast.stmt) -> set[str]:
    """The names that a statement gives a value to, or adds to."""
    given = _names(node, ast.Store)
    for part in ast.walk(node):
        call = part.value if isinstance(part, ast.Expr) else None
        called = call.func if isinstance(call, ast.Call) else None
        if isinstance(called, ast.Attribute) and called.attr in ("append", "extend", "update"):
            given |= _names(called.value, ast.Load)  # `losses.append(f(x))`
        if isinstance(part, (ast.Attribute, ast.Subscript)) and isinstance(part.ctx, ast.Store):
            given |= _names(part.value, ast.Load)
    return given


def line_in(site: Site, frame: Frame) -> Frame | None:
    """What a site's stack ran in the function of `frame`."""
    for own in (site.frame, *site.callers):
        if (own.file, own.function) == (frame.file, frame.function):
            return own
    return None


def spoken(frame: Frame) -> str:
    """`losses(judge, genuine)` (train.py:42)."""
    return f"`{statements.text_of(Site(frame=frame))}` ({sites.where(frame)})"
