"""gradext.install(): recording from a line of the program on."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gradext.recording.options import GuardReads, RecordOptions, guard_reads, journal_bytes
from gradext.reporters import FORMATS
from gradext.run import excepthook, results_file
from gradext.run import session as sessions
from gradext.run.settings import CannotWrite, Settings
from gradext.run.shown import LAYOUTS, REPORTS, Shown

if TYPE_CHECKING:
    from gradext.diagnosis.model import Diagnosis


Path = str | os.PathLike[str]


class Installation:
    """What `gradext.install()` returns: ends the recording that it began.

    As a context manager it is uninstalled at the end of the block, and an error that leaves the
    block is reported there, before Python prints its traceback.
    """

    def __init__(self, shared: _Shared) -> None:
        self._shared: _Shared | None = shared
        shared.users.append(self)

    @property
    def diagnoses(self) -> list[Diagnosis]:
        """All that were found so far, most important first; empty once uninstalled."""
        return self._shared.session.diagnoses() if self._shared is not None else []

    @property
    def latest(self) -> list[Diagnosis]:
        """The one that was found last, in a list; empty where none was."""
        return self._shared.session.latest() if self._shared is not None else []

    def uninstall(self) -> None:
        """Report what is left to report and put the hooks back. Harmless to call again."""
        shared, self._shared = self._shared, None
        if shared is None:
            return
        shared.users.remove(self)
        if not shared.users:
            shared.close()

    def __enter__(self) -> Installation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shared is not None and error is not None:
            self._shared.session.uncaught(error)
        self.uninstall()


class _Shared:
    """The one recording of a process, and those who asked for it; the last to leave ends it."""

    def __init__(self, session: sessions.Session, undo: list[Callable[[], None]]) -> None:
        self.session = session
        self.users: list[Installation] = []
        self.guards = False
        self._undo = undo

    def guard(self, reads: GuardReads) -> None:
        """Compare bytes from here on: the recording began without."""
        # By name: it imports torch, which install() leaves to the program.
        guards = importlib.import_module("gradext.byte_guard.guard")
        self._undo.insert(0, guards.start_quietly(reads))
        self.guards = True

    def close(self) -> None:
        global _shared
        for undo in self._undo:
            undo()
        _shared = None


_shared: _Shared | None = None


def _shown(
    layout: str,
    color: bool | None,
    output: Path | None,
    quiet: bool,
    github: bool | None,
    report: str,
) -> Shown:
    for name, value, among in (("format", layout, LAYOUTS), ("report", report, REPORTS)):
        if value not in among:
            raise ValueError(f"gradext.install: {name} is one of {', '.join(among)}; got {value!r}")
    path = None if output is None else results_file.absolute(os.fspath(output))
    if path is not None:
        if (why := results_file.problem(path)) is not None:
            raise ValueError(f"gradext.install: {why}")
        results_file.replace(path, "")
    return Shown(layout, color, path, bool(quiet), github, report == "now")


def install(
    saves: bool = True,
    memory: int | None = None,
    *,
    births: bool | None = None,
    cuts: bool | None = None,
    guard: bool | GuardReads = False,
    json: Path | None = None,
    html: Path | None = None,
    sarif: Path | None = None,
    output: Path | None = None,
    format: str = "full",
    color: bool | None = None,
    report: str = "now",
    quiet: bool = False,
    github: bool | None = None,
) -> Installation:
    """Record from here on, and report what goes wrong after Python has printed its traceback.

    For a program that is not started by `gradext run`. The report goes to stderr: after an
    uncaught error, and at exit for errors that were caught and for gradients that are silently
    wrong. In a notebook it follows each cell. Calling it again joins what is there, with its
    options: recording ends with the last `uninstall()`. What is not described here is what the
    option of `gradext run` of that name does.

    Args:
        saves: record saves for backward too; without them only culprits are named.
        memory: MiB that the journal may take (default 64).
        births: as gradext.record takes it.
        cuts: as gradext.record takes it.
        guard: compare the bytes of saved tensors too, so that writes by numpy are seen; "all": also
            in memory that only torch has. One that is asked for later begins then, and ends with
            the recording.
        output: of the report, instead of stderr: `-o`.
        color: None for what the terminal wants.

    Raises:
        TypeError: `memory` is no int.
        ValueError: `memory` is below 1, or more than this machine has; `guard`, `format` or
            `report` is none of those that there are; a file cannot be written.
    """
    global _shared
    try:
        reads = guard_reads(guard)
    except ValueError as error:
        raise ValueError(f"gradext.install: guard: {error}") from None
    options = RecordOptions(saves, births, cuts, journal_bytes(memory, "gradext.install"), reads)
    if reads and not saves:
        raise ValueError("gradext.install: guard needs to know what is saved; saves=False does not")
    named = {"json": json, "html": html, "sarif": sarif}
    files = {name: os.fspath(path) for name, path in named.items() if path is not None}
    for name in files:
        needs: dict[str, Any] = dict.fromkeys(FORMATS[name].needs, True)
        options = options._replace(**needs)
    shown = _shown(format, color, output, quiet, github, report)
    if _shared is None:
        session = sessions.current()
        if session is not None:
            # `gradext run` or the environment records this process already, and goes on doing so.
            _shared = _Shared(session, [])
        else:
            settings = Settings.new(files, options)._replace(shown=shown)
            session = sessions.Session(settings)
            try:
                session.begin()
            except CannotWrite as error:
                raise ValueError(f"gradext.install: {error}") from None
            _shared = _Shared(session, [excepthook.hook(session), session.end])
    if reads and not _shared.session.settings.options.guard and not _shared.guards:
        _shared.guard(reads)
    return Installation(_shared)
