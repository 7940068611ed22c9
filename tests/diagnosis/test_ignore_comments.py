"""`# gradext: ignore` and `# gradext: ignore[CODE]`: every warning of a line, and no error."""

from __future__ import annotations

import json
import linecache
import os
import warnings
from pathlib import Path

import forks
import pytest

import gradext
from gradext.base import source_lines
from gradext.diagnosis import ignore_comments
from gradext.diagnosis.model import Diagnosis, Frame, Site

OVERLAP = """
import torch
z = torch.zeros(4).expand(3, 4)
z[1] = 5{comment}
for _ in range(100):
    pass
"""
CAUGHT = """
import torch
y = torch.ones(3, requires_grad=True).exp()
y.add_(1){comment}
try:
    y.sum().backward()
except RuntimeError:
    pass
print("goes on")
"""
SLOPE = """
import torch
x = torch.ones(3, requires_grad=True)
y = x.pow(3).sum()
(slope,) = torch.autograd.grad(y, x, retain_graph=True){comment}
(y + slope.pow(2).sum()).backward()
"""
SAVED = """
import torch
y = torch.ones(3, requires_grad=True).exp()
y.detach().numpy()[0] = 7{comment}
y.sum().backward()
"""
WARNINGS = {"GX404": (OVERLAP, ["--guard"]), "GX101": (CAUGHT, []), "GX304": (SLOPE, [])}
SILENCING = [
    "  # gradext: ignore",
    "  # gradext: ignore[{code}]",
    "  # gradext:ignore[GX1, {code}]",
]


def codes(folder: Path, text: str, *options: str) -> list[str]:
    """The codes in the report of `gradext run`, which agrees with what it prints."""
    (folder / "train.py").write_text(text)
    run = ("-m", "gradext", "run", "--json", "report.json", *options, "train.py")
    _, _, err = forks.run(run, folder, os.environ)
    found = [d["code"] for d in json.loads((folder / "report.json").read_text())["diagnoses"]]
    assert (b"[GX" in err) == bool(found), err
    return found


@pytest.mark.parametrize("code", WARNINGS)
def test_a_warning_is_told(tmp_path, code):
    text, options = WARNINGS[code]
    assert codes(tmp_path, text.format(comment=""), *options) == [code]


@pytest.mark.parametrize("comment", SILENCING)
@pytest.mark.parametrize("code", WARNINGS)
def test_a_comment_silences_it(tmp_path, code, comment):
    text, options = WARNINGS[code]
    text = text.format(comment=comment.format(code=code))
    assert codes(tmp_path, text, *options) == []


@pytest.mark.parametrize("code", WARNINGS)
def test_a_comment_for_another_code_does_not(tmp_path, code):
    text, options = WARNINGS[code]
    assert codes(tmp_path, text.format(comment="  # gradext: ignore[GX999]"), *options) == [code]


def test_an_error_that_nobody_catches_is_told(tmp_path):
    lines = CAUGHT.format(comment="  # gradext: ignore").replace("RuntimeError", "KeyError")
    assert codes(tmp_path, lines) == ["GX101"]


def test_gradients_that_are_wrong_are_told(tmp_path):
    assert codes(tmp_path, SAVED.format(comment="  # gradext: ignore"), "--guard") == ["GX401"]


def guarded(folder: Path, text: str) -> tuple[list[str], list[str]]:
    """The codes that a guard keeps, and those that it warns of, around a program of this text."""
    path = folder / "guarded.py"
    path.write_text(text)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with gradext.guard() as on:
            exec(compile(text, str(path), "exec"), {"__name__": "__main__"})
    words = [str(each.message) for each in told if each.category is gradext.GuardWarning]
    return [d.code for d in on.diagnoses], [line[line.index("[") + 1 :][:5] for line in words]


def test_a_guard_warns(tmp_path):
    assert guarded(tmp_path, OVERLAP.format(comment="")) == (["GX404"], ["GX404"])


@pytest.mark.parametrize("comment", SILENCING)
def test_a_guard_keeps_quiet(tmp_path, comment):
    text = OVERLAP.format(comment=comment.format(code="GX404"))
    assert guarded(tmp_path, text) == ([], [])


def test_a_guard_says_what_is_wrong_all_the_same(tmp_path):
    text = SAVED.format(comment="  # gradext: ignore")
    assert guarded(tmp_path, text) == (["GX401"], ["GX401"])


@pytest.mark.parametrize("way", ["another text", "no file yet", "in memory"])
def test_a_text_that_changed_is_read_again(tmp_path, way):
    file = tmp_path / "cell.py"
    name = f"<{file}>" if way == "in memory" else str(file)

    def write(text: str) -> None:
        if way == "in memory":  # as a notebook's cell that is run again under its name
            linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
            return
        file.write_text(text)
        linecache.checkcache(name)

    def is_silenced() -> bool:
        frame = Frame(name, 1, "step")
        return ignore_comments.silences(Diagnosis("GX304", victims=(Site(frame),)))

    if way != "no file yet":
        write("y = x.detach()\n")
    assert not is_silenced()
    write("y = x.detach()  # gradext: ignore\n")
    assert is_silenced()
    assert is_silenced()
    write("y = x.detach()  # gradext: ignore[GX101]\n")
    assert not is_silenced()


def test_a_file_without_comments_is_looked_through_once(tmp_path, monkeypatch):
    file = tmp_path / "train.py"
    file.write_text("y = x.detach()\n" * 50)
    found = Diagnosis("GX304", victims=(Site(Frame(str(file), 7, "step")),))
    assert not ignore_comments.silences(found)
    monkeypatch.setattr(source_lines, "getline", None)  # no line of it is read again
    assert not ignore_comments.silences(found)
