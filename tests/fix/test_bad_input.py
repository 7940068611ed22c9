"""What cannot be patched, or not written: one clear line each, and nothing is changed."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import pytest
from forks import fix

STALE = """
import torch
w = torch.ones(3, requires_grad=True)
y = w.exp()
y *= 2
y.sum().backward()
"""


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "gradext", "fix", *words]


def variables() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_a_script_in_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        archive.writestr("__main__.py", STALE)
    done = fix(tmp_path, "--apply", "app.zip")
    assert done.returncode == 2
    assert last_line(done).endswith("lies in an archive: unpack it, and run the folder")
    assert done.stdout == ""


def test_a_package_in_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "lib.zip", "w") as archive:
        archive.writestr("pkg/__init__.py", "def half(y):\n    y.div_(2)\n    return y\n")
    text = """
    import sys, torch
    sys.path.insert(0, "lib.zip")
    import pkg
    w = torch.ones(3, requires_grad=True)
    h = w.exp()
    pkg.half(h).sum().backward()
    """
    (tmp_path / "train.py").write_text(textwrap.dedent(text))
    done = fix(tmp_path, "--json", "out.json", "train.py")
    assert "Traceback" not in done.stderr
    found = json.loads((tmp_path / "out.json").read_text())["candidates"]
    # The line in the archive stays; the program's own lines may be patched.
    assert {Path(path).name for one in found for path in one["files"]} <= {"train.py"}


def test_a_notebook_is_shown_cell_by_cell(tmp_path: Path) -> None:
    sources = [
        ["%matplotlib inline\n", "import torch\n", "w = torch.ones(3, requires_grad=True)"],
        ["y = w.exp()\n", "y *= 2\n", "!ls\n"],
        ["%%bash\n", "exit 3"],
        ["y.sum().backward()"],
    ]
    cells = [{"cell_type": "markdown", "source": ["# A title"]}]
    cells += [{"cell_type": "code", "source": lines} for lines in sources]
    path = tmp_path / "train.ipynb"
    path.write_text(json.dumps({"nbformat": 4, "cells": cells}))
    before = path.read_bytes()
    done = fix(tmp_path, "--apply", "--tries", "1", "train.ipynb")
    assert done.stdout.startswith("verified"), done.stderr
    assert "--- a/train.ipynb, cell 3\n+++ b/train.ipynb, cell 3\n" in done.stdout
    assert "-y *= 2\n+y = y * 2\n" in done.stdout
    assert "of a notebook are not written to" in last_line(done)
    assert done.returncode == 2
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["{}", "no json", '{"cells": [1]}'])
def test_what_is_no_notebook(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.ipynb").write_text(text)
    done = fix(tmp_path, "a.ipynb")
    assert done.returncode == 2
    assert last_line(done) == "gradext fix: error: a.ipynb is no notebook"
    assert last_line(fix(tmp_path, "b.ipynb")).startswith("gradext fix: error: cannot read b.ipynb")


def test_a_read_only_file(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(STALE)
    path.chmod(0o444)
    done = fix(tmp_path, "--apply", "--tries", "1", "train.py")
    assert done.returncode == 2
    assert last_line(done).endswith("train.py may not be written; nothing was written")
    assert path.read_text() == STALE
    assert os.listdir(tmp_path) == ["train.py"]


def test_a_file_that_changed_since(tmp_path: Path) -> None:
    """It is edited while the patch is tried: here by the program itself."""
    path = tmp_path / "train.py"
    path.write_text(STALE + "open(__file__, 'a').write('# edited\\n')\n")
    done = fix(tmp_path, "--apply", "--tries", "1", "train.py")
    assert done.stdout.startswith("verified"), done.stderr
    assert "has changed since it was tried; nothing was written" in last_line(done)
    assert done.returncode == 2
    assert "y *= 2" in path.read_text()
    assert path.read_text().endswith("# edited\n")


def test_tabs_line_ends_and_a_coding_line_stay_byte_for_byte(tmp_path: Path) -> None:
    lines = [
        "# -*- coding: latin-1 -*-",
        "import torch  # Gr\u00f6\u00dfe",
        "def step(w):",
        "\ty = w.exp()  ;  z = '\u00e9'",
        "\ty *= 2 \\",
        "\t\t+ 1\t# tab",
        "\treturn y.sum()",
        "step(torch.ones(3, requires_grad=True)).backward()",
    ]
    path = tmp_path / "train.py"
    path.write_bytes("\r\n".join(lines).encode("latin-1"))  # and no line end at the end
    before = path.read_bytes()
    done = fix(tmp_path, "--apply", "train.py")
    assert done.returncode == 0, done.stderr
    changed = path.read_bytes()
    old, new = before.split(b"\r\n"), changed.split(b"\r\n")
    kept = [line for line in old if line in new]
    assert len(kept) >= len(old) - 2
    assert set(old) - set(new) <= {old[4], old[5]}
    assert b"\n" not in changed.replace(b"\r\n", b"")
    assert subprocess.run([sys.executable, "train.py"], cwd=tmp_path, check=False).returncode == 0


def test_a_script_that_fails_before_any_backward_names_its_error(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import torch\nopen('no/such/file')\n")
    done = fix(tmp_path, "--apply", "train.py")
    assert done.returncode == 2
    assert "no fault of autograd: FileNotFoundError" in last_line(done)
    assert last_line(fix(tmp_path, "gone.py")).startswith("gradext fix: the program ends with")


def test_a_fault_that_nothing_is_known_against(tmp_path: Path) -> None:
    text = "import torch\nexec('y = torch.ones(2, requires_grad=True).exp(); y += 1')\n"
    (tmp_path / "train.py").write_text(text + "y.sum().backward()\n")
    done = fix(tmp_path, "--code", "GX404", "train.py")
    assert done.returncode == 2
    assert last_line(done).startswith("gradext fix: ")


PHASES = ("running the program as it is", "trying 1 of", "running the reference")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_interrupt_changes_nothing(tmp_path: Path, number: int) -> None:
    """In the first run, the second and the third, each of which is a phase of its own."""
    path, pids = tmp_path / "train.py", tmp_path / "pids"
    wait = f"""
    import os, time
    with open("pids", "a") as file:
        file.write(f"{{os.getpid()}} ")
    with open("pids") as file:
        if len(file.read().split()) > {number}:
            time.sleep(60)
    """
    path.write_text(text := textwrap.dedent(wait) + STALE)
    process = subprocess.Popen(
        command("--apply", "train.py"),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=variables(),
        # What has started the tests may have it ignored, and children inherit that.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    while PHASES[number] not in process.stderr.readline():
        pass
    ends = time.monotonic() + 60
    while not pids.exists() or len(pids.read_text().split()) <= number:
        assert time.monotonic() < ends
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert error.strip().splitlines()[-1] == "gradext fix: interrupted; nothing was changed"
    assert process.returncode == 130
    assert path.read_text() == text
    assert sorted(os.listdir(tmp_path)) == ["pids", "train.py"]
    for pid in pids.read_text().split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)
