"""A session on incidents made by hand: order, severity, counts, bounds, what a child hands over."""

from __future__ import annotations

import json
import os
import sys

import pytest

from gradext.base import terminal
from gradext.diagnosis.model import Diagnosis, Frame, Site
from gradext.recording.options import RecordOptions
from gradext.run import session as sessions
from gradext.run import settings


def diagnosis(line, code="GX101", severity="error", **more):
    site = Site(Frame("/home/user/train.py", line, "step", "h.mul_(2)"), op="aten::mul_")
    return Diagnosis(code, severity, f"line {line}", (site,), (site,), fix="h = h * 2", **more)


class Incident:
    """What gradext.recording.incidents tells of; `error` None: a silent one."""

    def __init__(self, *diagnoses, error=None):
        self.diagnoses = diagnoses
        self.error = None if error is None else f"{type(error).__name__}: {error}"
        self.kind = "silent" if error is None else "backward"
        self._exception = error  # kept: another one could have its address

    def matches(self, error):
        return error is self._exception


@pytest.fixture
def session(tmp_path):
    """A root with a file; its hooks are not installed."""
    made = sessions.Session(
        settings.Settings.new({"json": str(tmp_path / "r.json")}, RecordOptions())
    )
    return made


def read(session):
    with open(session.path) as file:
        return json.load(file)


def told(session):
    return [(d["severity"], d["culprits"][0]["line"]) for d in read(session)["diagnoses"]]


def test_an_incident_is_written_at_once_and_is_open(session):
    error = RuntimeError("a")
    session.on_incident(Incident(diagnosis(1), error=error))
    assert told(session) == [("error", 1)]
    assert read(session)["exit_code"] is None
    assert read(session)["error"] is None


def test_the_next_error_of_a_thread_closes_the_one_before(session):
    session.on_incident(Incident(diagnosis(1), error=RuntimeError("a")))
    session.on_incident(Incident(diagnosis(2), error=RuntimeError("b")))
    assert told(session) == [("error", 2), ("warning", 1)]


def test_the_order(session):
    error = RuntimeError("uncaught")
    session.on_incident(Incident(diagnosis(1), error=RuntimeError("caught")))
    session.on_incident(Incident(diagnosis(2, "GX401", "warning")))
    session.on_incident(Incident(diagnosis(3, "GX401")))
    session.on_incident(Incident(diagnosis(4), diagnosis(5), error=error))
    session.uncaught(error)
    assert told(session)[:3] == [("error", 4), ("error", 5), ("error", 3)]
    assert sorted(told(session)[3:]) == [("warning", 1), ("warning", 2)]
    assert read(session)["error"] == "RuntimeError: uncaught"


def test_the_chain_of_an_uncaught_error(session):
    first, other, last = RuntimeError("first"), RuntimeError("other"), ValueError("last")
    for line, error in enumerate((first, other), 1):
        session.on_incident(Incident(diagnosis(line), error=error))
    last.__context__ = KeyError("between")
    last.__context__.__cause__ = first
    first.__context__ = last  # a circle must not hang it
    session.uncaught(last)
    assert told(session) == [("error", 1), ("warning", 2)]


def test_an_error_in_a_thread_does_not_hide_that_of_the_program(session):
    session.uncaught(ValueError("main"))
    session.uncaught(ValueError("thread"), in_thread=True)
    assert read(session)["error"] == "ValueError: main"


@pytest.mark.parametrize(("code", "severity"), [(0, "warning"), (1, "error")])
def test_an_exit_while_handling_an_error(session, code, severity):
    error, end = RuntimeError("a"), SystemExit(code)
    end.__context__ = error
    session.on_incident(Incident(diagnosis(1), error=error))
    session.exits(end, code)
    session.settle()
    session._finish()
    assert told(session) == [(severity, 1)]
    assert read(session)["exit_code"] == code
    assert read(session)["error"] is None


def test_counts_and_bounds(session):
    for _ in range(5):
        session.on_incident(Incident(diagnosis(0), error=RuntimeError("again")))
    for line in range(1, sessions.MAX_KEPT + 50):
        session.on_incident(Incident(diagnosis(line), error=RuntimeError("more")))
    last = RuntimeError("last")
    session.on_incident(Incident(diagnosis(9999), error=last))
    session.uncaught(last)
    report = read(session)["diagnoses"]
    assert len(report) == sessions.MAX_KEPT
    assert report[0]["culprits"][0]["line"] == 9999  # the newest is never the one left out
    assert session._entries.more == 51


def test_a_count_in_the_file_and_in_the_text(session):
    for _ in range(3):
        session.on_incident(Incident(diagnosis(1), error=RuntimeError("again")))
    session._finish()
    assert read(session)["diagnoses"][0]["count"] == 3
    assert session.diagnoses()[0].notes == ("this happened 3 times",)


def test_what_differs_in_one_place_is_told_apart(session):
    window = tuple(Frame("/home/user/train.py", line, "step") for line in (1, 2))
    session.on_incident(Incident(diagnosis(1), diagnosis(1, "GX102"), diagnosis(1, window=window)))
    assert len(read(session)["diagnoses"]) == 3


def test_without_a_file_nothing_is_made_for_one(monkeypatch):
    made = sessions.Session(settings.Settings.new({}, RecordOptions()))
    monkeypatch.setattr(made, "_report", lambda: 1 / 0)
    made.on_incident(Incident(diagnosis(1), error=RuntimeError("a")))
    assert made._own == []
    assert not os.path.exists(made.path)


def test_the_report_is_printed_once(session, capsys):
    session.on_incident(Incident(diagnosis(1)))
    session.report()
    session.report()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("error[GX101]") == 1
    assert said.err.startswith("\n")


