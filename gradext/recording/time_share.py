"""How much of the program's time the checks for silent errors may take."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

# What may be silently wrong makes a full look at the graph necessary, which takes a while. Never
# spend more than this share of the program's time on it.
_SHARE = 0.05
_GUARDED_SHARE = 0.2  # with a guard, of looks for lost gradients, which compare no bytes
_unlimited = 0  # guards that are on: a program that asks for one wants all checks
_looked = {"recognised": 0.0, "explained": 0.0, "skipped": 0.0}
_since = (0.0, 0.0)  # on the clock, and of the processor


@contextlib.contextmanager
def limited(what: str, *, by_guard: bool = True) -> Iterator[bool]:
    """Counts the processor time of a block; whether its share of the run is not used up yet.

    Recognising has a share of its own: one long explanation must not keep others from being
    counted.

    Args:
        by_guard: a guard lifts the limit; else it only raises it.
    """
    import time

    may_look = (by_guard and _unlimited > 0) or _looked[what] <= 1.0
    if not may_look:
        of_run = _GUARDED_SHARE if _unlimited > 0 else _SHARE
        may_look = _looked[what] <= 1.0 + of_run * _run_time()
    _looked["skipped"] += not may_look
    start = time.thread_time()
    try:
        yield may_look
    finally:
        _looked[what] += time.thread_time() - start


def _run_time() -> float:
    """Seconds of the run: of its processor time where that is less than what the clock says.

    The program may have waited; and on a machine that it shares with others the clock goes on
    while it does not run, so that a share by the clock would be a larger one of its work.
    """
    import time

    by_clock, of_processor = _since
    return min(time.perf_counter() - by_clock, time.process_time() - of_processor)


def lift(count: int) -> None:
    """One guard more (1) or less (-1): while one is on, nothing is left out."""
    global _unlimited
    _unlimited += count


def is_lifted() -> bool:
    """Whether a guard is on."""
    return _unlimited > 0


def restart() -> None:
    """Count from now on."""
    global _since
    import time

    _looked.update(recognised=0.0, explained=0.0, skipped=0.0)
    _since = time.perf_counter(), time.process_time()


def skipped() -> str | None:
    """One line on the checks that were left out; None where all were made."""
    if not _looked["skipped"]:
        return None
    return (
        f"{int(_looked['skipped'])} checks for silent errors were left out: they would have "
        f"taken more than {_GUARDED_SHARE if _unlimited > 0 else _SHARE:.0%} of the run"
    )
