"""Each way in which CPython and torch call gradext, under conditions that are not the usual.

The conditions: an error is set, user code raises or acts, a signal or an asynchronous error
arrives, the recursion limit is reached, the interpreter ends while threads work. What a program
prints and how it ends must be what it is without gradext. Processes, for a fault here aborts.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from callback_programs import ENDING, INTERRUPTED, USER_CODE

ROOT = Path(__file__).parents[2]
MODES = ("run", "guard", "environment")


def ended(tmp_path: Path, source: str, mode: str) -> Any:
    program = tmp_path / "program.py"
    program.write_text(source)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GRADEXT")}
    paths = [str(ROOT)]
    words = {
        "run": ["-m", "gradext", "run"],
        "guard": ["-m", "gradext", "run", "--guard"],
    }.get(mode, [])
    if mode == "environment":
        # A checkout has no .pth file; sitecustomize runs the line that the wheel's has.
        line = (ROOT / "build_tools" / "gradext-autostart.pth").read_text()
        (tmp_path / "sitecustomize.py").write_text(f"exec({line!r})\n")
        paths.insert(0, str(tmp_path))
        environment["GRADEXT_RECORD"] = "1"
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    return subprocess.run(
        [sys.executable, *words, str(program)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=400,
        # What has started the tests may have it ignored, and children inherit that.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    done = ended(tmp_path_factory.mktemp("plain"), USER_CODE, "plain")
    assert done.returncode == 0, done.stderr
    lines: list[str] = done.stdout.splitlines()
    assert len(lines) > 40
    return lines


@pytest.mark.parametrize("mode", MODES)
def test_user_code_that_raises_and_acts(tmp_path: Path, mode: str, without: list[str]) -> None:
    done = ended(tmp_path, USER_CODE, mode)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == without
    assert "gradext: recorder:" not in done.stderr
    if mode != "environment":
        assert "gradext" in done.stderr  # the stale tensor: it was recorded


def test_signals_and_asynchronous_errors(tmp_path: Path) -> None:
    done = ended(tmp_path, INTERRUPTED, "plain")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert lines[-2:] == ["own errors: []", "end"], lines
    assert len(lines) == 4 * 5 + 2
    assert [line for line in lines[:-2] if not line.endswith(": good")] == []


@pytest.mark.parametrize("mode", MODES)
def test_the_interpreter_ends(tmp_path: Path, mode: str) -> None:
    done = ended(tmp_path, ENDING, mode)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[:2] == ["end", "at exit"]
    assert "Traceback" not in done.stderr
    assert "gradext: recorder:" not in done.stderr


@pytest.mark.parametrize("kind", ["SIGINT", "SIGALRM"])
def test_signals_that_end_a_program_which_catches_errors(tmp_path: Path, kind: str) -> None:
    # The signals fall anywhere, most of them into a diagnosis: none is lost.
    source = f"""
        import os, signal, threading, time
        import torch, gradext
        from gradext.recording import incidents
        from gradext.recording import own_errors
        class Away(ValueError):
            pass
        def handler(number, frame):
            raise Away
        caught = KeyboardInterrupt if {kind!r} == "SIGINT" else Away
        if caught is Away:
            signal.signal(signal.SIGALRM, handler)
        def fault():
            y = torch.ones(3, requires_grad=True).sigmoid()
            y.mul_(2)
            y.sum().backward()
        lost = 0
        with gradext.record():
            for k in range(30):
                end = time.monotonic() + 5
                timer = threading.Timer(0.05 + k * 0.001, os.kill, (os.getpid(), signal.{kind}))
                try:
                    timer.start()
                    while time.monotonic() < end:
                        try:
                            fault()
                        except RuntimeError:
                            pass
                    lost += 1
                except caught:
                    pass
        print("lost", lost, [line for line in own_errors.lines() if "left out" not in line])
    """
    done = ended(tmp_path, textwrap.dedent(source), "plain")
    assert done.stdout == "lost 0 []\n", done.stdout + done.stderr[-2000:]


# --- the check that finds an entry without protection ---------------------------------------------


def check(folder: Path) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "build_tools" / "check_c_entries.py"), str(folder)],
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_every_entry_is_protected() -> None:
    assert check(ROOT / "csrc") == (0, [])


# (file, what stands there, what it is replaced by, the entry that is then found)
UNPROTECTED = [
    (
        "recorder/python/wrappers.cpp",
        "aside([&] { after_apply(scope, args[0], args + 1",
        "plainly([&] { after_apply(scope, args[0], args + 1",
        "call_apply",
    ),
    (
        "recorder/python/wrappers.cpp",
        "aside([&] { before_apply(scope); })) {",
        "plainly([&] { before_apply(scope); })) {",
        "apply_plain",
    ),
    (
        "recorder/python/wrappers.cpp",
        "(void)aside([&] { delete",
        "([&] { destroyed(); delete",
        "destroy",
    ),
    ("recorder/python/wrappers.cpp", "aside([] {\n    PyEval", "now([] {\n    PyEval", "wake"),
    ("recorder/python/c_entry_points.cpp", "active() && aside([&]", "active() && now([&]", "set_"),
    (
        "guard/lines/trace.cpp",
        "base::aside([&] {\n    if (!lines().armed)",
        "now([&] {\n    if (!lines().armed)",
        "on_event",
    ),
    ("guard/saves.cpp", "guarded([&] { gradients_after", "now([&] { gradients_after", "AfterUse"),
    (
        "recorder/kernels/boxed_kernels.cpp",
        "safely([&] {\n    add_targets(",
        "now([&] {\n    add_targets(",
        "on_write",
    ),
    ("recorder/kernels/boxed_kernels.cpp", "safely([&] { facts", "now([&] { facts", "on_late_op"),
    ("recorder/kernels/boxed_kernels.cpp", "safely([&] { argum", "now([&] { argum", "on_result"),
    (
        "call_counts/call_counts.cpp",
        "base::safely([&] {\n    count_bumps",
        "now([&] {\n    count_b",
        "ends",
    ),
]


@pytest.mark.parametrize("change", UNPROTECTED, ids=lambda change: f"{change[0]}-{change[3]}")
def test_an_entry_without_protection_is_found(
    tmp_path: Path, change: tuple[str, str, str, str]
) -> None:
    file, before, after, entry = change
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    copy = tmp_path / "csrc" / file
    text = copy.read_text()
    assert before in text
    copy.write_text(text.replace(before, after))
    code, lines = check(tmp_path / "csrc")
    assert code == 1
    assert all(line.startswith(f"csrc/{file}:") for line in lines)
    assert any(f" {entry}" in line and "outside of aside()" in line for line in lines)


def test_a_destructor_written_in_place_is_found(tmp_path: Path) -> None:
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "one.cpp").write_text(
        "int on(PyObject*) { return 0; }\n"
        "void f() { PyCapsule_New(new int, name, [](PyObject* self) { work(self); }); }\n"
        "void g() { PyEval_SetTrace(&on, nullptr); }\n"
    )
    code, lines = check(tmp_path / "csrc")
    assert code == 1
    assert lines == ["csrc/one.cpp:2: a lambda has no name that could be checked"]


def test_a_folder_without_entries_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "csrc").mkdir()
    assert check(tmp_path / "csrc")[0] == 1


def test_no_static_is_initialised_by_running_python() -> None:
    """Python may hand the GIL to a thread that then waits for the static, with the GIL held."""
    runs_python = r"import_module|\.attr\(|PyObject_Call|PyImport_|py::module_::import"
    initialised = re.compile(rf"\bstatic\b[^;{{}}()]*=[^;{{}}]*(?:{runs_python})[^;]*;")
    assert initialised.search('static PyObject* a = import_module("b").attr("c");')
    found = [
        f"{path.name}: {match[0][:60]}"
        for path in sorted((ROOT / "csrc").rglob("*.cpp"))
        for match in initialised.finditer(path.read_text())
    ]
    assert found == []
