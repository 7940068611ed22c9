"""Signals and other exceptions that arrive while gradext's own code runs are the program's.

While gradext diagnoses on the main thread, csrc/base/signals.cpp keeps the program's signal
handlers out of it and calls them afterwards; _C.CutShort ends the diagnosis meanwhile. Imports
nothing of gradext's: the compiled part is used once the program has loaded torch.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from gradext.base.package import library_folders

P = ParamSpec("P")
T = TypeVar("T")


def deferring(function: Callable[P, T]) -> Callable[P, T | None]:
    """`function`, wrapped: a signal ends it early, and the program's handler is called after it.

    A call that a signal has ended returns None. What a handler raises is raised by the call.
    """

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T | None:
        compiled = sys.modules.get("gradext._C")
        call_back = getattr(compiled, "call_back", None)
        if call_back is None:
            return function(*args, **kwargs)
        result: T | None = call_back(function, *args, **kwargs)
        return result

    return called


@contextmanager
def whole() -> Iterator[None]:
    """A block that a signal does not end early: the writing of a file, facts under a lock."""
    compiled = sys.modules.get("gradext._C")
    mark = getattr(compiled, "call_back_whole", None)
    if mark is None:
        yield
        return
    mark(True)
    try:
        yield
    finally:
        mark(False)


def is_the_programs(error: BaseException) -> bool:
    """Whether an exception that was caught in gradext's code is to go on to the program.

    Signals' are kept out of gradext. What is left comes from PyThreadState_SetAsyncExc, by which
    frameworks end threads: it is raised in gradext's own line, of a class that gradext does not
    raise. An exception that user code raised because gradext touched it is not the program's,
    whatever its class: without gradext it would not have been raised.
    """
    compiled = sys.modules.get("gradext._C")
    if isinstance(error, getattr(compiled, "CutShort", ())):
        return True
    trace = error.__traceback__
    if trace is None:
        return not isinstance(error, Exception)
    while trace.tb_next is not None:
        trace = trace.tb_next
    if not _is_library(trace.tb_frame.f_code.co_filename):
        return False
    if not isinstance(error, Exception):
        return True
    module = sys.modules.get(type(error).__module__)
    file = getattr(module, "__file__", None)
    if file is None:  # builtins, __main__ of -c: a bare TimeoutError is what gradext never raises
        return type(error).__module__ == "__main__" or (
            isinstance(error, TimeoutError) and not error.args
        )
    return isinstance(file, str) and not _is_library(file)


@functools.lru_cache(maxsize=1024)
def _is_library(file: str) -> bool:
    return file.startswith(("<frozen", *library_folders()))
