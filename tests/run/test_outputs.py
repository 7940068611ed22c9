"""What `gradext run` tells, in which form, where to, and the exit code that it makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from programs import Ended, start

ROOT = Path(__file__).resolve().parent.parent.parent
LOOP = """\
import torch

w = torch.ones(3, requires_grad=True)
for _ in range(3):
    y = torch.sigmoid(w * 2)
    z = y * y
    y.data.mul_(2)
    z.sum().backward()
print("trained", flush=True)
{end}
"""


def run(folder: Path, *options: str, end: str = "", **env: str) -> Ended:
    (folder / "train.py").write_text(LOOP.format(end=end))
    words = ("-m", "gradext", "run", *options, "train.py")
    return start(words, folder, forked=True, PYTHONPATH=str(ROOT), COLUMNS="100", **env)


def test_concise_is_a_line_each(tmp_path: Path) -> None:
    ran = run(tmp_path, "--format", "concise")
    (line,) = ran.errors.splitlines()
    assert line.startswith("train.py:7:5: GX401 `y` (float32 [3]) was saved for backward")
    assert (ran.code, ran.text) == (0, "trained\n")


def test_github_has_annotations_by_itself(tmp_path: Path) -> None:
    ran = run(tmp_path, "--quiet", GITHUB_ACTIONS="true", GITHUB_WORKSPACE=str(tmp_path.parent))
    (line,) = ran.errors.splitlines()
    start_of = "::error title=GX401 silent-write,file={}/train.py,line=7,endLine=7,col=5"
    assert line.startswith(start_of.format(tmp_path.name)), line
    assert "%0Ahelp: " in line
    assert run(tmp_path, "--quiet", "--no-github", GITHUB_ACTIONS="true").err == b""


def test_the_report_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "report.txt").write_text("of the last run")
    ran = run(tmp_path, "-o", "report.txt", "--color", "always")
    assert ran.err == b""
    text = (tmp_path / "report.txt").read_text()
    assert "GX401" in text
    assert "\x1b[" in text
    assert "of the last run" not in text


def test_sarif(tmp_path: Path) -> None:
    ran = run(tmp_path, "--sarif", "found.sarif", "--json", "found.json", "--quiet")
    assert ran.err == b""
    document: dict[str, Any] = json.loads((tmp_path / "found.sarif").read_text())
    assert document["version"] == "2.1.0"
    (log,) = document["runs"]
    assert [rule["id"] for rule in log["tool"]["driver"]["rules"]] == ["GX401"]
    found = json.loads((tmp_path / "found.json").read_text())["diagnoses"]
    assert len(log["results"]) == len(found) > 0
    for result, diagnosis in zip(log["results"], found, strict=True):
        assert result["ruleId"] == diagnosis["code"]
        assert result["level"] == diagnosis["severity"]
        place = result["locations"][0]["physicalLocation"]
        assert place["artifactLocation"] == {"uri": "train.py", "uriBaseId": "SRCROOT"}
        assert place["region"]["startLine"] == diagnosis["culprits"][0]["line"] == 7
        assert place["region"]["startColumn"] == diagnosis["culprits"][0]["column"] + 1


def test_told_when_it_is_found(tmp_path: Path) -> None:
    """Between what the program prints itself, and at the end how often it was."""
    (tmp_path / "train.py").write_text(LOOP.format(end=""))
    words = ("-m", "gradext", "run", "--report", "now", "train.py")
    ran = start(words, tmp_path, merged=True, PYTHONPATH=str(ROOT))
    told, trained, rest = ran.text.partition("trained")
    assert told.count("error[GX401]") == 1, ran.text
    assert trained
    assert "error[GX401]" not in rest
    assert "happened 3 times" in rest
    assert rest.endswith("fix: gradext fix train.py\n")


@pytest.mark.parametrize(
    ("options", "end", "code"),
    [
        ((), "", 0),
        (("--error-exitcode", "7"), "", 7),
        (("--fail-on", "GX4"), "", 1),
        (("--fail-on", "gx401,GX304", "--error-exitcode", "9"), "", 9),
        (("--fail-on", "GX304"), "", 0),
        (("--fail-on", "GX4"), "raise SystemExit(0)", 1),
        (("--fail-on", "GX4"), "raise SystemExit(5)", 5),
        (("--error-exitcode", "7"), "1 / 0", 1),
    ],
)
def test_exit_codes(tmp_path: Path, options: tuple[str, ...], end: str, code: int) -> None:
    ran = run(tmp_path, *options, "--json", "found.json", end=end)
    assert ran.code == code, ran.errors
    assert json.loads((tmp_path / "found.json").read_text())["exit_code"] == code


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--fail-on", "GX9"), "no code begins with GX9"),
        (("--fail-on", ","), "no code is given"),
        (("--error-exitcode", "0"), "a whole number from 1 to 255, not '0'"),
        (("--error-exitcode", "\u0663"), "a whole number from 1 to 255"),
        (("-o", "nowhere/report"), "there is no folder"),
        (("-o", "-"), "name a file"),
        (("-o", "train.py"), "it is the program itself"),
        (("--format", "loud"), "invalid choice: 'loud'"),
    ],
)
def test_bad_input(tmp_path: Path, options: tuple[str, ...], line: str) -> None:
    ran = run(tmp_path, *options)
    assert ran.code == 2
    assert ran.text == ""
    assert line in ran.errors.splitlines()[-1]
    assert (tmp_path / "train.py").read_text()
