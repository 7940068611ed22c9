"""Recording in a program that `gradext run` did not start: by the environment, or by install().

Owns when a session begins in such a process and the hooks that tell it of uncaught errors. The
wheel's gradext-autostart.pth leads here from every start of Python where GRADEXT_RUN or
GRADEXT_RECORD is set, so nothing heavy is imported before torch is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gradext.base import terminal
from gradext.recording.options import MIB, RecordOptions
from gradext.run import ending
from gradext.run import session as sessions
from gradext.run.settings import ENVIRONMENT, BadVariable, Settings

if TYPE_CHECKING:
    from gradext.diagnosis.model import Diagnosis

RECORD = "GRADEXT_RECORD"  # 1 (or full), or light; 0 and nothing: off
JSON = "GRADEXT_JSON"
# Set by launchers that start several processes of one program: none may write another's file.
RANKS = ("RANK", "LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")


def wanted() -> bool:
    """Whether the environment asks for this process to be recorded, or seems to."""
    if is_ignored():
        return False
    asked = os.environ.get(RECORD, "").strip().lower()
    return bool(os.environ.get(ENVIRONMENT)) or asked not in _MODES["off"]


def is_ignored() -> bool:
    """Whether this process must not take orders from the environment.

    Under -E and -I Python itself ignores its variables; a program that runs with other rights than
    its caller has must not do what the caller's environment says.
    """
    if sys.flags.ignore_environment or sys.flags.isolated:
        return True
    for real, effective in (("getuid", "geteuid"), ("getgid", "getegid")):
        if hasattr(os, real) and getattr(os, real)() != getattr(os, effective)():
            return True
    return False


def start() -> None:
    """Record this process if the environment asks for it. Never raises."""
    try:
        if sessions.current() is None and wanted():
            _start()
    except BadVariable as error:
        terminal.say(f"gradext: not recording: {error}")
    except Exception as error:
        terminal.say(f"gradext: not recording: {type(error).__name__}: {error}")


def _start() -> None:
    settings = Settings.from_environment()
    if settings is None:
        mode = _mode()
        if mode == "off":
            return
        path = os.environ.get(JSON)
        if path and any(os.environ.get(rank) for rank in RANKS):
            path = f"{path}.{os.getpid()}"
        settings = Settings.new(
            {"json": path} if path else {}, RecordOptions(saves=mode != "light")
        )
        settings.to_environment()
    session = sessions.Session(settings, write_early=False)
    session.begin()
    _hook(session)


_MODES = {
    "off": {"", "0", "no", "off", "false"},
    "full": {"1", "full", "yes", "on", "true"},
    "light": {"light"},
}


def _mode() -> str:
    value = os.environ.get(RECORD, "")
    for mode, words in _MODES.items():
        if value.strip().lower() in words:
            return mode
    short = value if len(value) <= 40 else value[:37] + "..."
    raise BadVariable(f"{RECORD} is {short!r}; it can be 1 (or full), light, or 0")


def _hook(session: sessions.Session) -> Callable[[], None]:
    """Hear of uncaught errors once they were printed, and report after them."""
    previous = sys.excepthook

    def excepthook(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        try:
            previous(kind, error, trace)
        finally:
            if session is sessions.current():
                session.uncaught(error)
                session.report()

    sys.excepthook = excepthook
    unhook_threads = ending.hook_threads(session)

    def undo() -> None:
        # If another hook was put before this one, it still calls it: it then only passes on.
        if sys.excepthook is excepthook:
            sys.excepthook = previous
        unhook_threads()

    return undo


# --- from Python ----------------------------------------------------------------------------------


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
        memory: MiB that the journal may use.
        births, cuts: as gradext.record takes them.
    """
    global _shared
    if _shared is None:
        session = sessions.current()
        if session is not None:
            # `gradext run` or the environment records this process already, and goes on doing so.
            _shared = _Shared(session, [])
        else:
            size = None if memory is None else memory * MIB
            settings = Settings.new({}, RecordOptions(saves, births, cuts, size))
            session = sessions.Session(settings)
            session.begin()
            undo = [_hook(session), session.end]
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
