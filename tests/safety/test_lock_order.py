"""The order of gradext's mutexes (csrc/base/locks.h) is checked where a build asks for it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"

PROGRAM = """
#include "base/locks.h"

#include <cstring>
#include <string>
#include <thread>

using gradext::base::Mutex;
using gradext::base::Rank;

Mutex<Rank::kJournal> journal;
Mutex<Rank::kSaveLog> saves, other_saves;
Mutex<Rank::kOrigins> origins, other_origins;
Mutex<Rank::kStacks> stacks;

int main(int, char** words) {
  const std::string what = words[1];
  if (what == "sizes") {
    return sizeof(journal) == sizeof(std::mutex) ? 0 : 1;
  }
  if (what == "in order") {
    std::lock_guard a(journal);
    std::lock_guard b(saves);
    std::lock_guard c(other_saves);
    std::lock_guard d(origins);
    std::lock_guard e(stacks);
  } else if (what == "one after the other") {
    { std::lock_guard a(stacks); }
    std::lock_guard b(journal);
  } else if (what == "given back out of order") {
    journal.lock();
    origins.lock();
    journal.unlock();  // the outer one first
    stacks.lock();
    stacks.unlock();
    origins.unlock();
    journal.lock();
    journal.unlock();
  } else if (what == "another thread's") {
    std::lock_guard a(stacks);
    std::thread([] { std::lock_guard b(journal); }).join();
  } else if (what == "inner first") {
    std::lock_guard a(origins);
    std::lock_guard b(journal);
  } else if (what == "far above") {
    std::lock_guard a(journal);
    std::lock_guard b(stacks);
    std::lock_guard c(saves);
  } else if (what == "two of one rank") {
    std::lock_guard a(origins);
    std::lock_guard b(other_origins);
  } else if (what == "two logs without the journal") {
    std::lock_guard a(saves);
    std::lock_guard b(other_saves);
  } else if (what == "given back, and another kept") {
    journal.lock();
    origins.lock();
    journal.unlock();
    journal.lock();
  } else {
    return 2;
  }
  return 0;
}
"""

FINE = ["in order", "one after the other", "given back out of order", "another thread's"]
WRONG = [
    ("inner first", "kJournal", "kOrigins"),
    ("far above", "kSaveLog", "kStacks"),
    ("two of one rank", "kOrigins", "kOrigins"),
    ("two logs without the journal", "kSaveLog", "kSaveLog"),
    ("given back, and another kept", "kJournal", "kOrigins"),
]


def compiled(folder: Path, *flags: str) -> Path:
    compiler = shutil.which("c++") or shutil.which("g++")
    assert compiler is not None, "gradext cannot have been built here without a C++ compiler"
    (folder / "locks.cpp").write_text(PROGRAM)
    command = [compiler, "-std=c++20", "-Wall", "-Werror", "-pthread", f"-I{CSRC}", *flags]
    subprocess.run([*command, "locks.cpp", "-o", "locks"], cwd=folder, check=True)
    return folder / "locks"


def run(program: Path, what: str) -> subprocess.CompletedProcess[str]:
    """Without what is preloaded here: a sanitizer tells of the very order that is tried."""
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return subprocess.run([program, what], capture_output=True, text=True, timeout=60, env=env)


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("checked"), "-DNDEBUG", "-DGRADEXT_CHECK_LOCKS")


def rank(name: str) -> str:
    text = (CSRC / "base" / "locks.h").read_text()
    (found,) = re.findall(rf"^  {name} = (\d+),", text, re.MULTILINE)
    return str(found)


@pytest.mark.parametrize("what", FINE)
def test_mutexes_in_order_are_taken(checked: Path, what: str) -> None:
    done = run(checked, what)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("what", "inner", "outer"), WRONG)
def test_a_mutex_out_of_order_ends_the_process(
    checked: Path, what: str, inner: str, outer: str
) -> None:
    done = run(checked, what)
    assert done.returncode < 0
    assert done.stderr == (
        f"gradext: a mutex of rank {rank(inner)} is taken inside one of rank {rank(outer)} "
        "(csrc/base/locks.h)\n"
    )


def test_a_build_without_ndebug_checks_too(tmp_path: Path) -> None:
    program = compiled(tmp_path)
    assert run(program, "inner first").returncode < 0


def test_a_build_for_users_pays_nothing(tmp_path: Path) -> None:
    program = compiled(tmp_path, "-DNDEBUG")
    assert run(program, "sizes").returncode == 0
    for what, _, _ in WRONG:
        assert run(program, what).returncode == 0
