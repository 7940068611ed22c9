"""What a first user meets: names, help texts, hints, types, and words that can be followed."""

from __future__ import annotations

import ast
import inspect
import json
import os
import pydoc
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import gradext
from gradext.commands import doctor, hints
from gradext.commands import run as run_command
from gradext.native import build

ROOT = Path(gradext.__file__).resolve().parents[1]


def python(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_testing_is_there_after_the_import(tmp_path):
    done = python("-c", "import gradext; print(gradext.testing.check_op.__name__)", cwd=tmp_path)
    assert done.stdout == "check_op\n", done.stderr


def test_dir_lists_the_public_names_only():
    assert dir(gradext) == sorted(gradext.__all__)
    assert "_C" not in dir(gradext)
    for name in dir(gradext):
        assert getattr(gradext, name) is not None


def test_help_begins_with_what_to_call_first():
    text = pydoc.plain(pydoc.render_doc(gradext))
    assert text.index("What to call first") < text.index("gradext.record()") < text.index("PACKAGE")


def test_every_name_in_the_help_is_there():
    doc = gradext.__doc__ or ""
    names = set(re.findall(r"gradext\.(\w+)", doc))
    assert {"record", "explain", "guard", "inspect", "fingerprint", "install"} <= names
    for name in names:
        assert hasattr(gradext, name), name
    block = doc.split("What to call first:")[1].split("From a shell")[0]
    compiled = "\n".join(line.removeprefix("    ") for line in block.splitlines())
    ast.parse(compiled)  # can be typed as it stands


def test_print_of_explain_is_the_report():
    x = torch.ones(3, requires_grad=True)
    with gradext.record():
        y = x.sigmoid()
        y.mul_(2)
        with pytest.raises(RuntimeError) as caught:
            y.sum().backward()
        found = gradext.explain(caught.value)
    assert isinstance(found, list)
    assert len(found) == 1
    assert str(found) == repr(found) == str(found[0])
    assert str(found).startswith("error[GX101]")
    assert str(gradext.Diagnoses([found[0], found[0]])) == f"{found[0]}\n\n{found[0]}"


def test_print_of_explain_without_a_diagnosis_is_a_sentence():
    found = gradext.explain(ValueError("no business of autograd's"))
    assert found == []
    assert not found
    assert str(found) == "gradext has nothing to say of this error."


USER = """
from dataclasses import dataclass
import gradext
import torch

@dataclass
class State:
    x: torch.Tensor

model = torch.nn.Linear(2, 2)
one: gradext.Fingerprint = gradext.fingerprint(torch.ones(2))
of_module: gradext.Fingerprint = gradext.fingerprint(model)["weight"]
of_others: list[gradext.Fingerprints] = [
    gradext.fingerprint({"a": torch.ones(1)}),
    gradext.fingerprint([torch.ones(1)]),
    gradext.fingerprint(State(torch.ones(1))),
    gradext.fingerprint(model.state_dict()),
]
with gradext.record(memory=8) as recording:
    pass
for diagnosis in gradext.explain(ValueError("x"), recording):
    print(diagnosis.code)
with gradext.guard(model, on_change="raise"):
    pass
gradext.compare_modes(model, torch.ones(1, 2), modes=("grad", "no_grad"), over="grad")
gradext.testing.check_op(torch.ops.aten.add_.Tensor, torch.ones(1), torch.ones(1))
"""
WRONG = """
import gradext
import torch
gradext.guard(None, on_change="rise")
gradext.compare_modes(print, modes=("gard",))
gradext.compare_modes(print, over="gard")
gradext.compare_modes(print, inputs="copy")
"""


def test_a_users_code_passes_mypy_strict_and_a_wrong_word_does_not(tmp_path):
    pytest.importorskip("mypy")  # of the dev extra, which CI installs
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "wrong.py").write_text(WRONG)
    check = ("-m", "mypy", "--strict", "--no-error-summary")
    done = subprocess.run(
        [sys.executable, *check, "user.py", "wrong.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    told = [line.split(": error:")[0] for line in done.stdout.splitlines() if ": error:" in line]
    assert told == [f"wrong.py:{line}" for line in (4, 5, 6, 7)], done.stdout + done.stderr


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("train.py", "train.py is no command; to run a program: gradext run train.py"),
        ("docter", "docter is no command; did you mean gradext doctor?"),
    ],
)
def test_a_word_that_is_no_command_gets_a_hint(tmp_path, word, said):
    done = python("-m", "gradext", word, "--flag", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"gradext: error: {said}"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["explain", "GX101"], 0),
        (["completion", "bash"], 0),
        (["bench", "speed"], 2),
        (["fix", "--tries", "0", "train.py"], 2),
        (["report", "no.json"], 2),
    ],
)
def test_a_command_that_computes_nothing_does_not_wait_for_torch(tmp_path, words, code):
    done = python("-X", "importtime", "-m", "gradext", *words, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert " gradext.commands\n" in done.stderr  # so that its imports are told there
    assert " torch\n" not in done.stderr


def test_a_word_like_none_is_left_to_argparse(tmp_path):
    done = python("-m", "gradext", "nonsense", cwd=tmp_path)
    assert done.returncode == 2
    assert "invalid choice" in done.stderr


PARSED = "import argparse\np = argparse.ArgumentParser()\n{}p.parse_args()\nprint('ran')\n"


@pytest.mark.parametrize(
    ("source", "words", "hint"),
    [
        ("print('ran')\n", ["--guard"], "--guard"),
        ("import torch\nfrom math import pi\nprint('ran')\n", ["--json=x.json"], "--json=x.json"),
        (PARSED.format(""), ["--memory", "3"], "--memory"),
        (PARSED.format("p.add_argument('--guard', action='store_true')\n"), ["--guard"], None),
        ("import sys\nprint('ran', sys.argv[1])\n", ["--guard"], None),
        ("from sys import argv\nprint('ran')\n", ["--guard"], None),
        ("import cli\nprint('ran')\n", ["--guard"], None),
        ("from .cli import main\n", ["--guard"], None),
        ("print('ran')\n", ["--verbose", "guard"], None),
    ],
)
def test_an_option_behind_the_script_gets_a_hint_unless_the_program_may_take_it(
    tmp_path, source, words, hint
):
    script = tmp_path / "train.py"
    script.write_text(source)
    (tmp_path / "cli.py").write_text("")
    done = python("-m", "gradext", "run", "train.py", *words, cwd=tmp_path)
    told = [line for line in done.stderr.splitlines() if line.startswith("gradext run: ")]
    if hint is None:
        assert told == []
    else:
        assert told == [
            f"gradext run: {hint} stands behind train.py and went to the program; for gradext: "
            f"gradext run {hint} … train.py"
        ]


def test_every_option_of_run_is_known_to_the_hint(tmp_path):
    done = python("-m", "gradext", "run", "--help", cwd=tmp_path)
    shown = {
        word.strip(",[]").split("=")[0]
        for word in done.stdout.split()
        if word.startswith(("--", "[--"))
    }
    assert shown - {"--help", "--"} == run_command.OPTIONS


def test_a_script_that_cannot_be_read_gets_no_hint(tmp_path):
    assert not hints.reads_no_arguments(str(tmp_path / "none.py"))
    (tmp_path / "bad.py").write_text("def f(:\n")
    assert not hints.reads_no_arguments(str(tmp_path / "bad.py"))


@pytest.mark.parametrize("value", ["0", "-3", "many", "1.5", str(64 << 20)])
def test_memory_that_makes_no_sense_is_refused_by_run(tmp_path, value):
    (tmp_path / "x.py").write_text("")
    done = python("-m", "gradext", "run", "--memory", value, "x.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "memory is in MiB, from 1 to " in done.stderr
    assert f"got '{value}'" in done.stderr


@pytest.mark.parametrize("word", ["alle", "none", "", "-1"])
def test_a_guard_that_there_is_not_is_one_line(tmp_path, word):
    (tmp_path / "x.py").write_text("print('ran')\n")
    done = python("-m", "gradext", "run", f"--guard={word}", "x.py", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    said = "expected --guard alone, --guard=exposed or --guard=all"
    assert said in done.stderr


MISSING = re.compile(r"(?<![\w/])(docs|benchmarks|tests|build_tools)/[a-z]")


def test_no_message_names_a_file_that_the_wheel_lacks():
    found = []
    for path in sorted((ROOT / "gradext").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        texts = {id(n.body[0].value) for n in ast.walk(tree) if has_docstring(n, documented)}
        for node in ast.walk(tree):
            said = node.value if isinstance(node, ast.Constant) and id(node) not in texts else None
            if isinstance(said, str) and MISSING.search(said):
                found.append(f"{path.name}:{node.lineno}: {said[:60]!r}")
    for name in gradext.__all__:
        value = getattr(gradext, name)
        methods = [getattr(value, each) for each in dir(value) if not each.startswith("_")]
        for each in [value, *methods]:
            if MISSING.search(inspect.getdoc(each) or ""):
                found.append(f"help(gradext.{name}): {getattr(each, '__name__', '')}")
    for page in sorted((ROOT / "gradext" / "diagnosis" / "pages").glob("*.md")):
        if MISSING.search(page.read_text(encoding="utf-8")):
            found.append(page.name)
    assert found == []


def has_docstring(node: ast.AST, kinds: tuple[type, ...]) -> bool:
    return isinstance(node, kinds) and ast.get_docstring(node) is not None


def fake(version: str, cuda: str | None, error: Exception | None = None) -> types.ModuleType:
    def init() -> None:
        if error is not None:
            raise error

    module = types.ModuleType("torch")
    module.__version__ = version
    module.__file__ = "/x/torch/__init__.py"
    module.version = types.SimpleNamespace(cuda=cuda)
    module.cuda = types.SimpleNamespace(is_available=lambda: False, init=init)
    return module


@pytest.mark.parametrize(
    ("cuda", "error", "said"),
    [
        (None, None, "this torch is a build without CUDA"),
        ("13.0", RuntimeError("Found no NVIDIA driver. Please check"), "Found no NVIDIA driver"),
        ("13.0", None, "torch.cuda.device_count() is 0"),
    ],
)
def test_doctor_says_why_there_is_no_device(monkeypatch, cuda, error, said):
    monkeypatch.setitem(sys.modules, "torch", fake("2.13.0", cuda, error))
    found = doctor._torch()
    assert found is not None
    assert found["no_device"] == f"no CUDA device: {said}"


def test_doctor_says_why_there_are_no_kernels(tmp_path):
    library = tmp_path / f"_C{build.ABI_SUFFIX}"
    facts = {"torch": "2.13.0", "cuda": None, "cuda_why": "the CUDA toolkit is 12.8"}
    build.record_path(library).write_text(json.dumps(facts))
    found = build.read_build(library)
    report = doctor.examine()
    report["compiled"] |= {"cuda": found.cuda, "cuda_why": found.cuda_why}
    assert "CUDA built  no: the CUDA toolkit is 12.8" in doctor.as_lines(report)
