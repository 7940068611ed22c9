"""Runs `python -m gradext run ...` in a fork of a process that has imported torch.

Importing torch is most of what such a run takes, and hundreds of tests start one. For tests of what
is reported; how a process begins, and what it must not import, is tested in processes of their own.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from gradext.fix.stem import NoStem, Stem

_AS_HERE = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


@functools.cache
def _stem() -> Stem:
    """One for all tests of this process, with which it ends."""
    code = "import torch, json; from gradext.fix.circumstances import origins as found"
    code += "; print(json.dumps(found()))"
    environment = {**os.environ, **_AS_HERE}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=True
    )
    stem = Stem(environment)
    stem.admit({"origins": json.loads(done.stdout), "parts": ["torch"]})
    return stem


def _is_for_the_start(environment: Mapping[str, str]) -> bool:
    """Whether a variable is set that Python itself reads, and only when it starts."""
    names = {name for name in environment if name.startswith("PYTHON")} - {"PYTHONPATH"}
    return any(environment[name] != {**os.environ, **_AS_HERE}.get(name) for name in names)


def run(
    words: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    stdin: bytes = b"",
    merged: bool = False,
) -> tuple[int, bytes, bytes]:
    """Exit code, stdout and stderr of `python WORDS`, which begin with -m; 180 seconds at most.

    Where the system has no such forks, or Python would read its environment, it is a process of
    its own.
    """
    given = {**environment, **_AS_HERE}
    with (
        tempfile.TemporaryFile() as start,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        start.write(stdin)
        start.seek(0)
        second = out if merged else err
        try:
            if _is_for_the_start(given):
                raise NoStem
            streams = (start.fileno(), out.fileno(), second.fileno())
            code = _stem().run(words, given, streams, 180, str(folder))
        except NoStem:
            command = [sys.executable, *words]
            code = subprocess.run(
                command, cwd=folder, env=given, stdin=start, stdout=out, stderr=second, timeout=180
            ).returncode
        assert code is not None, "it did not end in time"
        out.seek(0)
        err.seek(0)
        return code, out.read(), err.read()
