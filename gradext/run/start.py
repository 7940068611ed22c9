"""What importing gradext does: load its compiled part, or leave torch alone for a while.

In a program that is recorded, torch must be imported by the program itself: what it sets before
that, such as OMP_NUM_THREADS, must still count. Commands of gradext that compute nothing themselves
leave torch alone, too: importing it takes seconds.
"""

from __future__ import annotations

import os
import sys

from gradext.base import torch_import
from gradext.native import build

# The commands of gradext that use the compiled part in their own process.
_COMPUTING = frozenset({"check", "doctor", "lesson"})
_TRIALS = frozenset({"gradext.fix.child", "gradext.fix.stem"})


def begin() -> None:
    """Called by the package when it is imported, and by a process that becomes another one.

    Raises ImportError, one line, where _C is missing.
    """
    if _is_trial():
        return  # the `gradext run` that goes on in it loads what it needs
    arguments = build.program_arguments()
    if not _leaves_torch_alone(arguments):
        _load_or_exit(arguments)
    elif arguments is None:
        from gradext.run import autostart  # lazy: only where the environment asks

        autostart.start()
    elif _COMPUTING.intersection(arguments[:1]):
        # In an environment that asks for recording: gradext's own computing is not recorded.
        torch_import.when_imported(load)


def load() -> None:
    """Load the compiled part, and what is registered for its ops from Python."""
    from gradext import ops  # noqa: F401


def _is_trial() -> bool:
    """Whether `gradext fix` has started this process, to run a program in it."""
    # A process that the program has started in turn is one that the environment asks to record.
    return sys.orig_argv[1:2] == ["-m"] and sys.orig_argv[2] in _TRIALS and not _asked()


def _asked() -> bool:
    return bool({"GRADEXT_RUN", "GRADEXT_RECORD"} & os.environ.keys())


def _leaves_torch_alone(arguments: list[str] | None) -> bool:
    if arguments is not None and not _COMPUTING.intersection(arguments[:1]):
        return True
    if not _asked():
        return False
    from gradext.run import autostart  # lazy: most programs have no such variable

    return autostart.wanted()


def _load_or_exit(arguments: list[str] | None) -> None:
    # `gradext doctor` exists for the case that the compiled part does not load, so that one command
    # may go on without it; the rest of the program ends in one line instead of a traceback.
    try:
        load()
    except ImportError as error:
        if arguments is None:
            raise
        if arguments[:1] != ["doctor"]:
            raise SystemExit(str(error)) from None
