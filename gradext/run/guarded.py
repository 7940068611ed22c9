"""A decorator that keeps the errors of gradext's own methods from the program. Imports no torch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

from gradext.base import errors, interrupts

P = ParamSpec("P")


def guarded(method: Callable[P, None]) -> Callable[P, None]:
    """The method, wrapped: an error in it is noted for the end of the report, and not raised.

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
