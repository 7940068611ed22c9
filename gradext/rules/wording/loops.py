"""Lines that a loop runs again."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from gradext.diagnosis.model import Frame, Site
from gradext.recording.events import SAVES
from gradext.source import sites, statements

if TYPE_CHECKING:
    from gradext.recording.tables import Data

LOOPS = (ast.For, ast.AsyncFor, ast.While)


def goes_over_made(root: Site | None, shared: Site | None, call: Site | None) -> bool:
    """Whether the loop that runs a call again goes over what was computed before that loop.

    Args:
        root: the line of what the call is made on. shared: of what all of that was computed from;
            it is made in each iteration of the loops farther out, so it is no longer-lived.
        call: the line of the call. The loop is the innermost one around it, or around its callers.
    """
    if root is None or shared is None or call is None:
        return False
    around = [
        (place, node)
        for place in (call.frame, *call.callers)
        for node in reversed(_within_function(place))
        if isinstance(node, LOOPS)
    ]
    return (
        bool(around)
        and not _is_within(root, *around[0])
        and all(_is_within(shared, *farther) for farther in around[1:])
    )


def _within_function(place: Frame) -> list[ast.stmt]:
    """The statements around a line, outermost first, of its own function."""
    around = statements.around(Site(place))
    for index in range(len(around) - 1, -1, -1):
        if isinstance(around[index], (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            return around[index + 1 :]
    return around


def _is_within(made: Site, place: Frame, loop: ast.stmt) -> bool:
    """Whether a loop ran a line; what a `for` goes over is computed before it, if by no generator.

    Args:
        place: a line in the loop, of the same call of the function.
    """
    frames = (made.frame, *made.callers)
    for index, at in enumerate(frames):
        if (at.file, at.function) != (place.file, place.function):
            continue
        if not loop.lineno <= at.line <= (loop.end_lineno or loop.lineno):
            continue
        is_header = isinstance(loop, ast.For) and at.line < loop.body[0].lineno
        if not is_header or any(map(_is_generator, frames[:index])):
            return True
    return False


def _is_generator(frame: Frame) -> bool:
    functions = [n for n in statements.around(Site(frame)) if isinstance(n, ast.FunctionDef)]
    body = ast.walk(functions[-1]) if functions else ()
    return frame.function.endswith("<genexpr>") or any(
        isinstance(node, (ast.Yield, ast.YieldFrom)) for node in body
    )


def runs_again(data: Data, thread: int, sequence: int, made: Site) -> bool:
    """Whether the line of `made`, called from the same lines, makes nodes from `sequence` on."""
    wanted = sites.path_of((made.frame, *made.callers))
    table = data.saves
    later = (table[:, SAVES.thread] == thread) & (table[:, SAVES.sequence] >= sequence)
    stacks = set(table[later, SAVES.stack].tolist())
    first, _ = data.node_stack(thread, sequence)  # a row covers all nodes up to the next one
    return any(sites.path_of(data.frames(stack)) == wanted for stack in {*stacks, first})
