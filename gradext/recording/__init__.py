"""record(): what happened to tensors while a program ran, and the file that it is saved to.

`recording` has the door, `entry_points` what is wrapped in torch meanwhile, `events` and `tables`
what was noted, `file_format` the file, `incidents` what went wrong and who hears of it, `judge` who
is asked why. The names come when they are asked for: torch is not imported before the program's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradext.recording.recording import Mutations as Mutations
    from gradext.recording.recording import Recording as Recording
    from gradext.recording.recording import record as record


def __getattr__(name: str) -> object:
    if name not in {"Mutations", "Recording", "record"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gradext.recording import recording

    return getattr(recording, name)
