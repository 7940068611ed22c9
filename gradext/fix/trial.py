"""One run of the program in a child process, with a patch or without, and what came of it."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import glob
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from gradext.fix.child import Spec
from gradext.fix.stem import NoStem, Stem

COMMAND = "<string>"  # the name of the code of `-c`


@dataclasses.dataclass(frozen=True)
class Program:
    """The program that is tried.

    Attributes:
        words: as they stand behind `gradext run`, the program first.
        command: the code of `-c`, which a patch may replace; None for others.
        notebook: the name of the notebook that `command` is the code of; None for others.
        stdin: a file with what the program reads there, None for nothing.
        seed: of the random generators, the same in all runs.
    """

    words: tuple[str, ...]
    command: str | None = None
    stdin: str | None = None
    seed: int = 0
    notebook: str | None = None


class Noted(NamedTuple):
    """What one process wrote down (gradext.fix.child.Notes); as fields of Ran."""

    passes: list[dict[str, Any]]
    values: list[list[Any]]
    stopped: bool = False
    told: int | None = None
    doubt: str | None = None

    @classmethod
    def read(cls, path: str) -> tuple[Noted, dict[str, Any]]:
        """The notes in one file, and what else the file says."""
        facts = _json(path)
        values: list[list[Any]] = []
        if os.path.exists(path + ".pt"):
            import torch

            with contextlib.suppress(Exception):  # killed while it wrote
                values = torch.load(path + ".pt", weights_only=True)
        noted = cls(
            facts.get("passes", []),
            values,
            bool(facts.get("stopped")),
            facts.get("told"),
            facts.get("doubt"),
        )
        return noted, facts


@dataclasses.dataclass
class Ran:
    """What one run came to.

    Attributes:
        exit_code: None where it was ended for lack of time.
        passes: what each backward pass computed (gradext.fix.child), in order.
        values: gradients of each pass as tensors; None where there was no room.
        stopped: it had run far enough and was ended.
        told: index of the pass of the first fault that is silent; None where there is none.
        doubt: of a reference, why the program may mean something else.
        forked: from the stem, so that torch was imported before it began.
        circumstances: how torch was imported in it (gradext.fix.circumstances).
        processes: of the processes that the program has started: what they noted, by name.
        pids: their names, by process id.
    """

    exit_code: int | None
    output: str
    error: str
    report: dict[str, Any]
    passes: list[dict[str, Any]]
    values: list[list[Any]]
    stopped: bool
    seconds: float
    told: int | None = None
    doubt: str | None = None
    forked: bool = False
    circumstances: dict[str, Any] = dataclasses.field(default_factory=dict)
    processes: dict[str, Noted] = dataclasses.field(default_factory=dict)
    pids: dict[int, str] = dataclasses.field(default_factory=dict)

    def seen_by(self, process: str) -> Ran:
        """The run as one of its processes has seen it; "" is the first."""
        if not process:
            return self
        noted = self.processes.get(process, Noted([], []))
        return dataclasses.replace(self, **noted._asdict())

    @property
    def diagnoses(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.report.get("diagnoses") or []
        return found

    @property
    def failed(self) -> int:
        """Index of the first pass that is wrong; the number of passes where none is."""
        raised = [k for k, note in enumerate(self.passes) if note["raised"]]
        told = [] if self.told is None else [self.told]
        return min([*raised, *told], default=len(self.passes))

    def edges_from(self, index: int) -> int:
        """The number of edges in the graphs of a pass and of those after it."""
        return sum(note.get("edges", 0) for note in self.passes[index:])

    @property
    def failed_at(self) -> list[dict[str, Any]]:
        """The user's lines of the pass that raised, or of the last."""
        if not self.passes:
            return []
        found: list[dict[str, Any]] = self.passes[min(self.failed, len(self.passes) - 1)]["at"]
        return found


def run(
    program: Program,
    *,
    texts: Mapping[str, bytes] | None = None,
    mode: str = "as-is",
    until: int | None = None,
    more: int = 3,
    guard: bool = False,
    limit: float | None = None,
    nudge: float = 0.0,
    nudged: tuple[int, int] = (0, 0),
    stem: Stem | None = None,
) -> Ran:
    """Run the program once.

    Args:
        limit: seconds, after which it is killed with all that it started.
        stem: what it is forked from; a process of its own where there is none, or none any more.
    """
    given = dict(texts or {})
    with tempfile.TemporaryDirectory(prefix="gradext-fix-") as folder:
        words = list(program.words)
        if program.command is not None:
            patched = given.pop(COMMAND, None)
            words[1] = program.command if patched is None else patched.decode("utf-8")
        spec = Spec(
            words=[
                *("run", "--json", os.path.join(folder, "report.json")),
                *(["--guard"] if guard else []),
                *words,
            ],
            texts=[(path, base64.b64encode(text).decode()) for path, text in given.items()],
            mode=mode,
            until=until,
            more=more,
            seed=program.seed,
            result=os.path.join(folder, "result.json"),
            nudge=nudge,
            nudged=nudged,
        )
        path = os.path.join(folder, "spec.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(spec._asdict(), file)
        begun = time.monotonic()
        code, output, error, forked = _wait(folder, path, program.stdin, limit, stem)
        seconds = time.monotonic() - begun
        report = _json(spec.words[2])
        first, facts = Noted.read(spec.result)
        processes, pids = {}, {}
        for found in sorted(glob.glob(glob.escape(spec.result) + ".*[0-9]")):
            noted, named = Noted.read(found)
            if named.get("process"):  # a plain fork has no name to be known by in another run
                processes[named["process"]] = noted
                pids[named["pid"]] = named["process"]
        return Ran(
            code,
            hashlib.sha256(output).hexdigest(),
            error,
            report,
            first.passes,
            first.values,
            first.stopped,
            seconds,
            first.told,
            first.doubt,
            forked,
            facts.get("circumstances", {}),
            processes,
            pids,
        )


def environment() -> dict[str, str]:
    """The environment of each run, and of the stem."""
    given = {"PYTHONHASHSEED": "0", **os.environ, "COLUMNS": "100"}
    for name in ("GRADEXT_RUN", "GRADEXT_RECORD"):
        given.pop(name, None)
    return given


def _wait(
    folder: str, spec: str, stdin: str | None, limit: float | None, stem: Stem | None
) -> tuple[int | None, bytes, str, bool]:
    words = ["-m", "gradext.fix.child", spec]
    with (
        open(os.path.join(folder, "output"), "w+b") as output,
        open(os.path.join(folder, "error"), "w+b") as error,
        open(stdin or os.devnull, "rb") as given,
    ):
        code: int | None
        forked = True
        try:
            if stem is None:
                raise NoStem
            streams = (given.fileno(), output.fileno(), error.fileno())
            code = stem.run(words, environment(), streams, limit)
        except NoStem:
            forked = False
            code = _plain([sys.executable, *words], (given, output, error), limit)
        output.seek(0)
        error.seek(0)
        return code, output.read(), error.read().decode("utf-8", "replace"), forked


def _plain(command: list[str], streams: tuple[Any, Any, Any], limit: float | None) -> int | None:
    given, output, error = streams
    process = subprocess.Popen(
        command,
        stdin=given,
        stdout=output,
        stderr=error,
        env=environment(),
        start_new_session=True,
    )
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the child, if it runs, and all that it has started."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _json(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
