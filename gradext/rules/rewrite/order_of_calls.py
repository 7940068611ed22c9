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


def line_in(site: Site, frame: Frame) -> Frame | None:
    """What a site's stack ran in the function of `frame`."""
    for own in (site.frame, *site.callers):
        if (own.file, own.function) == (frame.file, frame.function):
            return own
    return None


def spoken(frame: Frame) -> str:
    """`losses(judge, genuine)` (train.py:42)."""
    return f"`{statements.text_of(Site(frame=frame))}` ({sites.where(frame)})"
