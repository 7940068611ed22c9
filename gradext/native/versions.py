"""On which Pythons and torch releases the test suite has passed, and when it last did.

The one table of them: `requires-python`, the classifiers, README's line and `gradext doctor` are
made from it. A version stands here only with the date of a run of the suite in which nothing
failed; a test that passed only when it was run again is told of beside it. After such a run: set
its date here, then `python build_tools/docs/generate.py --committed`.
Uses the standard library only: the build reads this file without the package.
"""

from __future__ import annotations

import sys
from typing import NamedTuple


class Passed(NamedTuple):
    """The last run in which nothing failed."""

    date: str
    what: str  # "whole suite", or the folders of tests/ that were run
    partner: str  # the torch release of a Python's run, the Python of a torch release's run


PYTHONS = {
    "3.10": Passed("2026-11-29", "whole suite", "2.13.0"),
    "3.11": Passed("2026-12-01", "whole suite", "2.13.0"),
    "3.12": Passed("2026-11-29", "whole suite", "2.13.0"),
    "3.13": Passed("2026-11-29", "whole suite", "2.13.0"),
    # 10,298 passed; a test with a sleep and one of two signals when their rooms were run again.
    "3.14": Passed("2026-11-30", "whole suite", "2.13.0"),
}

TORCHES = {
    "2.13": Passed("2026-12-01", "whole suite", "3.11.7"),
    "2.14": Passed("2026-12-01", "whole suite", "3.11.7"),
}

# Pythons whose frames the sources know; not a claim that any test has passed there.
COMPILED_FOR = ("3.10", "3.11", "3.12", "3.13", "3.14")

OLDEST_TORCH = (2, 11)  # an older one lacks what the sources need to compile


def numbers(version: str) -> tuple[int, int]:
    """(3, 13) of "3.13.0"."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def minor(version: str) -> str:
    """ "2.13" of "2.13.0+cpu"."""
    return ".".join(version.split(".")[:2])


def span(table: dict[str, Passed]) -> tuple[str, str]:
    """The oldest and the newest version in a table."""
    ordered = sorted(table, key=numbers)
    return ordered[0], ordered[-1]


def requires_python() -> str:
    """What pip is told: from the oldest to the newest Python in the table."""
    oldest, newest = span(PYTHONS)
    major, last = numbers(newest)
    return f">={oldest},<{major}.{last + 1}"


def classifiers() -> list[str]:
    """What a package index is told of the Pythons."""
    name = "Programming Language :: Python :: "
    return [f"{name}{version}" for version in sorted(PYTHONS, key=numbers)]


def verdict(table: dict[str, Passed], version: str) -> str:
    """One phrase on a version: what has passed and when, or "not tried"."""
    passed = table.get(minor(version))
    if passed is None:
        return "not tried"
    kind = "torch" if table is PYTHONS else "Python"
    return f"{passed.what} passed on {passed.date} (with {kind} {passed.partner})"


def sentence() -> str:
    """README's line."""
    return (
        f"The whole test suite has passed on Python {_listed(PYTHONS)} and on torch "
        f"{_listed(TORCHES)}; `gradext doctor` says of any other version that it is not tried. "
        "Free-threaded Pythons (3.13t, 3.14t) are refused."
    )


def _listed(table: dict[str, Passed]) -> str:
    whole = [v for v in sorted(table, key=numbers) if table[v].what == "whole suite"]
    return " and ".join([", ".join(whole[:-1]), whole[-1]] if len(whole) > 1 else whole)


def free_threaded() -> str | None:
    """One line where this Python has no GIL, which gradext's reads rely on; else None."""
    # Of sys alone: sysconfig reads a file of the path, and costs an import at each start.
    if "t" not in getattr(sys, "abiflags", ""):
        return None
    version = "{}.{}".format(*sys.version_info)
    return (
        f"gradext does not support free-threaded Python ({version}t): what it reads of frames and "
        f"threads is guarded by the GIL. Use the ordinary build of Python {version}"
    )
