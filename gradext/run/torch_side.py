"""The part of a session that needs torch: imported by name, once the program has imported torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gradext import ops  # noqa: F401  registered, as if the program had imported gradext
from gradext.base import chosen
from gradext.byte_guard import guard
from gradext.native import _C
from gradext.recording import incidents, own_errors, recording
from gradext.recording.drawing import Drawn
from gradext.recording.incidents import settle
from gradext.rules import explain as rules_explain
from gradext.run import ending, telling

if TYPE_CHECKING:
    from gradext.diagnosis.model import Diagnosis
    from gradext.run.session import Session

__all__ = ["explain", "leave_words", "own_errors", "settle", "start"]


def leave_words(text: str, path: str | None) -> None:
    """Set what is printed, on stderr or into a file, if a signal ends this process."""
    words = f"{text}\n".encode(errors="backslashreplace") if text else b""
    _C.set_last_words(words, path or "", telling.has_faulthandler())


def explain(error: BaseException, recording: recording.Recording) -> list[Diagnosis]:
    """What an uncaught error means, without the codes that are ignored."""
    found = rules_explain.explain(error, recording)
    return [diagnosis for diagnosis in found if not chosen.is_ignored(diagnosis.code)]


def start(
    session: Session, current: Callable[[], Session | None], undo: list[Callable[[], None]]
) -> Any:
    """Record this process for `session`. Returns the Recording; `undo` gets what ends the rest."""
    ending.hear_of_forks(current, _C.call_in_child)
    options = session.settings.options
    if not session.is_root:
        options = options._replace(uses=False, times=False)  # only the root draws
    begun = recording.Recording(options).start()
    undo.append(incidents.subscribe(session.on_incident))
    if options.guard:
        undo.append(guard.start_quietly(options.guard, whole_program=session.is_before_torch))
    if begun.drawing is not None:
        session.at_end.append(lambda: _keep_drawn(session, begun))
    session.watch_multiprocessing(_C.wrap_run)
    return begun


def _keep_drawn(session: Session, recording: recording.Recording) -> None:
    """Keep, at the end of the program, what the files that are drawn from events need."""
    if session.is_root and recording.is_running and recording.drawing is not None:
        data = recording.data
        try:
            recording.drawing.note_end(data)
        except Exception as error:  # names alone are lost
            own_errors.count(error, "timeline")
        # Imported here, for files are written under a lock.
        for name in ("drawing_html", "trace"):
            importlib.import_module(f"gradext.reporters.timeline.{name}")
        session.drawn = Drawn(data, recording.drawing)