def test_a_warning_that_turns_out_uncaught_is_printed_again(session, capsys):
    error = RuntimeError("a")
    session.on_incident(Incident(diagnosis(1), error=error))
    session.settle()
    session.report()
    assert "warning[GX101]" in capsys.readouterr().err
    session.uncaught(error)
    session.report()
    assert "error[GX101]" in capsys.readouterr().err


def test_nothing_of_gradext_reaches_the_program(session, capsys, monkeypatch):
    class Broken:
        @property
        def diagnoses(self):
            raise LookupError("broken")

        error = None

    session.on_incident(Broken())
    monkeypatch.setattr(session, "_report", lambda: 1 / 0)
    session.on_incident(Incident(diagnosis(1)))
    session._report_own_errors()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "gradext: LookupError: broken (in Session.on_incident)"
    assert lines[1].startswith("gradext: ZeroDivisionError: division by zero")


@pytest.mark.parametrize("stream", [None, "closed", "ascii"])
def test_a_standard_error_that_cannot_take_it(session, monkeypatch, capfd, stream, tmp_path):
    if stream == "closed":
        replaced = open(tmp_path / "x", "w")  # noqa: SIM115
        replaced.close()
    elif stream == "ascii":
        replaced = open(tmp_path / "x", "w", encoding="ascii")  # noqa: SIM115
    else:
        replaced = None
    monkeypatch.setattr(sys, "stderr", replaced)
    second = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    monkeypatch.setattr(sys, "__stderr__", second)
    terminal.print_safely("naïve")
    if stream == "ascii":
        assert (tmp_path / "x").read_text() == "na\\xefve\n"
    else:
        assert capfd.readouterr().err == "naïve\n"


def test_what_a_child_hands_over_is_the_same_diagnosis(session, monkeypatch):
    window = tuple(Frame("/home/user/train.py", line, "step", column=4) for line in (1, 2))
    site = Site(
        Frame("/é.py", 7, "f", "x", 1, 8, 9, False),
        "aten::add_",
        0,
        2,
        stack=(Frame("/lib.py", 1, "g"),),
        callers=(Frame("/é.py", 9, "h"), Frame("/é.py", 10, "<module>")),
        label="writes it",
        times=3,
    )
    full = Diagnosis("GX101", "error", "m", (site,), (site, site), "fix", ("a", "b"), window)
    child = sessions.Session(session.settings)
    child._pid = os.getpid() + 1
    assert not child.is_root
    child.on_incident(Incident(full, error=RuntimeError("a")))
    assert read(child)["run"] == session.settings.run
    session._merge_children()
    assert not os.path.exists(child.path)
    (entry,) = session._entries.values()
    assert entry.diagnosis == full
    assert entry.whom.pid == child._pid


def test_files_of_others_stay(session, tmp_path):
    others = {
        "r.json.12": "no json",
        "r.json.13": '{"child": 1, "run": "another", "entries": [], "own": []}',
        "r.json.14": "[]",
        "r.json.old": "{}",
        "other.json.15": json.dumps(
            {"child": 1, "run": session.settings.run, "entries": [], "own": []}
        ),
    }
    for name, text in others.items():
        (tmp_path / name).write_text(text)
    session._merge_children()
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == others


def test_a_child_that_writes_again_is_not_counted_twice(session):
    child = sessions.Session(session.settings)
    child._pid = os.getpid() + 1
    for expected in (1, 2):
        child.on_incident(Incident(diagnosis(1), error=RuntimeError("a")))
        child._write()
        session._merge_children()
        (entry,) = session._entries.values()
        assert entry.count == expected


def test_the_settings_cross_the_environment(session, monkeypatch):
    monkeypatch.delenv(settings.ENVIRONMENT, raising=False)
    assert settings.Settings.from_environment() is None
    monkeypatch.setenv(settings.ENVIRONMENT, "")
    session.settings.to_environment()
    assert settings.Settings.from_environment() == session.settings
    for text in ("null", "[1]", '{"a": 1}', "{"):
        monkeypatch.setenv(settings.ENVIRONMENT, text)
        with pytest.raises(settings.BadVariable, match="GRADEXT_RUN is not what"):
            settings.Settings.from_environment()


@pytest.mark.parametrize(
    ("code", "expected"),
    [(None, 0), (0, 0), (3, 3), (-1, 255), (256, 0), (2**70, 255), ("text", 1), (1.0, 1)],
)
def test_exit_codes(code, expected):
    from gradext.run.program import exit_code

    assert exit_code(SystemExit(code)) == expected


@pytest.mark.parametrize(
    ("words", "options", "target"),
    [
        (["a.py", "--json", "x"], [], ("script", "a.py", ("--json", "x"))),
        (["--json", "x", "a.py", "-m"], ["--json", "x"], ("script", "a.py", ("-m",))),
        (["--json=x", "-m", "a.b", "-c"], ["--json=x"], ("module", "a.b", ("-c",))),
        (["-ma.b", "c"], [], ("module", "a.b", ("c",))),
        (["--memory", "3", "-c", "x", "--", "y"], ["--memory", "3"], ("command", "x", ("--", "y"))),
        (["--guard", "-", "y"], ["--guard"], ("script", "-", ("y",))),
        (["--", "--json", "y"], [], ("script", "--json", ("y",))),
        (["--json"], ["--json"], None),
        ([], [], None),
    ],
)
def test_the_command_line(words, options, target):
    from gradext.commands.run import split

    found, program = split(words, {"--json", "--memory"})
    assert found == options
    assert (program and (program.kind, program.value, program.arguments)) == target
