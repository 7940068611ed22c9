"""The recordings that run, the innermost last."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradext.recording.recording import Recording

recordings: list[Recording] = []


def innermost() -> Recording | None:
    """The innermost recording; another thread may stop it between a look and the next."""
    return next(reversed(recordings), None)
