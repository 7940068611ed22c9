"""Methods of a session, whose own errors are no business of the program's. Imports no torch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

from gradext.base import errors, interrupts

P = ParamSpec("P")


def guarded(method: Callable[P, None]) -> Callable[P, None]:
    """Nothing that fails in `method` reaches the program; it is told at the end of the report.

    Signals' handlers run after it, and what they raise is the program's.
    """

    @functools.wraps(method)
    def safe(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            session: Any = args[0]
            session.here()
            method(*args, **kwargs)
        except BaseException as error:
            if interrupts.is_the_programs(error):
                raise
            session.note_own(f"{errors.describe(error)} (in {method.__qualname__})")

    return interrupts.deferring(safe)
