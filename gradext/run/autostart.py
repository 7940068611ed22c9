"""Recording in a program that `gradext run` did not start: by the environment, or by install().

Owns when a session begins in such a process and the hooks that tell it of uncaught errors. The
wheel's gradext-autostart.pth leads here from every start of Python where GRADEXT_RUN or
GRADEXT_RECORD is set, so nothing heavy is imported before torch is.
"""

from __future__ import annotations

import os
import sys

from gradext.base import errors, terminal
from gradext.run import excepthook, upper, variables
from gradext.run import session as sessions
from gradext.run.settings import ENVIRONMENT, BadVariable, Settings

TRIAL = "GRADEXT_FIX"  # set by `gradext fix` in the programs that it tries


def wanted() -> bool:
    """Whether the environment asks for this process to be recorded, or seems to."""
    if is_ignored():
        return False
    return bool(os.environ.get(ENVIRONMENT)) or not variables.is_off()


def is_ignored() -> bool:
    """Whether this process must not take orders from the environment.

    Under -E and -I Python itself ignores its variables; a program that runs with other rights than
    its caller has must not do what the caller's environment says.
    """
    if sys.flags.ignore_environment or sys.flags.isolated:
        return True
    for real, effective in (("getuid", "geteuid"), ("getgid", "getegid")):
        if hasattr(os, real) and getattr(os, real)() != getattr(os, effective)():
            return True
    return False


def start() -> None:
    """Record this process if the environment asks for it. Never raises."""
    try:
        if sessions.current() is None and wanted():
            _start()
    except BadVariable as error:
        terminal.say(f"gradext: not recording: {error}")
    except Exception as error:
        terminal.say(f"gradext: not recording: {errors.describe(error)}")


def _start() -> None:
    settings = Settings.from_environment()
    if settings is None:
        if variables.is_off():
            return
        settings = variables.settings()
    session = sessions.Session(settings, write_early=False)
    session.begin()
    session.settings.to_environment()
    excepthook.hook(session)
    if os.environ.get(TRIAL) and not session.is_root:
        upper.join_trial(session)
