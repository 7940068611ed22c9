"""[tool.gradext] of pyproject.toml and GRADEXT_* variables: what wins, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from programs import Ended, start

from gradext.base import chosen, package
from gradext.run import configuration

ROOT = Path(__file__).resolve().parent.parent.parent
SILENT = """\
import torch

w = torch.ones(3, requires_grad=True)
y = torch.sigmoid(w * 2)
z = y * y
y.data.mul_(2)
z.sum().backward()
print("trained", flush=True)
"""
# Only a guard sees this one: numpy writes, and no op of torch's.
GUARDED = """\
import torch

w = torch.ones(3, requires_grad=True)
y = torch.sigmoid(w * 2)
z = y * y
y.detach().numpy()[:] = 0
z.sum().backward()
"""


# Only a guard of everything sees this one: a pointer that nobody was seen to take, as C++ has it
# that gets a tensor and is no op.
UNSEEN = """\
import ctypes
import torch

hidden = {}
text = "def address_of(t): return t.data_ptr()"
exec(compile(text, "/somewhere/torch/hidden.py", "exec"), hidden)
w = torch.ones(3, requires_grad=True)
y = torch.sigmoid(w * 2)
z = y * y
ctypes.memset(hidden["address_of"](y), 0, 4)
z.sum().backward()
"""


def run(
    folder: Path,
    *options: str,
    program: str = SILENT,
    toml: str = "",
    forked: bool = True,
    **env: str,
) -> Ended:
    (folder / "train.py").write_text(program)
    if toml:
        (folder / "pyproject.toml").write_text(f"[tool.gradext]\n{toml}\n")
    words = ("-m", "gradext", "run", "--format", "concise", *options, "train.py")
    return start(words, folder, forked=forked, PYTHONPATH=str(ROOT), **env)


def test_the_file_the_variable_and_the_command_line(tmp_path: Path) -> None:
    assert run(tmp_path, toml='fail-on = ["GX4"]').code == 1
    assert run(tmp_path).code == 1  # the file is still there
    assert run(tmp_path, GRADEXT_FAIL_ON="GX3").code == 0  # a variable wins over it
    assert run(tmp_path, "--fail-on", "GX401", GRADEXT_FAIL_ON="GX3").code == 1
    assert run(tmp_path, GRADEXT_ERROR_EXITCODE="7").code == 7


def test_ignored_codes_are_not_told_and_do_not_fail(tmp_path: Path) -> None:
    assert run(tmp_path).errors.startswith("train.py:6:1: GX401")
    for ran in (
        run(tmp_path, "--ignore", "GX401", "--fail-on", "GX4"),
        run(tmp_path, "--fail-on", "GX4", GRADEXT_IGNORE="GX2,gx4"),
        run(tmp_path, "--fail-on", "GX4", toml='ignore = ["GX401"]'),
    ):
        assert (ran.code, ran.errors, ran.text) == (0, "", "trained\n")


def test_an_error_that_is_ignored_keeps_its_traceback(tmp_path: Path) -> None:
    program = SILENT.replace("y.data.mul_", "y.mul_")
    assert "GX101" in run(tmp_path, program=program).errors
    ran = run(tmp_path, "--ignore", "GX1", program=program)
    assert ran.code == 1
    assert "modified by an inplace operation" in ran.errors
    assert "GX" not in ran.errors


def test_what_is_ignored_holds_in_children(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(SILENT)
    program = "import subprocess, sys\nsubprocess.run([sys.executable, 'child.py'])"
    ran = run(tmp_path, program=program, toml='ignore = ["GX401"]')
    assert (ran.code, ran.errors) == (0, "")


def test_a_guard_by_the_file_and_none_by_the_command_line(tmp_path: Path) -> None:
    assert "GX401" in run(tmp_path, program=GUARDED, toml="guard = true").errors
    assert (
        run(tmp_path, "--no-guard", program=GUARDED).errors
        == run(tmp_path, "--light", program=GUARDED).errors
    )


@pytest.mark.parametrize(
    ("options", "toml", "env", "is_found"),
    [
        (["--guard"], "", {}, False),
        (["--guard=exposed"], 'guard = "all"', {}, False),
        ([], 'guard = "exposed"', {}, False),
        (["--guard=all"], "", {}, True),
        ([], 'guard = "all"', {}, True),
        ([], "guard = true", {"GRADEXT_GUARD": "all"}, True),
        ([], "", {"GRADEXT_GUARD": "yes"}, False),
        (["--no-guard"], 'guard = "all"', {}, False),
    ],
)
def test_a_guard_of_all_that_is_saved(
    tmp_path: Path, options: list[str], toml: str, env: dict[str, str], is_found: bool
) -> None:
    ran = run(tmp_path, *options, program=UNSEEN, toml=toml, **env)
    assert ran.code == 0
    assert ("GX401" in ran.errors) == is_found


def test_the_word_behind_the_option_is_the_program(tmp_path: Path) -> None:
    ran = run(tmp_path, "--guard=some", program=UNSEEN)
    assert ran.code == 2
    assert "--guard" in ran.errors


def test_the_nearest_file_that_speaks_of_gradext(tmp_path: Path) -> None:
    """From the script's folder upwards, as ruff looks for its own; not from the working folder."""
    inner = tmp_path / "project" / "src"
    inner.mkdir(parents=True)
    (inner / "train.py").write_text(SILENT)
    (inner / "pyproject.toml").write_text("[tool.other]\nx = 1\n")
    (inner.parent / "pyproject.toml").write_text('[tool.gradext]\nfail-on = ["GX4"]\n')
    (tmp_path / "pyproject.toml").write_text("[tool.gradext]\nnonsense = 1\n")
    words = ("-m", "gradext", "run", "project/src/train.py")
    assert start(words, tmp_path, PYTHONPATH=str(ROOT)).code == 1
    # With -c it is the working folder's.
    ran = start(("-m", "gradext", "run", "-c", "print(1)"), tmp_path, PYTHONPATH=str(ROOT))
    assert ran.code == 2


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("guards = true", "has no key 'guards'; did you mean guard?"),
        ("zzz = 1", "has no key 'zzz'; there are ignore, guard,"),
        ('ignore = "GX9"', "ignore: no code begins with GX9"),
        ("ignore = [1]", "ignore: it is a list of codes"),
        ('guard = "perhaps"', 'guard: it is true, false, "exposed", "all", not \'perhaps\''),
        ("guard = 1.5", 'guard: it is true, false, "exposed", "all", not 1.5'),
        ('format = "xml"', "format: it is full or concise, not 'xml'"),
        ("error-exitcode = 256", "error-exitcode: a whole number from 1 to 255, not 256"),
        ("error-exitcode = true", "error-exitcode: a whole number from 1 to 255, not True"),
        ("memory = 0", "memory: memory is in MiB"),
        ("user-paths = 3", "user-paths: it is a list of paths"),
        ("guard = ", "is no TOML"),
    ],
)
def test_nonsense_in_the_file_is_one_line(toml: str, said: str, tmp_path: Path) -> None:
    ran = run(tmp_path, toml=toml)
    (line,) = ran.errors.splitlines()
    assert line.startswith(f"gradext run: {tmp_path}/pyproject.toml")
    assert said in line
    assert (ran.code, ran.text) == (2, "")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GRADEXT_IGNORE", "GX9"),
        ("GRADEXT_GUARD", "perhaps"),
        ("GRADEXT_FORMAT", "xml"),
        ("GRADEXT_ERROR_EXITCODE", "0"),
        ("GRADEXT_FAIL_ON", "all"),
        ("GRADEXT_MEMORY", "64M"),
    ],
)
def test_nonsense_in_a_variable_is_one_line(variable: str, value: str, tmp_path: Path) -> None:
    ran = (
        run(tmp_path, **{variable: value})
        if variable != "GRADEXT_FORMAT"
        else start(
            ("-m", "gradext", "run", "-c", "1"), tmp_path, PYTHONPATH=str(ROOT), **{variable: value}
        )
    )
    (line,) = ran.errors.splitlines()
    assert line.startswith(f"gradext run: {variable}: ")
    assert (ran.code, ran.text) == (2, "")


