"""pytest: one recording for each test, and the report with the test that it belongs to.

gradext_pytest has the options; this is registered where they, or a marker, ask for it. A report
travels as text and plain data in pytest's own reports, so that it comes through xdist.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from gradext._version import __version__
from gradext.base import errors
from gradext.byte_guard import guard
from gradext.diagnosis import folding
from gradext.recording import incidents, own_errors
from gradext.recording.options import ALL, EXPOSED, GuardReads, RecordOptions, guard_reads
from gradext.recording.recording import Recording
from gradext.reporters import diagnosis_text
from gradext.rules.explain import explain
from gradext.run import results_file

if TYPE_CHECKING:
    from gradext.diagnosis.model import Diagnosis
    from gradext.recording.incidents import Incident

SECTION = "gradext"
_FOUND = "gradext_found"  # an attribute of a test's report: plain data, which xdist carries over


# What a guard reads, by the mode that asks for one.
_GUARDS: dict[str, GuardReads] = {"guard": EXPOSED, "guard-all": ALL}


class GradextWarning(UserWarning):
    """What gradext found in a test that passes."""


class _Watch:
    """One test, from the set-up of its fixtures to their end."""

    def __init__(self, mode: str, allowed: frozenset[str]) -> None:
        self.allowed = allowed
        self.told: list[Incident] = []
        reads = _GUARDS.get(mode)
        self.recording = Recording(RecordOptions(saves=mode != "light", guard=reads))
        with contextlib.ExitStack() as begun:
            self.recording.start()
            begun.callback(self.recording.stop)
            begun.callback(incidents.subscribe(self.told.append))
            if reads is not None:
                begun.callback(guard.start_quietly(reads))
            self.stop = begun.pop_all().close

    def of_error(self, error: BaseException) -> list[Diagnosis]:
        """What explains the exception that the test failed with; none for any other exception."""
        chain = errors.chain(error)
        for incident in self.told:
            if incident.error is not None and any(map(incident.matches, chain)):
                return self._kept(incident.diagnoses)
        return self._kept(explain(error, self.recording))

    def silent(self) -> list[Diagnosis]:
        """The diagnoses of what is wrong although nothing was raised, each once."""
        incidents.settle(self.recording)
        found = {
            (d.code, d.message): d
            for incident in self.told
            if incident.error is None
            for d in incident.diagnoses
        }
        return self._kept(found.values())

    def _kept(self, found: Iterable[Diagnosis]) -> list[Diagnosis]:
        return [d for d in found if d.code not in self.allowed]


class Plugin:
    """Records tests, as `mode` or their markers say.

    Args:
        mode: of gradext_pytest.MODES, for tests without a marker.
    """

    def __init__(self, config: pytest.Config, mode: str) -> None:
        self._config = config
        self._mode = mode
        self._warns_only = config.getoption("--gradext-warn")
        path = config.getoption("--gradext-json")
        self._path = results_file.absolute(path) if path else None
        self._allowed = frozenset(config.getini("gradext_allow"))
        self._watch: _Watch | None = None
        self._tests: list[dict[str, Any]] = []
        if self._path and (why := results_file.problem(self._path)) is not None:
            raise pytest.UsageError(f"--gradext-json: {why}")

    def pytest_report_header(self) -> str | None:
        if self._mode == "off":
            return None
        said = {"light": ", culprits only"} | dict.fromkeys(_GUARDS, ", with a guard")
        more = said.get(self._mode, "")
        return f"gradext {__version__}: each test is recorded{more}"

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        mode, allowed = self._wanted(item)
        if mode == "off":
            return (yield)
        with _only_counted("the beginning of a test's recording"):
            self._watch = _Watch(mode, allowed)
        try:
            return (yield)
        finally:
            watch, self._watch = self._watch, None
            if watch is not None:
                with _only_counted("the end of a test's recording"):
                    watch.stop()

    def _wanted(self, item: pytest.Item) -> tuple[str, frozenset[str]]:
        """How a test is recorded: the nearest marker decides, and allows are added up."""
        mode, allowed = self._mode, self._allowed
        marks = list(item.iter_markers("gradext"))
        for mark in marks:
            allowed |= frozenset(mark.kwargs.get("allow", ()))
        if marks:
            asked = marks[0].kwargs.get("guard")
            if asked is not None or mode == "off":
                reads = guard_reads(asked)
                mode = next((name for name, one in _GUARDS.items() if one == reads), "record")
        return mode, allowed

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        watch = self._watch
        if watch is None:
            return report
        with _only_counted("the report of a test"):
            if call.excinfo is not None and report.failed:
                self._of_failure(report, watch.of_error(call.excinfo.value))
            elif call.when == "call" and report.passed and not hasattr(report, "wasxfail"):
                self._of_pass(report, item, watch.silent())
        return report

    def _of_failure(self, report: pytest.TestReport, found: Sequence[Diagnosis]) -> None:
        if not found:
            return
        text = _text(found)
        add = getattr(report.longrepr, "addsection", None)
        if add is not None:
            add(SECTION, text, "-")  # part of the failure, so that junitxml has it, too
        else:
            report.sections.append((SECTION, text))
        _attach(report, found)

    def _of_pass(
        self, report: pytest.TestReport, item: pytest.Item, found: Sequence[Diagnosis]
    ) -> None:
        if not found:
            return
        wrong = [d for d in found if d.severity == "error"]
        if wrong and not self._warns_only:
            report.outcome = "failed"
            report.longrepr = _text(found)
        else:
            item.warn(GradextWarning(f"{item.nodeid}\n{_text(found)}"))
        _attach(report, found)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = getattr(report, _FOUND, None)
        if found and not hasattr(self._config, "workerinput"):
            test = {"nodeid": report.nodeid, "when": report.when, "outcome": report.outcome}
            self._tests.append({**test, "diagnoses": found})

    def pytest_sessionfinish(self) -> None:
        if not self._path or hasattr(self._config, "workerinput"):
            return
        document = {"gradext": __version__, "tests": self._tests}
        try:
            results_file.replace(self._path, json.dumps(document, indent=1) + "\n")
        except OSError as error:
            self._tests.clear()
            own_errors.count(error, f"--gradext-json {self._path}")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for line in own_errors.lines():
            terminalreporter.write_line(f"gradext: {line}")


@contextlib.contextmanager
def _only_counted(where: str) -> Generator[None, None, None]:
    """An error of gradext's own changes no test's outcome."""
    try:
        yield
    except Exception as error:
        own_errors.count(error, where)


def _text(found: Sequence[Diagnosis]) -> str:
    return diagnosis_text.report(folding.by_cause(found), color=False).rstrip("\n")


def _attach(report: pytest.TestReport, found: Sequence[Diagnosis]) -> None:
    setattr(report, _FOUND, [d.to_json() for d in found])
