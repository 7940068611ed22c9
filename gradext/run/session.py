"""One recorded run of a program: collects its diagnoses, writes the JSON, prints the report.

Owns what is known of the run and where it goes; `program` executes code, `autostart` switches a
process on. Keeps Diagnoses and texts only: never an exception, a
traceback or a graph, so that the program's memory lives as long as without gradext.

A run has one root process, which reports, and children, which write their own file for the root to
merge. Whatever fails in here is noted for the end of the report and does not reach the program.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gradext import reporters
from gradext._version import __version__
from gradext.base import errors, interrupts, package, terminal, torch_import
from gradext.base.met_before import MetBefore
from gradext.base.text import clean
from gradext.diagnosis import folding, ignore_comments
from gradext.diagnosis.run_report import RunReport, together
from gradext.reporters import run_json
from gradext.run import cells, child_file, ending, fixes, identity, joint, results_file, telling
from gradext.run.entries import Entry
from gradext.run.guarded import guarded
from gradext.run.settings import CannotWrite, Settings

if TYPE_CHECKING:
    from gradext.diagnosis.model import Diagnosis
    from gradext.diagnosis.whom import Whom

MAX_KEPT = 200  # different diagnoses of one process; a run that has more has one cause
INTERRUPTED = 130


class Session:
    """What one process knows of the run. There is at most one in a process: `current()`.

    Args:
        settings: the run's.
        write_early: the root writes its file before the program begins, not only when the program
            turns out to use torch.
    """

    def __init__(self, settings: Settings, *, write_early: bool = True) -> None:
        self.settings = settings
        self.shown = settings.shown
        self.exit_code: int | None = None
        self.at_end: list[Callable[[], None]] = []  # called when the process ends
        self.drawn: Any = None  # the events, at the end, where a file is drawn from them
        self.by_cell = False  # a notebook: what a cell does is told again if it is done again
        self._write_early = write_early
        self._pid = self._process = os.getpid()
        self._lock = threading.RLock()
        self._entries = self._no_entries()
        self._met = 0
        # The entries of each thread's last error: whether the program catches it is not known yet.
        self._open: dict[int, set[tuple[object, ...]]] = {}
        self._error: str | None = None
        self._uncaught_texts: list[str] = []
        self._seen_main = self._interrupted = False
        self._own: list[str] = []
        self._failed_write = False
        self._written = 0.0
        self._old_last: int | None = None
        self._torch_seen = False
        self._recording: Any = None
        self._joint: joint.Joint | None = None  # the other ranks, where a launcher started this
        self._causes = MetBefore[None]()  # told at once
        self._undo: list[Callable[[], None]] = []
        self._finished = self._in_haste = False

    @property
    def is_current(self) -> bool:
        """Whether this is the session of the process that asks."""
        return _current is self

    @property
    def is_root(self) -> bool:
        self.here()
        return self._pid == self.settings.root

    @property
    def path(self) -> str:
        """The file of this process: the root's first output, or what a child hands over."""
        self.here()
        return self.settings.path if self.is_root else f"{self.settings.path}.{self._pid}"

    # --- beginning and end --------------------------------------------------------------------

    def begin(self) -> None:
        """Start recording as soon as torch is there. Raises CannotWrite before anything happens."""
        global _current
        if self.is_root:
            self._joint = joint.of_this_process()
            if self._joint is not None:
                self.settings = self.settings._replace(claims=self._joint.path)
        if self.is_root and self.settings.outputs and self._write_early:
            self.settings.check_outputs()
            self._write(raise_errors=True)
        # Registered before the program can register anything, and so called after all of that,
        # when its threads have ended too.
        atexit.register(self._at_exit)
        self._undo.append(lambda: atexit.unregister(self._at_exit))
        _current = self
        self._undo.append(ending.hook_os_exit(self))
        self.is_before_torch = "torch" not in sys.modules
        self._undo.append(torch_import.when_imported(self._start_recording))

    def end(self) -> None:
        """Stop recording and forget the hooks; reports what was not reported yet."""
        global _current
        self._at_exit()
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
        _current = None

    def _start_recording(self) -> None:
        self._torch_seen = True
        try:
            # The compiled part first: its fault is one line, and the rest cannot do without it.
            importlib.import_module("gradext.native")._C  # noqa: B018
            for name, module in list(sys.modules.items()):
                # A module of gradext that imports torch must be whole before it is used here.
                own = name.startswith("gradext.") and torch_import.is_initializing(module)
                if own and torch_import.when_done(module, self._start_recording):
                    return
            self._recording = _torch_side().start(self, current, self._undo)
        except Exception as error:
            said = str(error) if isinstance(error, ImportError) else errors.describe(error)
            line = said if said.startswith("gradext") else f"gradext: {said}"
            terminal.say(f"{line} (this program goes on without being recorded)")
            return
        self._look_for_cells()
        if self.is_root and self.settings.outputs and not self._write_early:
            try:
                self.settings.check_outputs()
                self._write(raise_errors=True)
            except CannotWrite as error:
                self.settings = self.settings._replace(outputs=())
                terminal.say(f"gradext: {error}")

    def _look_for_cells(self) -> None:
        """IPython may have begun after this session has: its cells have their reports."""
        if not self.by_cell and (shell := cells.shell()) is not None:
            self._undo.append(cells.hook(self, shell))

    # --- what happens in the program ------------------------------------------------------------

    @guarded
    def on_incident(self, incident: Any) -> None:
        """An error of backward or of a write, as it is raised; or a silent one. Any thread."""
        self._look_for_cells()
        with self._lock:
            silent = incident.error is None
            new = False
            keys = set()
            met = self._whom()
            for diagnosis in incident.diagnoses:
                made = Entry(diagnosis, silent=silent, error=incident.error, whom=met)
                entry, is_new = self._add(made)
                new |= is_new
                if entry is not None:
                    entry.incident = incident
                    if is_new and not self.by_cell:
                        entry.at = tuple(package.user_lines(sys._getframe(1)))
                    if self.by_cell:
                        entry.uncaught = entry.printed = False
                    keys.add(entry.key())
            if not silent:
                # A new error on this thread means that the program caught the previous one.
                thread = threading.get_ident()
                changed = self._open.get(thread) != keys
                self._open[thread] = keys
                # A loop that catches such errors must not spend its time on our file.
                new |= changed and time.monotonic() - self._written > 0.5
            if new:
                self._write()
        if new and silent and self.shown.at_once and not self.by_cell:
            self._tell_at_once()
        if new:
            self._leave_words()

    def _tell_at_once(self) -> None:
        """Silent errors that were not told: nobody should train on for a week."""
        if self.shown.path is None and not terminal.is_stderr(self.settings.stderr):
            return  # it would not be seen: the root tells of it at the end
        with self._lock:
            fresh = telling.at_once(self._ordered(), self._severity, self._causes)
        others = self._joint or joint.Joint(self.settings.claims, str(self._pid))
        ours = self._ours(fresh, others)
        for entry in fresh:
            if all(entry is not one for one in ours):
                entry.told = 0  # by this process
        if ours:  # not under the lock: stderr may be an object of the program's
            self.shown.tell(folding.by_cause(self._as_told(ours)))
        if not self.is_root:
            with self._lock:
                self._write()  # what was told

    def _leave_words(self) -> None:
        """What a signal that ends the process prints: all that was not told."""
        if not self.is_root or self.by_cell or self._recording is None:
            return
        with self._lock:
            entries = self._ordered()
        wanted = self.shown.path is not None or not self.shown.quiet
        text = telling.last_words(entries, self.shown) if wanted else ""
        _torch_side().leave_words(text, self.shown.path)

    def fails_by(self, codes: Sequence[str]) -> bool:
        """Whether what is silently wrong makes the run a failure, as far as it is known now.

        `codes` are codes, or their beginnings, of errors and warnings; none: every error.
        """
        self.settle()
        with self._lock:
            self._merge_children()
            return telling.fails(self._entries.values(), self._severity, codes)

    @guarded
    def uncaught(
        self,
        error: BaseException,
        *,
        in_thread: bool = False,
        because: BaseException | None = None,
    ) -> None:
        """The program, or one of its threads, ends with `error`. Its traceback is printed.

        `because` is what it was handling, where the exception itself does not know.
        """
        with self._lock:
            if not isinstance(error, SystemExit):
                if not in_thread or self._error is None:
                    self._error = errors.describe(error)
                if not in_thread:
                    self._seen_main = True
                    self._interrupted = isinstance(error, KeyboardInterrupt)
            chain = errors.chain(error, because)
            self._uncaught_texts += map(errors.describe, chain)
            self._merge_children()
            for exception in chain:
                self._blame(exception)
            # The last error of this thread is among them, or was caught.
            self._open.pop(threading.get_ident(), None)
            self._write()

    def _blame(self, exception: BaseException) -> None:
        """Mark the diagnoses of `exception` as those of an error that nobody caught."""
        known = [e for e in self._entries.values() if e.incident and e.incident.matches(exception)]
        for entry in known:
            entry.uncaught, entry.printed = True, False
        if known or self._recording is None or isinstance(exception, SystemExit):
            return
        text = errors.describe(exception)
        if any(entry.is_told_in(text) for entry in self._entries.values()):
            return  # the child has explained it, and knows more
        for found in _torch_side().explain(exception, self._recording):
            entry = Entry(found, error=text, whom=self._whom())
            # Two exceptions of one chain can have one explanation: that is not twice.
            same = self._entries.get(entry.key()) or self._add(entry)[0]
            if same is not None:
                same.uncaught, same.printed = True, False

    def exits(self, end: SystemExit, code: int) -> None:
        """sys.exit(), which may be how the program answers to an error that it caught."""
        self.here()
        self.exit_code = code
        if code != 0:
            self.uncaught(end)

    def settle(self) -> None:
        """The program has gone on: whatever was not uncaught so far was caught."""
        self.here()
        if self._recording is not None:
            _torch_side().settle(self._recording)
        with self._lock:
            self._open.clear()

    def _add(self, entry: Entry) -> tuple[Entry | None, bool]:
        """The entry that stands for this diagnosis, None where there are too many, and if new."""
        key = entry.key()
        is_new = self._entries.meet(key, entry, entry.count)
        known = self._entries.get(key)
        self._met += 1
        entry.met = self._met
        if known is not None and not is_new:
            known.met = self._met
            known.count = self._entries.count(key)
            known.error = entry.error or known.error
            known.silent &= entry.silent
            known.whom = known.whom.with_threads(entry.whom.threads)
        return known, is_new

    def _no_entries(self) -> MetBefore[Entry]:
        """Where there are too many, a new one takes the place of an error that was caught."""
        return MetBefore(MAX_KEPT, lambda entry: not (entry.silent or self._is_error(entry)))

    # --- what is told -----------------------------------------------------------------------------

    def _is_error(self, entry: Entry) -> bool:
        """Not caught, or not yet: the program may still be about to catch its last error."""
        return (
            entry.uncaught or entry.open or any(entry.key() in keys for keys in self._open.values())
        )

    def _severity(self, entry: Entry) -> str:
        told_as_is = entry.silent or self._is_error(entry)
        return entry.diagnosis.severity if told_as_is else "warning"

    def _ordered(self) -> list[Entry]:
        """The entries: of the uncaught error, then other errors, silent errors, warnings."""

        def rank(entry: Entry) -> int:
            if self._severity(entry) != "error":
                return 3
            return 2 if entry.silent else 0 if entry.uncaught else 1

        told = (
            entry
            for entry in self._entries.values()
            if self._severity(entry) != "warning" or not ignore_comments.silences(entry.diagnosis)
        )
        return sorted(told, key=rank)

    def diagnoses(self) -> list[Diagnosis]:
        """The diagnoses until now, most important first, as they will be reported."""
        self.here()
        with self._lock:
            return self._as_told(self._ordered())

    def latest(self) -> list[Diagnosis]:
        """The diagnosis that was met last, as it will be reported."""
        with self._lock:
            return self._as_told(sorted(self._entries.values(), key=lambda entry: entry.met)[-1:])

    def _whom(self) -> Whom:
        """The Whom of this process and thread; the root adds the process's number."""
        return identity.of_process(not self.is_root).with_threads(identity.thread())

    def _as_told(self, entries: Iterable[Entry]) -> list[Diagnosis]:
        told = [entry.as_told(self._severity(entry)) for entry in entries]
        if not self.is_root:
            told = [one._replace(whom=one.whom._replace(pid=self._pid)) for one in told]
        return together(told if self._joint is None else self._joint.with_others(told))

    def _ours(self, entries: list[Entry], others: joint.Joint | None) -> list[Entry]:
        """Without those that another rank, or another process, tells of."""
        if others is None or not entries:
            return entries
        told = [entry.as_told(self._severity(entry)) for entry in entries]
        ours = set(map(id, others.claim(told)))
        return [entry for entry, one in zip(entries, told, strict=True) if id(one) in ours]

    def _report(self) -> RunReport:
        torch = sys.modules.get("torch")
        version = getattr(torch, "__version__", None)
        told = (entry.as_told(self._severity(entry)) for entry in self._ordered())
        return RunReport(
            __version__,
            None if version is None else str(version),
            self.exit_code,
            self._error,
            tuple(told),
        )

    def _texts(self, report: RunReport) -> Iterator[tuple[str, str]]:
        """(path, text) of each file that this process writes."""
        if self.is_root:
            for name, path in self.settings.outputs:
                yield path, reporters.render(name, report._replace(drawn=self.drawn))
            return
        entries = [(entry, self._is_error(entry)) for entry in self._entries.values()]
        readable = run_json.document(report)
        yield self.path, child_file.text(self.settings.run, entries, self._own, readable)

    def _write(self, raise_errors: bool = False) -> None:
        """The files as things stand."""
        told = bool(self._entries or self._own)
        if self.is_root:
            wanted = self.settings.outputs or self._joint is not None
            if not wanted or not (self._write_early or self._torch_seen or told):
                return
        elif not told:
            return
        report = self._report()
        if self._joint is None:
            self._write_files(report, raise_errors)
            return
        write = functools.partial(self._write_files, raise_errors=raise_errors)
        if not self._joint.publish(report, write, ended=self._finished):
            self.note_own("the report has this rank alone: the file that ranks share is in use")
            write(report)

    def _write_files(self, report: RunReport, raise_errors: bool) -> None:
        for path, text in self._texts(report):
            try:
                with interrupts.whole():
                    results_file.replace(path, text)
                    self._written = time.monotonic()
            except OSError as error:
                if raise_errors:
                    why = f"cannot write {clean(path)}: {error.strerror}"
                    raise CannotWrite(why) from None
                if not self._failed_write:
                    self._failed_write = True
                    self.note_own(f"cannot write {path}: {error.strerror}")

    @guarded
    def report(self) -> None:
        """Print on stderr what was not printed yet: the root, of all; a kernel, its own."""
        if not self.is_root and not self.by_cell:
            return
        with self._lock:
            lines = telling.repeats(self._ordered())
            if self._joint is not None:
                lines = []  # the last rank says it of all
            entries = [entry for entry in self._ordered() if not entry.printed]
            for entry in entries:
                entry.printed = True
                entry.told = 0 if self.is_root else entry.count
        # What imports and prints stands outside: both may run code of the program's.
        entries = self._ours(entries, self._joint)
        if entries:
            self._look_for_fixes()
        folded, command = folding.by_cause(self._as_told(entries)), fixes.command(sys.orig_argv)
        if self._finished and not any(diagnosis.fixes for diagnosis in folded):
            lines += telling.fix(self._ordered(), command)
        for line in lines:
            self.shown.remark(line)
        if folded:
            self.shown.tell(folded, command)
        self._leave_words()

    @guarded  # the report itself must not be lost
    def _look_for_fixes(self) -> None:
        """At the end of the run: edits that could mend what is told of."""
        # A notebook is no program to run again; after os._exit() a thread may hang in an import.
        if not self.by_cell and not self._in_haste:
            with self._lock:
                entries = self._ordered()
            fixes.add(entries)

    def note_own(self, line: str) -> None:
        """Keep a line on an error of gradext's own, for the end of the report."""
        if len(self._own) < 20:
            self._own.append(line)

    @guarded
    def _report_own_errors(self) -> None:
        lines = list(self._own)
        self._own.clear()
        if "gradext.recording.incidents" in sys.modules:
            lines += _torch_side().own_errors.lines()
        if more := self._entries.more:
            lines.append(f"{more} more diagnoses were not kept")
        for line in lines:
            terminal.say(f"gradext: {line}")

    # --- the end --------------------------------------------------------------------------------

    def _at_exit(self) -> None:
        """The last word of this process; everything of the program has ended."""
        self.here()
        if self._finished:
            return
        self._finished = True
        self._finish()
        if self._recording is not None:
            with contextlib.suppress(Exception):
                self._recording.stop()
        if self.is_root:
            self._report_own_errors()

    @guarded
    def at_os_exit(self, status: int) -> None:
        # Whoever calls it may do so because another thread hangs: never wait for that one.
        if self._finished or not self._lock.acquire(timeout=1.0):
            return
        try:
            error = sys.exc_info()[1]
            if status != 0 and error is not None and not self._seen_main:
                self.uncaught(SystemExit(status), because=error)
            if isinstance(status, int):
                self.exit_code = status & 0xFF
            self._in_haste = True
            self._at_exit()
        finally:
            self._lock.release()

    @guarded
    def _finish(self) -> None:
        for call in self.at_end:
            call()
        if self._recording is not None and not self._seen_main:
            _torch_side().settle(self._recording)
        with self._lock:
            last: Any = getattr(sys, "last_exc", getattr(sys, "last_value", None))
            fresh = isinstance(last, BaseException) and id(last) != self._old_last
            if fresh and not self._seen_main and self.exit_code is None:
                self.uncaught(last)  # the program put its own sys.excepthook in the place of ours
            if self.exit_code is None and self._seen_main:
                self.exit_code = INTERRUPTED if self._interrupted else 1
            self._open.clear()
            if self.is_root:
                self._merge_children()
        if self.is_root:
            self._look_for_fixes()  # not under the lock: it imports
        with self._lock:
            self._write()
        self.report()
        for line in telling.of_more_ranks(self._joint):
            self.shown.remark(line)
        if self.is_root and self._joint is None:
            with contextlib.suppress(OSError):
                os.unlink(self.settings.claims)

    # --- children ---------------------------------------------------------------------------------

    def _merge_children(self) -> None:
        """Take over what the children of this run have written, and their files with it."""
        if not self.is_root:
            return
        for pid, handed in child_file.collect(self.settings.path, self.settings.run):
            for line in handed.own:
                self.note_own(f"{line} (in process {pid})")
            for entry in handed.entries:
                key = entry.key()
                # What a child has written again includes what it had written before.
                known = self._entries.forget(key)
                entry.printed = entry.told > 0 or (known is not None and known.printed)
                entry.told = max(entry.told, 0 if known is None else known.told)
                # A pool hands the error that its worker caught to the parent, as a text.
                entry.uncaught |= any(entry.is_told_in(text) for text in self._uncaught_texts)
                self._add(entry)

    def here(self) -> None:
        """If this process is a forked copy: what it knows and writes is its own from here on."""
        if self._process == os.getpid():
            return
        self._lock = threading.RLock()
        self._entries = self._no_entries()
        self._open = {}
        self._uncaught_texts = []
        self._own = []
        self._error = self.exit_code = None
        self._old_last = id(getattr(sys, "last_value", None))
        self._seen_main = self._interrupted = self._finished = False
        self._joint = None
        self._causes = MetBefore()
        self._pid = self._process = os.getpid()

    @guarded
    def ends_with(self, error: BaseException) -> None:
        """What ends a child process of multiprocessing."""
        if isinstance(error, SystemExit):
            from gradext.run.program import exit_code

            self.exits(error, exit_code(error))
        else:
            self.uncaught(error)

    @guarded
    def process_ends(self) -> None:
        """The last call into Python of a process that atexit does not know the end of."""
        self._at_exit()

    @guarded
    def watch_multiprocessing(self, wrap_run: Callable[..., Any]) -> None:
        """Hear of the ends of the children that multiprocessing starts."""
        ending.watch_multiprocessing(self, wrap_run)


def _torch_side() -> Any:
    # By name: what it imports, torch first, must not be imported before the program's own.
    return importlib.import_module("gradext.run.torch_side")


_current: Session | None = None


def current() -> Session | None:
    """This process's session."""
    return _current
