"""The edits in a run's JSON, and the `fix:` line below a report."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import forks
import pytest

from gradext.run import fixes

pytest.importorskip("libcst")

STALE = """
import sys, torch
w = torch.ones(3, requires_grad=True)
y = w.exp()
y *= 2
y.sum().backward()
"""


def start(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NO_COLOR": "1", **variables}
    if words[0] == "-m" or (not variables and words[0].endswith(".py")):
        code, out, err = forks.run(words, folder, environment)
        return subprocess.CompletedProcess(words, code, out.decode(), err.decode())
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def write(folder: Path, text: str, name: str = "train.py") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text).lstrip("\n"))
    return path


def edited(path: Path, fix: dict[str, Any]) -> str:
    """The file with the edits made by their lines and columns alone."""
    lines = path.read_text().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    text = path.read_text()
    for edit in sorted(fix["edits"], key=lambda e: (e["line"], e["column"]), reverse=True):
        assert edit["file"] == str(path)
        begin = starts[edit["line"] - 1] + edit["column"]
        end = starts[edit["end_line"] - 1] + edit["end_column"]
        text = text[:begin] + edit["text"] + text[end:]
    return text


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (STALE, "GX101"),
        (
            """
            import torch
            net = torch.nn.Linear(2, 1)
            with torch.inference_mode():
                x = torch.ones(4, 2)
            net(x).sum().backward()
            """,
            "GX201",
        ),
        (
            """
            import torch

            def update(p):
                p -= 0.1

            update(torch.ones(2, requires_grad=True))
            """,
            "GX102",
        ),
        (
            """
            import torch
            w = torch.ones(2, requires_grad=True)
            loss = torch.tensor(w.sum().item())
            loss.backward()
            """,
            "GX301",
        ),
    ],
)
def test_the_first_edit_mends_the_program(tmp_path: Path, text: str, code: str) -> None:
    path = write(tmp_path, text).resolve()
    done = start(tmp_path, "-m", "gradext", "run", "--json", "out.json", "train.py")
    assert done.returncode == 1, done.stderr
    (found,) = json.loads((tmp_path / "out.json").read_text())["diagnoses"]
    assert found["code"] == code
    first = found["fixes"][0]
    assert first["title"]
    assert first["level"] == "untried"
    path.write_text(edited(path, first))
    assert start(tmp_path, "train.py").returncode == 0
    assert "fix: gradext fix train.py\n" in done.stderr
    assert done.stderr.index("help: ") < done.stderr.index("fix: ") < done.stderr.index("docs: ")


def test_the_command_can_be_typed(tmp_path: Path) -> None:
    text = STALE.replace("import sys, torch", "import sys, torch\nassert sys.argv[2] == 'a $b \"c'")
    write(tmp_path, text, "my train.py")
    words = ["my train.py", "--name", 'a $b "c']
    done = start(tmp_path, "-m", "gradext", "run", *words)
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("fix: ")]
    assert shlex.split(line) == ["fix:", "gradext", "fix", *words]
    typed = line.removeprefix("fix: gradext ")
    command = f"{shlex.quote(sys.executable)} -m gradext {typed}"
    again = subprocess.run(
        command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("verified")


def test_a_program_that_the_environment_records(tmp_path: Path) -> None:
    write(tmp_path, STALE)
    done = start(tmp_path, "-u", "-W", "ignore", "train.py", "7", GRADEXT_RECORD="1")
    if "error[GX101]" not in done.stderr:
        pytest.skip("gradext is not installed: nothing starts it")
    assert "fix: gradext fix train.py 7\n" in done.stderr


def test_nothing_is_imported_where_nothing_is_told(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
        import atexit, sys, torch

        atexit.register(lambda: print("libcst" in sys.modules))
        torch.ones(1, requires_grad=True).exp().backward()
        try:
            torch.ones(1).backward()
        except RuntimeError:
            pass
        """,
    )
    done = start(tmp_path, "-m", "gradext", "run", "train.py")
    assert done.stdout == "False\n", done.stderr


def test_without_libcst_there_is_neither(tmp_path: Path) -> None:
    write(tmp_path, f"import sys\nsys.modules['libcst'] = None\n{STALE}")
    done = start(tmp_path, "-m", "gradext", "run", "--json", "out.json", "train.py")
    assert "error[GX101]" in done.stderr
    assert "fix: " not in done.stderr
    assert "gradext: " not in done.stderr
    (found,) = json.loads((tmp_path / "out.json").read_text())["diagnoses"]
    assert "fixes" not in found


def test_what_came_from_stdin_cannot_be_run_again(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gradext", "run", "-"],
        cwd=tmp_path,
        input=STALE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "error[GX101]" in done.stderr
    assert "fix: " not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["python", "a.py", "-c", "x y"], "gradext fix a.py -c 'x y'"),
        (["python", "-u", "-X", "dev", "-Wignore", "a.py"], "gradext fix a.py"),
        (["python", "-m", "pkg.train", "--lr", "1"], "gradext fix -m pkg.train --lr 1"),
        (["python", "-B", "-c", "f(1)"], "gradext fix -c 'f(1)'"),
        (["python", "-c", "a\nb"], None),
        (["python", "-um", "pkg"], None),
        (["python", "-"], None),
        (["python"], None),
        (["python", "-i"], None),
    ],
)
def test_the_words_of_a_process(words: list[str], said: str | None) -> None:
    assert fixes.command(words) == said


def test_the_report_is_there_whatever_happens_to_the_edits(tmp_path: Path) -> None:
    (tmp_path / "libcst").mkdir()
    (tmp_path / "libcst" / "__init__.py").write_text("raise SystemError('no such machine')\n")
    write(tmp_path, STALE)
    done = start(tmp_path, "-m", "gradext", "run", "--json", "out.json", "train.py")
    assert done.returncode == 1
    assert "error[GX101]" in done.stderr
    assert "no such machine (in Session._look_for_fixes)" in done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["diagnoses"]
