"""Running programs as processes of their own, and the programs that several tests run.

Owns no fixture: those are in conftest, which the tests of other folders have too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import forks

RUN = ("-m", "gradext", "run")
# What would change a report, or switch recording on, must not come from outside.
HIDDEN = (
    *("PYTHONPATH", "PYTHONSAFEPATH", "PYTHONWARNINGS", "PYTHONUNBUFFERED"),
    *("NO_COLOR", "FORCE_COLOR", "COLUMNS", "GITHUB_ACTIONS"),
)


class Ended(NamedTuple):
    """How a process ended, with both streams as bytes."""

    code: int
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def errors(self) -> str:
        return self.err.decode()


def start(
    words: Sequence[str],
    cwd: Path,
    stdin: bytes = b"",
    merged: bool = False,
    forked: bool = False,
    **env: str,
) -> Ended:
    """Run `python WORDS` and wait for it.

    With `forked` in a fork of a process that has imported torch, which saves the seconds of that:
    for tests of what is reported, not of how a process begins.
    """
    base = {k: v for k, v in os.environ.items() if k not in HIDDEN and k[:8] != "GRADEXT_"}
    environment = {**base, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", **env}
    if forked and (tuple(words[:3]) == RUN or words[0].endswith(".py")):
        return Ended(*forks.run(words, cwd, environment, stdin, merged))
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=environment,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if merged else subprocess.PIPE,
        timeout=180,
    )
    return Ended(done.returncode, done.stdout, done.stderr or b"")


def without_addresses(stream: bytes) -> bytes:
    """Leaves out where objects lie in memory, and how often a dying interpreter counts them."""
    stream = re.sub(rb"(object refcount : )\d+", rb"\1...", stream)
    return re.sub(rb"\b0x[0-9a-f]{6,}\b", b"0x...", stream)


class Recorded(NamedTuple):
    """How `gradext run` ended, and the JSON that it wrote."""

    ended: Ended
    report: dict[str, Any]

    @property
    def codes(self) -> list[str]:
        return [d["code"] for d in self.report["diagnoses"]]


# Functions with an error that is diagnosed, each with its culprit's and its victim's line.
MISTAKES = """
import torch

def stale():
    w = torch.ones(3, requires_grad=True)
    h = w * 2
    loss = (h * h).sum()  # victim
    h.mul_(2)  # culprit
    loss.backward()

def other():
    w = torch.ones(3, requires_grad=True)
    h = w * 2
    loss = (h * h).sum()
    h.mul_(2)  # culprit
    loss.backward()

def leaf():
    w = torch.ones(3, requires_grad=True)
    w.add_(1)  # culprit

def silent():
    w = torch.ones(3, requires_grad=True)
    loss = (w * w).sum()
    torch.optim.SGD([w], lr=0.1, fused=True)
    w.data.mul_(2)  # culprit
    loss.backward()

def fine():
    w = torch.ones(3, requires_grad=True)
    (w * w).sum().backward()
    print(w.grad, flush=True)

def caught(f):
    try:
        f()
    except RuntimeError:
        pass
""".lstrip()


class Mistakes(NamedTuple):
    """The module `mistakes` in the programs' folder."""

    path: Path

    def line(self, function: str, mark: str = "culprit") -> int:
        """The line of `function` that carries the mark."""
        inside = False
        for number, text in enumerate(self.path.read_text().splitlines(), 1):
            if text.startswith("def "):
                inside = text.startswith(f"def {function}(")
            if inside and text.endswith(f"# {mark}"):
                return number
        raise LookupError(function)
