"""The part of a session that needs torch: imported by name, once the program has imported torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gradext import ops  # noqa: F401  registered, as if the program had imported gradext
from gradext.byte_guard import guard
from gradext.native import _C
from gradext.recording import incidents, own_errors, recording
from gradext.recording.incidents import settle
from gradext.rules.explain import explain
from gradext.run import ending

if TYPE_CHECKING:
    from gradext.run.session import Session

__all__ = ["explain", "own_errors", "settle", "start"]


def start(
    session: Session, current: Callable[[], Session | None], undo: list[Callable[[], None]]
) -> Any:
    """Record this process for `session`. Returns the Recording; `undo` gets what ends the rest."""
    ending.hear_of_forks(current, _C.call_in_child)
    options = session.settings.options
    begun = recording.Recording(options).start()
    undo.append(incidents.subscribe(session.on_incident))
    if options.guard:
        undo.append(guard.start_quietly())
    session.watch_multiprocessing(_C.wrap_run)
    return begun
