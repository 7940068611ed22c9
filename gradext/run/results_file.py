"""Where the JSON of a run may be written: never over a file that the program still uses.

Owns the questions asked of a path before the program begins, and the writing. Imports no torch.
"""

from __future__ import annotations

import os
import stat
import sys

from gradext.base import whole_file
from gradext.base.text import clean


def absolute(path: str) -> str:
    """The path that a report for `path` is written to: the file behind a link, not the link."""
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        regular = True  # to be made, or `problem` says why not
    # What a link to a pipe leads to ("pipe:[123]") is no path.
    return os.path.realpath(path) if regular else os.path.abspath(path)


def problem(path: str) -> str | None:
    """Why the report cannot be written to an absolute path, in one line; None if it seems to be.

    It is written beside the file and then takes its place, so that no reader ever sees half of it.
    Everybody who has the old file open, as `program > file` has, would lose what they write.
    """
    return None if (why := _problem(path)) is None else f"cannot write {clean(path)}: {why}"


def _problem(path: str) -> str | None:
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        return f"there is no folder {clean(folder)}"
    if os.path.islink(path) and not os.path.exists(path):
        return "it is a link that leads nowhere"  # realpath() leaves no other: it leads to itself
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return clean(str(getattr(error, "strerror", None) or error))
    if not stat.S_ISREG(found.st_mode):
        return "it is not a regular file"
    for descriptor in _open_descriptors():
        try:
            same = os.path.samestat(found, os.fstat(descriptor))
        except OSError:
            continue
        if same:
            name = {0: "stdin", 1: "stdout", 2: "stderr"}.get(descriptor)
            return f"it is this process's {name}" if name else "this process has it open"
    try:
        if os.path.samestat(found, os.stat(sys.argv[0])):
            return "it is the program itself"
    except (OSError, ValueError, IndexError, AttributeError):
        pass
    return None


def _open_descriptors() -> list[int]:
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return sorted(int(name) for name in os.listdir(folder) if name.isdecimal())
        except OSError:
            continue
    return [0, 1, 2]


def replace(path: str, text: str) -> None:
    """Write a file whole or not at all, so that a kill leaves a file to read. Raises OSError."""
    whole_file.replace(path, text.encode("utf-8"))
