"""What a person has chosen for all processes of a run: codes not to be told, whose code is whose.

Three variables of the environment, which a process hands to those that it starts. `gradext run`
sets them from its options and from pyproject.toml (gradext.run.configuration), having checked them;
read here, what makes no sense has no effect.
"""

from __future__ import annotations

import functools
import os
import sys

IGNORE = "GRADEXT_IGNORE"  # codes or their beginnings, with commas between: GX304,GX2
USER_PATHS = "GRADEXT_USER_PATHS"  # folders and files, with os.pathsep between
LIBRARY_PATHS = "GRADEXT_LIBRARY_PATHS"


def is_ignored(code: str) -> bool:
    """Whether nothing is to be told of this code."""
    return code.startswith(_ignored())


def is_user_path(file: str) -> bool | None:
    """Whether `file` was said to be the user's code, or a library's; None where neither was said.

    Of paths that lie within each other the innermost decides.
    """
    for path, is_user in _paths():
        if file == path or file.startswith(path + os.sep):
            return is_user
    return None


def forget() -> None:
    """The variables have been set anew."""
    _ignored.cache_clear()
    _paths.cache_clear()


def _variable(name: str) -> str:
    return "" if sys.flags.ignore_environment else os.environ.get(name, "")


@functools.cache
def _ignored() -> tuple[str, ...]:
    words = (word.strip().upper() for word in _variable(IGNORE).split(","))
    return tuple(word for word in words if word.startswith("GX"))


@functools.cache
def _paths() -> tuple[tuple[str, bool], ...]:
    found: dict[str, bool] = {}
    for name, is_user in ((LIBRARY_PATHS, False), (USER_PATHS, True)):
        for path in filter(None, _variable(name).split(os.pathsep)):
            # As the program's files are called, by which way whatever they were found.
            for each in (os.path.abspath(path), os.path.realpath(path)):
                found[each.rstrip(os.sep)] = is_user
    return tuple(sorted(found.items(), key=lambda pair: -len(pair[0])))
