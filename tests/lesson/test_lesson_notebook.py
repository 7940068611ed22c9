"""The notebook holds the lesson's own code, runs, and docs/lesson.ipynb is up to date."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gradext.lesson import core, notebook, snippets
from gradext.lesson.core import Chapter, Depends, Lesson

COMMITTED = Path(__file__).parents[2] / "docs" / "lesson.ipynb"
CLAIMS = [claim for chapter in core.chapters() for claim in chapter.claims]

AS_EXPECTED = re.compile(
    r"^(TRUE, as expected|FALSE, as expected\n\S.+|IT DEPENDS, as expected: .+|CANNOT TELL on .+)",
    re.M,
)

CHAPTER = Chapter(91, "for the tests", "Nothing but tests.")


def helper() -> int:
    return 2


@CHAPTER.claim("Two.", verdict="true")
def two(lesson: Lesson) -> bool | Depends:
    answer = helper()
    lesson.show("answer", answer)
    return answer == 2 and (answer > 1)


@CHAPTER.claim("Returns early.", verdict="true")
def early(lesson: Lesson) -> bool | Depends:
    if lesson.quick:
        lesson.show("quick", True)
        return True
    return False


def sources(document: dict[str, Any]) -> list[tuple[str, str]]:
    return [(cell["cell_type"], "".join(cell["source"])) for cell in document["cells"]]


def test_a_cell_is_the_body_with_its_return_judged() -> None:
    cell = snippets.cell(CHAPTER.claims[0])
    begin, *body, _ = cell.split("\n")
    assert begin == 'lesson.begin("91.1")'
    assert body[:2] == ["answer = helper()", 'lesson.show("answer", answer)']
    assert "assert lesson.verdict(" in cell
    assert "return" not in cell
    ast.parse(cell)
    assert snippets.imports(CHAPTER.claims) == f"from {__name__} import helper"


def test_a_claim_that_returns_early_is_refused() -> None:
    with pytest.raises(ValueError, match=r"claim 91\.2 must return once, in its last statement"):
        snippets.cell(CHAPTER.claims[1])


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.number)
def test_each_claims_cell_has_each_line_that_the_lesson_shows(claim: core.Claim) -> None:
    cell = snippets.cell(claim)
    ast.parse(cell)
    (last,) = [node for node in ast.parse(claim.code).body if isinstance(node, ast.Return)]
    shown = claim.code.splitlines()[: last.lineno - 1]
    assert cell.splitlines()[1 : len(shown) + 1] == shown


def test_the_committed_notebook_is_the_one_the_lesson_generates() -> None:
    committed = json.loads(COMMITTED.read_text(encoding="utf-8"))
    assert sources(committed) == sources(notebook.build(core.chapters())), (
        "run: python -m gradext.lesson.notebook docs/lesson.ipynb"
    )


def test_the_committed_notebook_was_run_and_names_no_machine() -> None:
    committed = json.loads(COMMITTED.read_text(encoding="utf-8"))
    verdicts = [
        cell for cell in committed["cells"]
        if cell["id"].startswith("claim-") and cell["cell_type"] == "code"
    ]  # fmt: skip
    assert len(verdicts) == len(CLAIMS)
    for cell in verdicts:
        (output,) = cell["outputs"]
        assert output["output_type"] == "stream"
        assert AS_EXPECTED.search("".join(output["text"]))
    text = COMMITTED.read_text(encoding="utf-8")
    assert not any(word in text for word in ("/home/", "/root/", "/tmp/", "Traceback"))


def test_the_committed_notebook_is_valid() -> None:
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.read(COMMITTED, as_version=4))


def test_the_notebook_runs_and_each_verdict_is_as_stated() -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    executed = notebook.execute(notebook.build(core.chapters()))
    ends = [
        "".join(cell["outputs"][0]["text"])
        for cell in executed["cells"]
        if cell["id"].startswith("claim-") and cell["cell_type"] == "code"
    ]
    assert len(ends) == len(CLAIMS)
    assert all(AS_EXPECTED.search(end) for end in ends)


def test_a_cell_fails_when_the_verdict_is_not_the_stated_one() -> None:
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    document = notebook.build(core.select(1))
    for cell in document["cells"]:
        if cell["id"] == "claim-1-1":
            cell["source"][-1] = cell["source"][-1].replace("verdict(", "verdict(not (") + ")"
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="AssertionError"):
        notebook.execute(document)


def test_verdict_before_begin_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    lesson = notebook.NotebookLesson()
    with pytest.raises(RuntimeError, match=r"lesson\.begin\(number\) comes before"):
        lesson.verdict(True)
    lesson.begin("1.1")
    assert lesson.verdict(True)
    assert not lesson.verdict(False)
    assert "FALSE  NOT AS EXPECTED: TRUE was" in capsys.readouterr().out


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.number)
def test_each_snippet_runs_in_a_namespace_of_its_own(claim: core.Claim, capsys) -> None:
    """As it is shown, pasted into a file: nothing is there but what it imports."""
    text = snippets.snippet(claim)
    assert max(map(len, text.splitlines())) <= 100
    names: dict[str, Any] = {"__name__": "__main__"}
    with core.isolated("cpu"):
        exec(compile(text, "pasted.py", "exec", dont_inherit=True), names)
    assert AS_EXPECTED.search(capsys.readouterr().out)
    modules = {
        node.module
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and node.module
    }
    private = [name for module in modules for name in module.split(".") if name.startswith("_")]
    assert private == []


@pytest.mark.parametrize("number", ["1.7", "2.5", "5.11"])
def test_a_snippet_runs_as_a_file(tmp_path: Path, number: str) -> None:
    (claim,) = (claim for claim in CLAIMS if claim.number == number)
    (tmp_path / "pasted.py").write_text(snippets.snippet(claim), encoding="utf-8")
    root = str(Path(core.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "pasted.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert AS_EXPECTED.search(done.stdout)
