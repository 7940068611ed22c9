"""Where a measured result comes from: processor, threads, versions, commit, date.

Owns the record and the rule that two results of different machines make no ratio.
"""

from __future__ import annotations

import datetime
import functools
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradext.base.package import FOLDER

ROOT = FOLDER.parent
# What must be the same in two results before one number may be divided by another.
SAME = ("processor", "system", "gpu")


def record(root: Path = ROOT) -> dict[str, Any]:
    """A record of machine, torch, date, and commit of the checkout at `root` (None: it is none)."""
    import torch

    from gradext._version import __version__

    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gradext": __version__,
        "commit": commit(root),
        "date": datetime.date.today().isoformat(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What forbids a ratio of two results, in words; empty where they may be compared."""
    return [
        f"{key} {one.get(key)!r} and {other.get(key)!r}"
        for key in SAME
        if one.get(key) != other.get(key)
    ]


def processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor()


@functools.cache
def commit(root: Path = ROOT) -> str | None:
    """The commit measured, "-dirty" where the code (not: other results) has changed since.

    GRADEXT_COMMIT says it where the sources were copied without their history.
    """
    if named := os.environ.get("GRADEXT_COMMIT"):
        return named

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
        return done.stdout.strip()

    try:
        # An installed package may lie inside somebody else's repository.
        if git("ls-files", "csrc/op_schemas.cpp") != "csrc/op_schemas.cpp":
            return None
        found = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--", "csrc", "gradext", "benchmarks/*.py")
    except OSError:
        return None
    return f"{found}-dirty" if found and changed else found or None
