"""Uncaught errors: heard of once Python has printed them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType

from gradext.run import ending
from gradext.run import session as sessions


def hook(session: sessions.Session) -> Callable[[], None]:
    """Hear of uncaught errors once they were printed, and report after them."""
    previous = sys.excepthook

    def excepthook(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        try:
            previous(kind, error, trace)
        finally:
            if session is sessions.current():
                session.uncaught(error)
                session.report()

    sys.excepthook = excepthook
    unhook_threads = ending.hook_threads(session)

    def undo() -> None:
        # If another hook was put before this one, it still calls it: it then only passes on.
        if sys.excepthook is excepthook:
            sys.excepthook = previous
        unhook_threads()

    return undo
