"""The frames that run now, or ran when an error was raised."""

from __future__ import annotations

import sys
from typing import Any

from gradext.base.package import PREFIX


def frames_above() -> list[Any]:
    """The live frames of the calling thread outside gradext, innermost first."""
    found = []
    frame: Any = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith(PREFIX):
            found.append(frame)
        frame = frame.f_back
    return found


def frames_of_error(error: BaseException) -> list[Any]:
    """The live frames of an error's traceback, innermost first."""
    found = []
    traceback = error.__traceback__
    while traceback is not None:
        found.append(traceback.tb_frame)
        traceback = traceback.tb_next
    return found[::-1]
