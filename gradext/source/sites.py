"""Stacks turned into Sites: which frame is the user's line, and what lies around it.

Pure functions of frames; knows nothing of tensors, graphs or the recorder.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Sequence

from gradext.base import package
from gradext.diagnosis.model import Frame, Site
from gradext.source import cells, expressions, syntax
from gradext.source.frames import CUT

_MOST_STACK = 24


def user_frame(frames: Sequence[Frame]) -> Frame | None:
    """The innermost frame of the user's code; the innermost of any if there is none."""
    return frames[_user_index(frames)] if frames else None


def _user_index(frames: Sequence[Frame]) -> int:
    first = None
    for index, frame in enumerate(frames):
        if frame.is_user:
            if not _is_compiled(frame):
                return index
            first = index if first is None else first
    return first or 0


def _is_compiled(frame: Frame) -> bool:
    """Whether the frame runs what torch.compile made of a function, which has no lines of its own.

    Its code stands at the function's header, where the function itself never runs anything: the
    line that tells a person more is the call.
    """
    name = frame.function.rsplit(".", 1)[-1]
    return any(
        isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.name == name
        and syntax.span(node)[0] <= frame.line < node.body[0].lineno
        for node in syntax.statements(frame.file, frame.line)
    )


def site(
    frames: Sequence[Frame],
    *,
    op: str | None = None,
    version_before: int | None = None,
    version_after: int | None = None,
    label: str = "",
    times: int = 1,
) -> Site | None:
    """The Site of a stack (innermost first); None for an empty one."""
    if not frames:
        return None
    at = _user_index(frames)
    return Site(
        frame=expressions.located(frames[at], op),
        op=op,
        version_before=version_before,
        version_after=version_after,
        stack=tuple(frames[:at][:_MOST_STACK]),
        callers=_callers(frames, at),
        label=label,
        times=times,
        callers_cut=frames[-1] == CUT,
    )


def _callers(frames: Sequence[Frame], at: int) -> tuple[Frame, ...]:
    """The user's frames above frames[at], without what only started the program."""
    above = range(at + 1, len(frames))
    kept = [n for n in above if frames[n].is_user and not _is_compiled(frames[n])]
    if kept and _only_started(frames, kept[-1]):
        kept.pop()
    return tuple(frames[n] for n in kept)


_MULTIPROCESSING = os.sep + os.path.join("multiprocessing", "")


def _only_started(frames: Sequence[Frame], at: int) -> bool:
    """Whether frames[at] is a `python -c` that a person did not write, or that calls main() only.

    multiprocessing starts its processes so, where they are not forked.
    """
    frame = frames[at]
    if frame.file != "<string>" or frame.function != "<module>" or at == 0:
        return False
    inner = frames[at - 1]
    of_library = not inner.is_user and _MULTIPROCESSING in inner.file
    return of_library or package.command_is_launcher()


def line_of(place: Site) -> tuple[str, int]:
    return place.frame.file, place.frame.line


def path_of(frames: Iterable[Frame]) -> tuple[tuple[str, int], ...]:
    """The user's lines of a stack: the same line reached in another way has another path."""
    return tuple((frame.file, frame.line) for frame in frames if frame.is_user)


def distinct(sites: Iterable[Site | None], most: int = 3) -> tuple[Site, ...]:
    """The first `most` sites that are on different lines, in order."""
    found: dict[tuple[str, int], Site] = {}
    for place in sites:
        if place is not None and len(found) < most:
            found.setdefault(line_of(place), place)
    return tuple(found.values())


def where(frame: Frame) -> str:
    """ "train.py:31", for use within a sentence; in a notebook "Cell In[3], line 31"."""
    cell = cells.name(frame.file)
    if cell is not None:
        return f"{cell}, line {frame.line}"
    name = frame.file.replace("\\", "/").rsplit("/", 1)[-1]
    return f"{name}:{frame.line}"
