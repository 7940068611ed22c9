"""Runs `python -m gradext ...`, or a script, in a fork of a process that has imported torch.

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


class _StemOfScripts(Stem):
    """Of which `python SCRIPT` is a fork."""

    PROGRAM = (str(Path(__file__).with_name("script_in_forks.py")),)


class _StemOfFix(Stem):
    """Of which the command is a fork, and each of the command's runs."""

    PROGRAM = (str(Path(__file__).with_name("fix_in_forks.py")),)


# What else the stem imports. torch.optim imports torch._dynamo in its first step, libcst is for the
# command itself.
_PARTS: dict[type[Stem], list[str]] = {
    Stem: ["torch"],
    _StemOfScripts: ["torch"],
    _StemOfFix: ["torch", "torch._dynamo", "libcst.metadata"],
}


@functools.cache
def _stem(kind: type[Stem]) -> Stem:
    """One of a kind for all tests of this process, with which it ends."""
    code = "import torch, json; from gradext.fix.circumstances import origins as found"
    code += "; print(json.dumps(found()))"
    environment = {**os.environ, **_AS_HERE}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=True
    )
    stem = kind(environment)
    stem.admit({"origins": json.loads(done.stdout), "parts": _PARTS[kind]})
    return stem


def _kind(words: Sequence[str]) -> type[Stem]:
    if words[0] != "-m":
        return _StemOfScripts
    return _StemOfFix if words[1:3] == ["gradext", "fix"] else Stem


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
    """Exit code, stdout and stderr of `python WORDS`; 180 seconds at most.

    They begin with -m, or with the path of a script.

    Of `gradext fix`, each run of the program is such a fork as well.

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
            asked = words if words[0] == "-m" else ["", *words]  # a stem takes the first for -m
            code = _stem(_kind(words)).run(asked, given, streams, 180, str(folder))
        except NoStem:
            command = [sys.executable, *words]
            code = subprocess.run(
                command, cwd=folder, env=given, stdin=start, stdout=out, stderr=second, timeout=180
            ).returncode
        assert code is not None, "it did not end in time"
        out.seek(0)
        err.seek(0)
        return code, out.read(), err.read()


def script(path: Path, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`python PATH WORDS` in `folder`."""
    code, out, err = run([str(path), *words], folder, os.environ)
    return subprocess.CompletedProcess([str(path), *words], code, out.decode(), err.decode())


def gradext(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`gradext WORDS` in `folder`, in 92 columns and without colour."""
    environment = {**os.environ, "COLUMNS": "92", "NO_COLOR": "1"}
    asked = ["-m", "gradext", *words]
    code, out, err = run(asked, folder, environment)
    return subprocess.CompletedProcess(asked, code, out.decode(), err.decode())


def fix(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return gradext(folder, "fix", *words)
