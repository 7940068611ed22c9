"""`--json FILE` never takes a file away from somebody who uses it: refused before the program."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import RUN, Ended

SCRIPT = "print('out')\nimport sys; print('err', file=sys.stderr)\n"


def shell(line: str, folder: Path) -> Ended:
    """`gradext run` in a shell's command line, {run} in it."""
    (folder / "train.py").write_text(SCRIPT)
    run = f"{sys.executable} {' '.join(RUN)}"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and k[:8] != "GRADEXT_"}
    done = subprocess.run(
        ["bash", "-c", line.format(run=run)], cwd=folder, env=env, capture_output=True, timeout=120
    )
    return Ended(done.returncode, done.stdout, done.stderr)


# The command, where the one line of the refusal goes, and what it says.
REFUSED = {
    "stdout to a file": ("{run} --json /dev/stdout train.py > out", "it is this process's stdout"),
    "stdout by number": ("{run} --json /dev/fd/1 train.py > out", "it is this process's stdout"),
    "stdout through proc": (
        "{run} --json /proc/self/fd/1 train.py > out",
        "it is this process's stdout",
    ),
    "stdout by name": ("{run} --json out train.py > out", "it is this process's stdout"),
    "stdout through a link": (
        "ln -s out link; {run} --json link train.py > out",
        "it is this process's stdout",
    ),
    "stdout through a hard link": (
        "touch out; ln out link; {run} --json link train.py > out",
        "it is this process's stdout",
    ),
    "stdin": ("{run} --json train.py - < train.py", "it is this process's stdin"),
    "another file that is open": (
        "{run} --json /dev/fd/7 train.py 7> out",
        "this process has it open",
    ),
    "stdout to a pipe": ("{run} --json /dev/stdout train.py | cat; exit 2", "not a regular file"),
    "the program": ("{run} --json train.py train.py", "it is the program itself"),
    "the program through a link": (
        "ln -s train.py link; {run} --json link train.py",
        "it is the program itself",
    ),
    "a looped link": ("ln -s loop loop; {run} --json loop train.py", "a link that leads nowhere"),
    "two looped links": (
        "ln -s a b; ln -s b a; {run} --json a train.py",
        "a link that leads nowhere",
    ),
    "a pipe": ("mkfifo pipe; {run} --json pipe train.py", "it is not a regular file"),
    "a device": ("{run} --json /dev/full train.py", "it is not a regular file"),
    "a folder": ("{run} --json . train.py", "it is not a regular file"),
    "no folder": ("{run} --json no/report.json train.py", "there is no folder"),
    "a file for a folder": ("{run} --json train.py/x train.py", "there is no folder"),
    "a dangling link to no folder": (
        "ln -s no/x link; {run} --json link train.py",
        "there is no folder",
    ),
    "a long name": ("{run} --json " + "n" * 300 + " train.py", "File name too long"),
    "an almost long name": ("{run} --json " + "n" * 250 + " train.py", "File name too long"),
    "a dash": ("{run} --json - train.py", "name a file, for stdout is the program's"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    line, said = REFUSED[name]
    done = shell(line, tmp_path)
    assert done.code == 2
    assert done.out == b""  # the program did not run
    assert said in done.errors.splitlines()[-1]
    assert "Traceback" not in done.errors
    assert (tmp_path / "train.py").read_text() == SCRIPT
    out = tmp_path / "out"
    assert not out.exists() or out.read_bytes() == b""
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def test_stderr_to_a_file(tmp_path: Path) -> None:
    """The line itself goes there."""
    done = shell("{run} --json /dev/stderr train.py 2> err", tmp_path)
    assert (done.code, done.out) == (2, b"")
    assert "it is this process's stderr" in (tmp_path / "err").read_text()


def test_a_folder_that_nobody_may_write_to(tmp_path: Path) -> None:
    done = shell("{run} --json /sys/r.json train.py", tmp_path)  # not even root
    assert (done.code, done.out) == (2, b"")
    (line,) = done.errors.splitlines()
    assert line.startswith("gradext run: cannot write /sys/r.json: ")


def test_no_space(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk."""
    done = shell("trap '' XFSZ; ulimit -f 0; {run} --json r.json train.py", tmp_path)
    assert (done.code, done.out) == (2, b"")
    assert "File too large" in done.errors.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]


def _a_file(folder: Path) -> Path:
    (folder / "r.json").write_text("old")
    return folder / "r.json"


def _a_dangling_link(folder: Path) -> Path:
    (folder / "r.json").symlink_to("made.json")
    return folder / "made.json"


def _a_link_to_a_file(folder: Path) -> Path:
    (folder / "real.json").write_text("old")
    (folder / "r.json").symlink_to("real.json")
    return folder / "real.json"


def _a_hard_link(folder: Path) -> Path:
    (folder / "other.json").write_text("old")
    os.link(folder / "other.json", folder / "r.json")
    return folder / "r.json"


@pytest.mark.parametrize("make", [_a_file, _a_dangling_link, _a_link_to_a_file, _a_hard_link])
def test_accepted(make: Callable[[Path], Path], tmp_path: Path) -> None:
    real = make(tmp_path)
    was_link = (tmp_path / "r.json").is_symlink()
    done = shell("{run} --json r.json train.py > out", tmp_path)
    assert (done.code, done.err) == (0, b"err\n")
    assert (tmp_path / "out").read_bytes() == b"out\n"
    assert real.read_text().startswith("{")
    assert (tmp_path / "r.json").is_symlink() == was_link
    if make is _a_hard_link:  # the other name keeps what it had: no reader sees half a report
        assert (tmp_path / "other.json").read_text() == "old"


def test_by_the_environment_the_program_runs_without_its_report(tmp_path: Path, with_pth) -> None:
    folder = with_pth["PYTHONPATH"]
    (tmp_path / "t.py").write_text("import torch; print('out')\n")
    env = f"PYTHONPATH={folder} GRADEXT_RECORD=1 GRADEXT_JSON=/dev/stdout"
    done = shell(f"{env} {sys.executable} t.py > out", tmp_path)
    assert done.code == 0
    assert (tmp_path / "out").read_bytes() == b"out\n"
    assert done.errors == f"gradext: cannot write {tmp_path}/out: it is this process's stdout\n"
