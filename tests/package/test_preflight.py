"""What stops a build is said in one line before anything is compiled, or as its last line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "build_tools"))
import compiling
import preflight

ROOT = Path(preflight.__file__).resolve().parents[1]
COMPILER = shutil.which("c++")


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def stopped(call, *arguments) -> str:
    with pytest.raises(SystemExit) as caught:
        call(*arguments)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("gradext: ")
    return line


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for name in ("CXX", "MAX_JOBS"):
        monkeypatch.delenv(name, raising=False)


def test_no_compiler_on_path(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    line = stopped(preflight.check_compiler, "2.13.0")
    assert "no C++ compiler was found" in line
    assert "install" in line or "pacman -S" in line or "apk add" in line


def test_any_of_the_usual_compilers_is_taken(monkeypatch, tmp_path):
    program(tmp_path / "clang++", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert preflight.compiler() == ["clang++"]
    monkeypatch.setenv("CXX", "clang++ -m64")
    assert preflight.compiler() == ["clang++", "-m64"]


def test_a_compiler_that_is_named_and_not_there(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -x")
    assert "CXX=no-such-compiler -x: there is no such program" in stopped(
        preflight.check_compiler, "2.13.0"
    )


@pytest.mark.parametrize(
    ("torch", "newest", "needed"),
    [("2.13.0+cpu", "c++17", "C++20"), ("2.12", "c++14", "C++20"), ("2.11.0", "c++14", "C++17")],
)
def test_a_compiler_that_is_too_old(monkeypatch, tmp_path, torch, newest, needed):
    # Whatever standard is asked for, it compiles an older one.
    old = f'set -- $(echo "$@" | sed s/-std=c++[0-9]*/-std={newest}/); exec {COMPILER} "$@"'
    monkeypatch.setenv("CXX", program(tmp_path / "old", old))
    line = stopped(preflight.check_compiler, torch)
    assert "is too old" in line
    assert f"torch {torch} needs {needed}" in line
    assert "CXX=" in line


def test_a_compiler_that_does_not_know_the_flag(monkeypatch, tmp_path):
    old = (
        'case "$*" in *--version*) echo "g++ 8.3.0"; exit 0;; *-std=*) '
        "echo \"g++: error: unrecognized command line option '-std=c++20'\" >&2; exit 1;; esac"
    )
    monkeypatch.setenv("CXX", program(tmp_path / "old", old))
    assert "(g++ 8.3.0) is too old" in stopped(preflight.check_compiler, "2.13.0")


def test_a_compiler_that_is_broken_is_not_called_old(monkeypatch, tmp_path):
    broken = "echo 'c++: fatal error: cannot execute cc1plus' >&2; exit 1"
    monkeypatch.setenv("CXX", program(tmp_path / "broken", broken))
    line = stopped(preflight.check_compiler, "2.13.0")
    assert "does not work here: c++: fatal error: cannot execute cc1plus" in line


@pytest.mark.parametrize("torch", ["2.11.0", "2.13.0", "2.14.1+cu130", "2.13"])
def test_the_compiler_that_is_here_will_do(torch):
    preflight.check_compiler(torch)
    preflight.check_headers()


def test_headers_of_python_that_are_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(preflight.sysconfig, "get_path", lambda name: str(tmp_path))
    line = stopped(preflight.check_headers)
    assert f"no Python.h in {tmp_path}" in line
    (tmp_path / "Python.h").touch()
    preflight.check_headers()


def test_a_disk_that_is_nearly_full(monkeypatch, tmp_path):
    free = shutil.disk_usage(tmp_path)._replace(free=100 * 1024**2)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: free)
    line = stopped(preflight.check_disk, tmp_path)
    assert f"100 MiB are free on the disk of {tmp_path}" in line


MEMINFO = "MemTotal: 16000000 kB\nMemAvailable: {} kB\nSwapFree: {} kB\nHugePages_Total: 0\n"


def machine(root: Path, available: int, swap: int = 0, groups: str = "0::/\n") -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(MEMINFO.format(available // 1024, swap // 1024))
    (root / "proc/self/cgroup").write_text(groups)
    return root


GIB = 1024**3


def test_memory_is_what_is_free_with_swap(tmp_path):
    root = machine(tmp_path, available=3 * GIB, swap=GIB)
    assert preflight.free_memory(root) == 4 * GIB


def test_memory_is_limited_by_a_control_group_above(tmp_path):
    root = machine(tmp_path, available=64 * GIB, groups="0::/slice/job\n")
    for folder, limit in (("slice", f"{5 * GIB}"), ("slice/job", "max")):
        group = root / "sys/fs/cgroup" / folder
        group.mkdir(parents=True)
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{3 * GIB}\n")
        (group / "memory.stat").write_text(f"anon 1\ninactive_file {GIB}\n")
    assert preflight.free_memory(root) == 3 * GIB  # what is only cache is given back


def test_memory_is_limited_by_a_control_group_of_version_1(tmp_path):
    root = machine(tmp_path, available=64 * GIB, groups="5:cpu:/\n4:memory:/job\n")
    group = root / "sys/fs/cgroup/memory/job"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(f"{4 * GIB}")
    (group / "memory.usage_in_bytes").write_text(f"{GIB}")
    (group / "memory.stat").write_text("total_inactive_file 0\n")
    assert preflight.free_memory(root) == 3 * GIB


def test_jobs_follow_memory_and_max_jobs_wins(monkeypatch):
    monkeypatch.setattr(preflight.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    for free, expected in ((64 * GIB, 16), (8 * GIB, 3), (GIB * 23 // 10, 1), (None, 16)):
        monkeypatch.setattr(preflight, "free_memory", lambda free=free: free)
        assert preflight.jobs() == expected
    monkeypatch.setattr(preflight, "free_memory", lambda: GIB)
    line = stopped(preflight.jobs)
    assert "2.5 GiB of memory and 1.0 GiB is free" in line
    assert "MAX_JOBS=1" in line
    monkeypatch.setenv("MAX_JOBS", "5")
    assert preflight.jobs() == 5


@pytest.mark.parametrize("value", ["many", "0", "-2", "1.5"])
def test_a_max_jobs_that_makes_no_sense(monkeypatch, value):
    monkeypatch.setenv("MAX_JOBS", value)
    assert f"MAX_JOBS={value}: expected a whole number" in stopped(preflight.jobs)


NINJA = "[2/4] c++ -MMD -c -c /x/build/units/recorder.cpp -o /tmp/x/recorder.o -std=c++20"


def test_a_unit_that_is_done_is_one_short_line():
    assert compiling.shorter(["note", NINJA, "warning: w"], 61.2) == [
        "note",
        "gradext: compiled recorder (2 of 4, after 61 s)",
        "warning: w",
    ]


def test_a_unit_that_failed_is_not_called_compiled():
    shown = compiling.shorter([NINJA, "FAILED: [code=1] recorder.o", "x.h:1: error: no"], 61.2)
    assert shown == ["FAILED: [code=1] recorder.o", "x.h:1: error: no"]


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        ("c++: fatal error: Killed signal terminated program cc1plus", "MAX_JOBS=1 pip install ."),
        ("cc1plus: out of memory allocating 65536 bytes", "MAX_JOBS=1 pip install ."),
        ("fatal error: error writing to /tmp/x.s: No space left on device", "the disk is full"),
        ("a.cpp:1:10: fatal error: Python.h: No such file or directory", "headers are missing"),
        ("a.cpp:4:2: error: no member\nb.cpp:5:2: error: b", "its first error: a.cpp:4:2: error:"),
        ("nothing of use", "the build failed: Error compiling objects"),
    ],
)
def test_the_last_line_says_why_the_compiler_failed(printed, said):
    """Written by processes of its own, as compilers are; nothing of it is lost."""
    code = (
        "import subprocess, sys, compiling\n"
        "with compiling.watched():\n"
        "    subprocess.run(['printf', '%s\\n', sys.argv[1]])\n"
        "    raise RuntimeError('Error compiling objects')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, printed],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "build_tools")},
    )
    assert done.returncode == 1
    assert done.stderr.startswith(printed)
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("gradext: ")
    assert said in done.stderr.splitlines()[-1]


def test_a_build_that_succeeds_prints_what_it_printed(tmp_path):
    code = (
        "import os, time, compiling\n"
        "with compiling.watched():\n"
        f"    os.write(1, {NINJA.encode()!r} + b'\\n')\n"
        "    time.sleep(1)\n"
        f"    os.write(1, {NINJA.encode()!r} + b'\\n')\n"
        "    os.write(1, b'FAILED: x\\nlast, without an end')\n"
        "print('after')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "build_tools")},
    )
    assert done.returncode == 0
    assert done.stderr == (
        "gradext: compiled recorder (2 of 4, after 0 s)\nFAILED: x\nlast, without an end"
    )
    assert done.stdout == "after\n"
