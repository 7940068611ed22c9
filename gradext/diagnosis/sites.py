"""Stacks turned into Sites: which frame is the user's line, and what lies around it.

Pure functions of frames; knows nothing of tensors, graphs or the recorder.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gradext.diagnosis.model import Frame, Site

_MOST_STACK = 24


def user_frame(frames: Sequence[Frame]) -> Frame | None:
    """The innermost frame of the user's code; the innermost of any if there is none."""
    for frame in frames:
        if frame.is_user:
            return frame
    return frames[0] if frames else None


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
    at = next((k for k, frame in enumerate(frames) if frame.is_user), 0)
    if not frames:
        return None
    return Site(
        frame=frames[at],
        op=op,
        version_before=version_before,
        version_after=version_after,
        stack=tuple(frames[:at][:_MOST_STACK]),
        callers=tuple(frame for frame in frames[at + 1 :] if frame.is_user),
        label=label,
        times=times,
    )


def line_of(place: Site) -> tuple[str, int]:
    return place.frame.file, place.frame.line


def distinct(sites: Iterable[Site | None], most: int = 3) -> tuple[Site, ...]:
    """The first `most` sites that are on different lines, in order."""
    found: dict[tuple[str, int], Site] = {}
    for place in sites:
        if place is not None and len(found) < most:
            found.setdefault(line_of(place), place)
    return tuple(found.values())


def where(frame: Frame) -> str:
    """ "train.py:31 (step)", for use within a sentence."""
    name = frame.file.replace("\\", "/").rsplit("/", 1)[-1]
    return f"{name}:{frame.line}"
