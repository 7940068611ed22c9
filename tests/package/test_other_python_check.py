"""The check whether another Python exports what a compiled part wants finds what it does not."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import gradext

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "build_tools"))
import other_python_check as check
import torch_finder

PROVIDER = "void PyEval_SetTrace(void) {} void PyObject_Call(void) {}"
WANTS_ALL = "void PyEval_SetTrace(void); void use(void) { PyEval_SetTrace(); }"
WANTS_MORE = "void _PyEval_SetTrace(void); void use(void) { _PyEval_SetTrace(); }"
WANTS_WEAKLY = "__attribute__((weak)) void _PyEval_SetTrace(void); void use(void) { if (_PyEval_SetTrace) _PyEval_SetTrace(); }"  # fmt: skip # noqa: E501
WANTS_OTHERS = "void Python_is_not_the_prefix(void); void use(void) { Python_is_not_the_prefix(); }"
WANTS_DATA = "extern int PyNoSuch_Type; int *use(void) { return &PyNoSuch_Type; }"


def shared(folder: Path, name: str, source: str) -> Path:
    library = folder / f"lib{name}.so"
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=source, text=True, check=True)
    return library


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        (WANTS_ALL, []),
        (WANTS_MORE, ["_PyEval_SetTrace"]),
        (WANTS_WEAKLY, []),
        (WANTS_OTHERS, []),
        (WANTS_DATA, ["PyNoSuch_Type"]),
    ],
)
def test_what_no_exporter_has_is_found(tmp_path, source, missing):
    library = shared(tmp_path, "wants", source)
    assert check.missing_names(library, (shared(tmp_path, "has", PROVIDER),)) == missing


def here() -> check.Python:
    found = check.look_at(Path(sys.executable))
    assert found is not None
    return found


def test_the_running_python_has_all_that_our_compiled_part_wants():
    library = Path(gradext._C.__file__)
    wants = check.cuda_check.symbols(library, "undefined-only")
    assert "PyEval_SetTrace" in wants  # the check looks at something
    assert check.missing_names(library, here().exporters) == []
    assert "PyEval_SetTrace" in check.missing_names(library, ())


def test_the_running_python_does_not_have_a_name_that_is_nobodys(tmp_path):
    library = shared(tmp_path, "wants", WANTS_MORE.replace("SetTrace", "SetTraceOfNobody"))
    assert check.missing_names(library, here().exporters) == ["_PyEval_SetTraceOfNobody"]


def test_what_a_python_says_of_itself():
    found = here()
    assert found.version == ".".join(map(str, sys.version_info[:3]))
    assert (found.include / "Python.h").is_file()
    assert found.exporters


@pytest.mark.parametrize("text", ["#!/bin/sh\nexit 1\n", "#!/bin/sh\necho no\n", "no program"])
def test_what_is_no_python_is_passed_over(tmp_path, text):
    program = tmp_path / "python3"
    program.write_text(text)
    program.chmod(0o755)
    assert check.look_at(program) is None
    assert check.look_at(tmp_path / "not there") is None


def test_a_python_without_headers_or_gil_is_passed_over(tmp_path):
    for facts in (
        '{"version": "3.13.0", "include": "/none", "executable": "", "library": "", "free_threaded": false}',  # noqa: E501
        f'{{"version": "3.13.0", "include": "{sysconfig.get_path("include")}", "executable": "", "library": "", "free_threaded": true}}',  # noqa: E501
    ):
        program = tmp_path / "python3"
        program.write_text(f"#!/bin/sh\necho '{facts}'\n")
        program.chmod(0o755)
        assert check.look_at(program) is None


def test_no_other_python_is_one_line_and_no_failure(monkeypatch, capsys):
    monkeypatch.setattr(check, "programs", lambda: [Path(sys.executable)])
    monkeypatch.setattr(sys, "argv", ["other_python_check.py"])
    assert check.main() == 0
    said = capsys.readouterr()
    assert said.out == f"other_python_check: {check.NONE}; nothing was compiled\n"


def test_the_newest_other_python_is_taken(monkeypatch):
    def other(version: str) -> check.Python:
        return check.Python(version, Path(), ())

    here_too = sys.version.split()[0]
    found = {Path(v): other(v) for v in ("3.9.1", "3.10.2", here_too, "3.99.0", "3.12.4")}
    monkeypatch.setattr(check, "programs", lambda: list(found))
    monkeypatch.setattr(check, "look_at", found.get)
    table = dict.fromkeys(["3.10", "3.12", torch_finder.versions.minor(here_too)])
    monkeypatch.setattr(torch_finder.versions, "PYTHONS", table)
    chosen = check.newest_other()
    assert chosen is not None
    assert chosen.version == next(v for v in ("3.12.4", "3.10.2") if v[:4] != here_too[:4])


@pytest.mark.parametrize(("other", "says_none"), [("", True), ("3.12.4", False)])
def test_with_cuda_one_build_is_asked_for_both(tmp_path, monkeypatch, capsys, other, says_none):
    """The library that cuda_check made is the one whose Python names are looked for."""
    asked = []

    def compiled(folder: Path | None, headers: Path, scratch: Path) -> Path:
        asked.append((folder, headers))
        return shared(tmp_path, "wants", WANTS_MORE)

    found = check.Python(other, tmp_path / "include", (shared(tmp_path, "has", PROVIDER),))
    monkeypatch.setattr(check.cuda_check, "compiled", compiled)
    monkeypatch.setattr(check, "newest_other", lambda: found if other else None)
    monkeypatch.setattr(sys, "argv", ["other_python_check.py", "--cuda", "--torch", str(tmp_path)])
    assert check.main() == (1 if other else 0)  # _PyEval_SetTrace is not among PROVIDER's
    said = capsys.readouterr()
    assert (check.NONE in said.out) is says_none
    assert ("exports no _PyEval_SetTrace" in said.err) is not says_none
    own = Path(sysconfig.get_path("include"))
    assert asked == [(tmp_path, found.include if other else own)]


def test_with_cuda_nothing_is_asked_of_python_where_the_kernels_did_not_link(monkeypatch, capsys):
    monkeypatch.setattr(check.cuda_check, "compiled", lambda *_: None)
    monkeypatch.setattr(check, "newest_other", here)
    monkeypatch.setattr(sys, "argv", ["other_python_check.py", "--cuda"])
    assert check.main() == 1
    assert "exports all names" not in capsys.readouterr().out