OF_OTHERS = {
    "without a word of gradext": "[tool.other\nthis is no TOML",
    "gradext as a dependency": 'project.dependencies = ["gradext"]\nthis is no TOML',
    "another tool's": "[tool.gradexts]\nthis is no TOML",
    "a comment": "# gradext is run in CI\n[tool",
}


@pytest.mark.parametrize("name", OF_OTHERS)
def test_no_run_is_refused_for_a_file_of_others(name: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(OF_OTHERS[name])
    assert run(tmp_path).code == 0


def test_a_python_that_reads_no_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.10 where tomli is not installed."""
    monkeypatch.setitem(sys.modules, "tomllib" if sys.version_info >= (3, 11) else "tomli", None)
    file = tmp_path / "pyproject.toml"
    file.write_text('project.dependencies = ["gradext"]')
    assert configuration.of(str(tmp_path), {}) == {}
    file.write_text("[tool.gradext]\nguard = true")
    with pytest.raises(configuration.Wrong, match="pip install tomli"):
        configuration.of(str(tmp_path), {})


def test_paths_of_the_user_and_of_libraries(tmp_path: Path) -> None:
    (tmp_path / "vendor").mkdir()
    library = tmp_path / "vendor" / "scaling.py"
    library.write_text("def scaled(y):\n    y.data.mul_(2)\n")
    program = SILENT.replace(
        "import torch", "import sys; sys.path.insert(0, 'vendor')\nimport torch"
    )
    program = program.replace("y.data.mul_(2)", "import scaling; scaling.scaled(y)")
    assert run(tmp_path, program=program).errors.startswith("vendor/scaling.py:2:")
    ran = run(tmp_path, program=program, toml='library-paths = ["vendor"]')
    assert ran.errors.startswith("train.py:7:")
    inside = run(tmp_path, program=program, GRADEXT_USER_PATHS="vendor/scaling.py")
    assert inside.errors.startswith("vendor/scaling.py:2:")


def test_the_innermost_path_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(chosen.LIBRARY_PATHS, "/a/project/vendor")
    monkeypatch.setenv(chosen.USER_PATHS, "/x/site-packages/mine:/a/project/vendor/ours")
    chosen.forget()
    package.is_user_file.cache_clear()
    try:
        assert package.is_user_file("/x/site-packages/mine/train.py")
        assert not package.is_user_file("/x/site-packages/mines/train.py")
        assert not package.is_user_file("/a/project/vendor/a.py")
        assert package.is_user_file("/a/project/vendor/ours/a.py")
    finally:
        monkeypatch.undo()
        chosen.forget()
        package.is_user_file.cache_clear()


def test_every_option_has_a_row_and_a_flag_that_is_there() -> None:
    table = configuration.table()
    shown = start(("-m", "gradext", "run", "--help"), ROOT, PYTHONPATH=str(ROOT)).text
    for option in configuration.OPTIONS:
        assert f"`{option.key}` | `{option.variable}`" in table
        assert option.flag in shown
    assert table in (ROOT / "docs" / "configuration.md").read_text()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib comes with Python 3.11")
def test_nothing_more_is_imported_without_a_file(tmp_path: Path) -> None:
    program = "import sys; print([m for m in ('tomllib', 'difflib') if m in sys.modules])"
    assert run(tmp_path, program=program, forked=False).text == "[]\n"
