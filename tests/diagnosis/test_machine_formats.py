"""Concise lines, annotations and SARIF, from diagnoses made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradext.diagnosis.model import Diagnosis, Frame, Site
from gradext.diagnosis.run_report import RunReport, Told
from gradext.reporters import concise, github, sarif


def frame(file: str, line: int = 3, column: int | None = 4, end_line: int | None = 3) -> Frame:
    return Frame(file, line, "step", "x", column, end_line, None if column is None else 9)


def wrong(at: Frame | None, message: str = "wrong", **more: object) -> Diagnosis:
    culprits = () if at is None else (Site(at, label="writes it"),)
    return Diagnosis("GX304", message=message, culprits=culprits, **more)  # type: ignore[arg-type]


def test_nothing_from_outside_breaks_a_line(tmp_path: Path) -> None:
    """A file's name, and a message: with line ends, escapes, and what GitHub reads as a command."""
    name = str(tmp_path / "a,b:c%0A\n::error::\x1b[31m.py")
    found = [wrong(frame(name), "100% wrong\n::warning::more\x1b[0m", fix="a\nb")]
    for text in (concise.lines(found), github.lines(found)):
        assert len(text.splitlines()) == 1
        assert "\x1b" not in text
    written = github.lines(found)
    properties, _, said = written.removeprefix("::warning ").partition("::")
    assert "\n" not in properties
    assert "a%2Cb%3Ac%250A" in properties
    assert said.startswith("100%25 wrong%0A::warning::more")


def test_without_a_line_or_columns() -> None:
    assert concise.lines([wrong(None)]) == "GX304 wrong"
    assert github.lines([wrong(None)]) == "::warning title=GX304 silent-cut::wrong"
    bare = wrong(frame("<string>", column=None, end_line=None))
    assert concise.lines([bare]) == "<string>:3:1: GX304 wrong"
    assert "col=" not in github.lines([bare])
    window = wrong(None, window=(frame("/a.py"), frame("/a.py", 9)))
    assert concise.lines([window]) == "/a.py:3:5: GX304 wrong"


def test_an_expression_of_several_lines_has_no_columns_on_github() -> None:
    assert "col=" not in github.lines([wrong(frame("/a.py", end_line=5))])


def test_sarif_of_a_program_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b.py").write_text("x\n")
    told = (
        Told(wrong(frame(str(tmp_path / "a b.py")), victims=(Site(frame("/c.py")),)), count=4),
        Told(wrong(None)),
    )
    report = RunReport("0.1", "2.13", 1, "ValueError: no", told)
    (run,) = json.loads(sarif.text(report))["runs"]
    first, second = run["results"]
    assert first["occurrenceCount"] == 4
    location = first["locations"][0]["physicalLocation"]["artifactLocation"]
    assert location == {"uri": "a%20b.py", "uriBaseId": "SRCROOT"}
    related = first["relatedLocations"][0]["physicalLocation"]["artifactLocation"]
    assert related == {"uri": "file:///c.py"}
    assert "locations" not in second
    assert run["invocations"][0]["executionSuccessful"] is False
    assert run["invocations"][0]["exitCode"] == 1
