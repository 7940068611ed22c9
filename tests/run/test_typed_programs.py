"""Programs of `-c` and of stdin have their lines in the report, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest

SOURCE = """\
import torch
w = torch.ones(3, requires_grad=True)
made = {}
exec("def f(h):\\n    h.mul_(2)\\n\\n\\n", made)
def step():
    h = torch.exp(w)
    made["f"](h)
    h += 1
    h.sum().backward()
step()
"""


@pytest.mark.parametrize("how", ["-c", "-"])
def test_the_lines_are_shown(how: str, recorded: Any, plain: Any) -> None:
    words = ["-c", SOURCE] if how == "-c" else ["-"]
    stdin = SOURCE.encode() if how == "-" else b""
    ran, report = recorded(*words, stdin=stdin)
    expected = plain(*words, stdin=stdin)
    # The traceback is that of plain Python, which has no lines of them (before 3.13).
    assert ran.err.startswith(expected.err)
    told = ran.errors[len(expected.errors) :]
    name = "<string>" if how == "-c" else "<stdin>"
    assert f"::: {name}:6:9 in step\n" in told, told
    assert "6 |     h = torch.exp(w)\n" in told
    assert "  |         ------------ Exp saves `h`" in told
    (found,) = report["diagnoses"]
    files = [site["file"] for site in (*found["culprits"], *found["victims"])]
    # What exec() ran has lines of its own, which are not those of the program.
    assert sorted(set(files)) == sorted({name, "<string> of exec()" if how == "-c" else "<string>"})
    inner = next(site for site in found["culprits"] if site["function"] == "f")
    assert (inner["line"], inner["code"]) == (2, "")
    where, _, behind = told.partition(f"--> {inner['file']}:2:5 in f\n")
    assert where, told
    assert behind.lstrip().startswith("= mul_ writes `h`"), told


def test_the_help_can_be_typed(recorded: Any) -> None:
    lines = "import torch\nw = torch.ones(3, requires_grad=True)\nh = w.exp()\nh += 1\nh.sum()"
    code = f"{lines}.backward()"
    ran, report = recorded("-c", code)
    assert "help: at line 4 make a new tensor: `h = h + 1`" in ran.errors
    (found,) = report["diagnoses"]
    mended = code.replace("h += 1", found["fix"].split("`")[1])
    ran, report = recorded("-c", mended)
    assert (ran.code, report["diagnoses"]) == (0, [])
