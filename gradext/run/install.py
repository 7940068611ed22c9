"""gradext.install(): recording from a line of the program on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gradext.recording.options import RecordOptions, journal_bytes
from gradext.run import excepthook
from gradext.run import session as sessions
from gradext.run.settings import Settings

if TYPE_CHECKING:
    from gradext.diagnosis.model import Diagnosis


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
        self._undo = undo

    def close(self) -> None:
        global _shared
        for undo in self._undo:
            undo()
        _shared = None


_shared: _Shared | None = None


def install(
    saves: bool = True,
    memory: int | None = None,
    *,
    births: bool | None = None,
    cuts: bool | None = None,
) -> Installation:
    """Record from here on, and report what goes wrong after Python has printed its traceback.

    For a program that is not started by `gradext run`. The report goes to stderr: after an
    uncaught error, and at exit for errors that were caught and for gradients that are silently
    wrong. In a notebook it follows each cell. Calling it again joins what is there: recording ends
    with the last `uninstall()`.

    Args:
        saves: record saves for backward too; without them only culprits are named.
        memory: MiB that the journal may take (default 64).
        births: as gradext.record takes it.
        cuts: as gradext.record takes it.

    Raises:
        TypeError: `memory` is no int.
        ValueError: `memory` is below 1, or more than this machine has.
    """
    global _shared
    size = journal_bytes(memory, "gradext.install")
    if _shared is None:
        session = sessions.current()
        if session is not None:
            # `gradext run` or the environment records this process already, and goes on doing so.
            _shared = _Shared(session, [])
        else:
            settings = Settings.new({}, RecordOptions(saves, births, cuts, size))
            session = sessions.Session(settings)
            session.begin()
            undo = [excepthook.hook(session), session.end]
            if (shell := _shell()) is not None:
                undo.insert(0, _hook_shell(session, shell))
            _shared = _Shared(session, undo)
    return Installation(_shared)


def _shell() -> Any:
    """IPython's running shell, None elsewhere."""
    module = sys.modules.get("IPython")
    return module.get_ipython() if module is not None else None


def _hook_shell(session: sessions.Session, shell: Any) -> Callable[[], None]:
    """IPython prints a cell's error itself, and goes on: report below it, and after each cell."""
    printed = shell.showtraceback

    def showtraceback(*args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else kwargs.get("exc_tuple")
        error = (given or sys.exc_info())[1]
        try:
            return printed(*args, **kwargs)
        finally:
            if error is not None and session is sessions.current():
                session.uncaught(error)

    def after_cell(*_: object) -> None:
        if session is sessions.current():
            session.settle()
            session.report()

    session.by_cell = True
    shell.showtraceback = showtraceback
    shell.events.register("post_run_cell", after_cell)

    def undo() -> None:
        if shell.showtraceback is showtraceback:
            shell.showtraceback = printed
        shell.events.unregister("post_run_cell", after_cell)

    return undo
