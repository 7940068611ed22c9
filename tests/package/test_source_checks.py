"""The checks of the sources that a commit runs: layers of csrc/, length of files."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def check(tool: str, folder: Path) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "build_tools" / f"{tool}.py"), str(folder)],
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_rooms_of_csrc_include_only_rooms_below_them() -> None:
    assert check("check_csrc_layers", ROOT / "csrc") == (0, [])


# (file, line that is put before it, what is said of it)
BREACHES = [
    (
        "base/aside.h",
        '#include "recorder/switch.h"',
        "csrc/base/aside.h:1: base/ includes recorder/switch.h, which is not below it",
    ),
    (
        "journal/journal.cpp",
        '  #  include "guard/guard.h"  // for is_on()',
        "csrc/journal/journal.cpp:1: journal/ includes guard/guard.h, which is not below it",
    ),
    (
        "guard/lines/trace.cpp",
        '#include "findings/findings.h"',
        "csrc/guard/lines/trace.cpp:1: guard/ includes findings/findings.h, which is not below it",
    ),
    (
        "recorder/switch.cpp",
        '#include "switch.h"',
        'csrc/recorder/switch.cpp:1: "switch.h" is no path from csrc/',
    ),
    (
        "example_ops/axpby_cuda.cu",
        '#include "benchmarks/null_launch.h"',
        "csrc/example_ops/axpby_cuda.cu:1: example_ops/ includes benchmarks/null_launch.h, "
        "which is not below it",
    ),
]


@pytest.mark.parametrize("breach", BREACHES, ids=lambda breach: breach[0])
def test_an_include_that_leads_up_is_named(tmp_path: Path, breach: tuple[str, str, str]) -> None:
    file, include, told = breach
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    changed = tmp_path / "csrc" / file
    changed.write_text(f"{include}\n{changed.read_text()}")
    assert check("check_csrc_layers", tmp_path / "csrc") == (1, [told])


def test_a_room_without_a_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "csrc" / "cellar").mkdir(parents=True)
    (tmp_path / "csrc" / "cellar" / "a.cpp").write_text('#include "cellar/a.h"\n')
    told = "csrc/cellar/a.cpp: the room cellar/ has no place in ROOMS"
    assert check("check_csrc_layers", tmp_path / "csrc") == (1, [told])


def test_a_folder_without_sources_is_no_success(tmp_path: Path) -> None:
    assert check("check_csrc_layers", tmp_path)[0] == 1


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)

    git("init")
    for name, lines in (
        ("gradext/short.py", 600),
        ("gradext/deep/long.pyi", 601),
        ("csrc/room/long.cu", 700),
        ("docs/long.md", 900),
        ("elsewhere/long.py", 900),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("#\n" * lines)
    git("add", ".")
    (tmp_path / "gradext" / "unknown_to_git.py").write_text("#\n" * 900)
    return tmp_path


def test_files_over_600_lines_are_named(repository: Path) -> None:
    assert check("check_file_length", repository) == (
        1,
        [
            "csrc/room/long.cu: 700 lines, at most 600: split it by subject",
            "gradext/deep/long.pyi: 601 lines, at most 600: split it by subject",
        ],
    )


def test_files_of_600_lines_are_none(repository: Path) -> None:
    (repository / "csrc/room/long.cu").unlink()
    (repository / "gradext/deep/long.pyi").write_text("#\n" * 600)
    assert check("check_file_length", repository) == (0, [])


def test_a_repository_without_files_is_no_success(tmp_path: Path) -> None:
    subprocess.run(["git", "init", str(tmp_path)], check=True, capture_output=True)
    assert check("check_file_length", tmp_path)[0] == 1
