"""`gradext report`: a JSON of `gradext run` shown again as it was told, or merged with others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gradext.commands import main
from gradext.diagnosis import saved_report
from gradext.diagnosis.model import Diagnosis, Fix, Frame, Site, TextEdit
from gradext.diagnosis.run_report import RunReport, Told
from gradext.diagnosis.whom import Whom
from gradext.reporters import run_json

SOURCE = "x = f(\n    1,\n)\nx += 1\n"


@pytest.fixture
def report(tmp_path: Path) -> RunReport:
    """Every field that a report can have."""
    script = tmp_path / "train.py"
    script.write_text(SOURCE)
    library = Frame("/site-packages/torch/x.py", 3, "inner", is_user=False)
    made = Frame(str(script), 1, "step", "x = f(", 4, 3, 1)
    wrote = Frame(str(script), 4, "step", "x += 1", 0, 4, 6)
    culprit = Site(wrote, "aten::add_", 0, 1, (library,), (made,), "add_ writes `x`", 3, True)
    edit = TextEdit(str(script), 4, 0, 4, 6, "x = x + 1")
    first = Diagnosis(
        *("GX101", "error", "x was written", (culprit,), (Site(made),), "write x = x + 1"),
        notes=("a note",),
        fixes=(Fix("out of place", (edit,)),),
    )
    second = Diagnosis("GX401", message="between", window=(made, wrote))
    told = (Told(first, 2, Whom(7, "actor", 1, 2, 1, 0, ("a", None))), Told(second))
    return RunReport("0.1", "2.13", 1, "RuntimeError: no", told)


@pytest.fixture
def saved(report: RunReport, tmp_path: Path) -> Path:
    path = tmp_path / "a.json"
    path.write_text(run_json.text(report))
    return path


def test_nothing_is_lost(report: RunReport, saved: Path) -> None:
    assert saved_report.load(str(saved)) == report


def test_shown_again(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(saved)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("gradext: 2 errors\n\nerror[GX101] stale-saved-tensor: x was written\n")
    assert "| ^^^^^^ add_ writes `x`: version 0 -> 1 (3 times)" in said
    assert "on rank 1 of 2, in DataLoader worker 0" in said
    assert main(["report", "--format", "concise", str(saved)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1][:5] for line in lines] == ["GX101", "GX401"]


def test_as_other_files(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, sarif = tmp_path / "a.html", tmp_path / "a.sarif"
    assert main(["report", str(saved), "--html", str(page), "--sarif", str(sarif)]) == 0
    assert capsys.readouterr() == ("", "")
    assert "x was written" in page.read_text()
    results = json.loads(sarif.read_text())["runs"][0]["results"]
    assert [result["ruleId"] for result in results] == ["GX101", "GX401"]


def test_of_two_machines(
    report: RunReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told, _ = report.told
    codes = [0, 3]
    for node, code in enumerate(codes):
        parts = [
            RunReport(
                "0.1", "2.13", code, None, (Told(told.diagnosis, 1, Whom(rank=rank, ranks=4)),)
            )
            for rank in (2 * node, 2 * node + 1)
        ]
        text = run_json.text(saved_report.merge(parts))
        (tmp_path / f"all.node{node}.json").write_text(text)
    files = [str(tmp_path / f"all.node{node}.json") for node in range(2)]
    every = tmp_path / "all.json"
    assert main(["report", "merge", *files, "-o", str(every)]) == 0
    merged = json.loads(every.read_text())
    assert merged["exit_code"] == 3
    assert [(p["rank"], p["exit_code"]) for p in merged["processes"]] == [
        (0, 0),
        (1, 0),
        (2, 3),
        (3, 3),
    ]
    assert [d["rank"] for d in merged["diagnoses"]] == [0, 1, 2, 3]
    assert capsys.readouterr().out == ""
    assert main(["report", str(every)]) == 0
    said = capsys.readouterr().out
    assert said.count("error[GX101]") == 1
    assert "on ranks 0-3 of 4" in said


def test_of_a_clean_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "clean.json"
    path.write_text(run_json.text(RunReport("0.1", None, 0, None, ())))
    assert main(["report", str(path)]) == 0
    assert capsys.readouterr().out == "gradext has found nothing in this run (exit code 0)\n"


def test_a_code_of_a_later_version(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved.write_text(saved.read_text().replace("GX401", "GX999"))
    sarif, copy = str(tmp_path / "a.sarif"), str(tmp_path / "b.json")
    assert main(["report", str(saved), "--sarif", sarif, "--json", copy]) == 0
    assert main(["report", str(saved)]) == 0
    assert "GX999" in capsys.readouterr().out


def damaged(text: str) -> list[Any]:
    """The document with each of its values, at whatever depth, replaced by one of another kind."""
    found: list[Any] = []

    def visit(at: Any) -> None:
        for key in list(at) if isinstance(at, dict) else range(len(at)):
            value = at[key]
            for wrong in ([], 1.5, {"x": None}, "x"):
                if type(wrong) is not type(value):
                    at[key] = wrong
                    found.append(json.dumps(document))
            at[key] = value
            if isinstance(value, (dict, list)):
                visit(value)

    document = json.loads(text)
    visit(document)
    return found


def test_no_damage_is_a_traceback(
    report: RunReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "damaged.json"
    texts = damaged(run_json.text(report))
    assert len(texts) > 300
    for text in texts:
        path.write_text(text)
        why = refusal(path)
        if why is None:  # a field that is not read, or one that may be of that kind
            run_json.text(saved_report.load(str(path)))
        else:
            assert why.startswith(f"{path} is no report of gradext run: ")
            assert why.isprintable()


def refusal(path: Path) -> str | None:
    try:
        saved_report.load(str(path))
    except saved_report.NotAReport as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "there is no such file"),
        ("", "it is no JSON"),
        ("[" * 99999, "it is no JSON"),
        ("[]", "an object is expected"),
        ('{"gradext": "0.1"}', "it lacks 'torch'"),
        ('{"tests": []}', "it lacks 'gradext'"),
    ],
)
def test_bad_files_cost_one_line(
    text: str | None, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.json"
    if text is not None:
        path.write_text(text)
    assert main(["report", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("gradext report: ")
    assert why in line


@pytest.mark.parametrize(
    "words",
    [
        ["merge"],
        ["merge", "a.json"],
        ["a.json", "-o", "b.json"],
        ["merge", "a.json", "-o", "nowhere/b.json"],
        ["a.json", "--html", "-"],
        ["a.json", "--html", "."],
    ],
)
def test_bad_words(
    words: list[str], saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["report", *words])
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("gradext report: ")
