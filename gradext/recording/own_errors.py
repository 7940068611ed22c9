"""gradext's own errors: counted here, told in the report, never raised into the program."""

from __future__ import annotations

import threading

from gradext.base import errors
from gradext.base.met_before import MetBefore
from gradext.native import _C, torch_internals
from gradext.recording import time_share

_errors = MetBefore[None]()  # by their texts
_lock = threading.RLock()  # a finalizer that runs within count() may fail and count, too
_unexplained = 0


def _in_child() -> None:
    """The thread that holds the lock may be none of a forked process's."""
    global _lock
    _lock = threading.RLock()


_C.call_in_child(_in_child)


def count(error: BaseException, where: str) -> None:
    """Count an error of gradext's own; it is reported at the end and goes nowhere else."""
    text = f"{where}: {errors.describe(error)}"
    with _lock:
        _errors.meet(text, None)


def not_explained() -> None:
    """Count a finding of a guard beyond those that it explains."""
    global _unexplained
    _unexplained += 1


def lines() -> list[str]:
    """gradext's own errors so far, and what it left out, one line each."""
    counted = _errors.counts()
    found = [text if times == 1 else f"{text} ({times} times)" for text, times in counted]
    faults, last = _C.recorder_faults()
    if faults:
        times = "" if faults == 1 else f" ({faults} times)"
        found.append(f"recorder: {last}{times}")
    if _unexplained:
        found.append(f"{_unexplained} more findings of a guard were not explained")
    found += [each.line for each in torch_internals.missing]
    skipped = time_share.skipped()
    return found if skipped is None else [*found, skipped]
