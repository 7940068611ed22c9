"""`gradext check --inference`, as a program: its exit codes and its lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import forks
import pytest

ROOT = Path(__file__).parents[2]

MODELS = """
    import torch
    from torch import nn

    class Rope(nn.Module):
        def __init__(self, keeps=True):
            super().__init__()
            self.up, self.keeps, self.cache = nn.Linear(4, 4), keeps, {}
        def forward(self, x, scale=1.0):
            table = self.cache.get(len(x))
            if table is None:
                table = torch.cos(torch.arange(4.0))
            if self.keeps:
                self.cache[len(x)] = table
            return self.up(x) * table * scale

    def clean(): return Rope(keeps=False), (torch.ones(2, 4),)
    def caches(): return Rope(), (torch.ones(2, 4),), {"scale": 2.0}
    def alone(): return Rope()
    def one_tensor(): return Rope(keeps=False), torch.ones(2, 4)
    def function(): return torch.sin, (torch.ones(2),)
    def inputs(): return (torch.ones(3, 4),)
    def named_inputs(): return {"x": torch.ones(3, 4)}
    def both(): return (torch.ones(3, 4),), {"scale": 3.0}
    def too_many(): return (torch.ones(1),) * 3
    def raises(): raise OSError("no weights\\nin the folder")
    def nothing(): pass
    def four(): return 1, 2, 3, 4
    def odd_kwargs(): return Rope(), (), 3
    def odd_key(): return Rope(), {1: 2}
    ready = Rope()
    number = 3
"""


# Runs many command lines in one process: importing torch for each takes seconds.
DRIVER = """
import contextlib, io, json, sys
from gradext.commands import main
ends = []
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["check", *words])
    ends.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(ends))
"""


def line_of(text):
    return next(n for n, line in enumerate(MODELS.splitlines(), 1) if text in line)


def python(folder, *words):
    (folder / "mymodels.py").write_text(textwrap.dedent(MODELS))
    (folder / "broken.py").write_text("import torch\nimport not_installed_anywhere\n")
    (folder / "wrong.py").write_text("1 / 0\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    if words[0] == "-m":
        code, out, err = forks.run(words, folder, environment)
        return subprocess.CompletedProcess(words, code, out.decode(), err.decode())
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=120,
    )


@pytest.fixture
def check(tmp_path):
    """check(*words): (exit code, stdout, stderr) of `gradext check` beside mymodels.py."""

    def check(*words):
        done = python(tmp_path, "-m", "gradext", "check", *words)
        return done.returncode, done.stdout, done.stderr

    return check


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """(exit code, stdout, stderr) by the command line's words, of WAYS and BAD."""
    lines = [["--inference", *words] for words, _ in [*WAYS, *BAD]]
    done = python(tmp_path_factory.mktemp("models"), "-c", DRIVER, json.dumps(lines))
    assert done.stderr == ""
    return {
        tuple(words[1:]): tuple(end)
        for words, end in zip(lines, json.loads(done.stdout), strict=True)
    }


def test_nothing_left_behind_is_exit_code_0(check, tmp_path):
    code, out, err = check("--inference", "mymodels:clean", "--json", "report.json")
    assert (code, err) == (0, "")
    assert out.splitlines()[1] == ("verdict: runs under inference_mode and leaves nothing behind")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ok"] is True
    assert report["subject"] == "Rope"


def test_a_failed_check_is_exit_code_1(check):
    code, out, err = check("--inference", "mymodels:caches")
    assert (code, err) == (1, "")
    assert out.splitlines()[1] == (
        "verdict: runs, but leaves 1 inference tensor in `model.cache[2]`; "
        "training afterwards fails"
    )
    column = ":16" if sys.version_info >= (3, 11) else ""  # 3.10 keeps none
    line = f"      --> mymodels.py:{line_of('return self.up')}{column} in Rope.forward"
    assert line in out.splitlines()


WAYS = [
    (("mymodels.py:caches",), "model.cache[2]"),
    (("mymodels:alone", "--inputs", "mymodels:inputs"), "model.cache[3]"),
    (("mymodels:alone", "--inputs", "mymodels.py:named_inputs"), "model.cache[3]"),
    (("mymodels:alone", "--inputs", "mymodels:both"), "model.cache[3]"),
    (("mymodels:ready", "--inputs", "mymodels:inputs"), "model.cache[3]"),
    (("mymodels:caches", "--inputs", "mymodels:inputs"), "model.cache[3]"),
]


@pytest.mark.parametrize(("words", "path"), WAYS)
def test_ways_to_name_a_model_and_its_inputs(ends, words, path):
    code, out, err = ends[words]
    assert (code, err) == (1, "")
    assert f"`{path}`" in out.splitlines()[1]


def test_one_tensor_and_a_function(check):
    assert check("--inference", "mymodels:one_tensor")[0] == 0
    code, out, _ = check("--inference", "mymodels:function")
    assert code == 0
    assert out.startswith("inference audit of sin (torch ")


def test_without_forking(check):
    code, out, err = check("--inference", "mymodels:caches", "--no-fork")
    assert (code, err) == (1, "")
    assert "on deep copies in this process)" in out.splitlines()[0]


BAD = [
    (
        ("mymodels",),
        "--inference takes MODULE:FUNCTION or file.py:FUNCTION, as in mymodels:make_model; "
        "got 'mymodels'",
    ),
    (
        ("no_such_module:f",),
        "no module named 'no_such_module' in the current folder or installed",
    ),
    (("no_such.py:f",), "no such file: no_such.py"),
    (
        ("broken:f",),
        "importing broken failed: ModuleNotFoundError: No module named 'not_installed_anywhere'",
    ),
    (("wrong.py:f",), "importing wrong.py failed: ZeroDivisionError: division by zero"),
    (("mymodels:missing",), "mymodels has no 'missing'"),
    (
        ("mymodels:number",),
        "mymodels:number is of type int, not a function that makes a model or inputs",
    ),
    (("mymodels:raises",), "mymodels:raises raised at mymodels.py:26: OSError: no weights"),
    (
        ("mymodels:nothing",),
        "mymodels:nothing returned None, which cannot be called; return a model or function",
    ),
    (
        ("mymodels:four",),
        "mymodels:four returned a tuple of 4, not (model, args) or (model, args, kwargs)",
    ),
    (
        ("mymodels:odd_kwargs",),
        "mymodels:odd_kwargs returned of type int as kwargs, not a dict",
    ),
    (
        ("mymodels:odd_key",),
        "mymodels:odd_key returned kwargs with the key 1; keys are argument names",
    ),
    (
        ("mymodels:alone",),
        "Rope.forward needs inputs (missing a required argument: 'x'); return (model, args) "
        "from the factory, or name a function that returns them with --inputs",
    ),
    (
        ("mymodels:alone", "--inputs", "mymodels:too_many"),
        "the inputs do not fit Rope.forward(x, scale=1.0): too many positional arguments",
    ),
    (
        ("mymodels:alone", "--inputs", "inputs"),
        "--inputs takes MODULE:FUNCTION or file.py:FUNCTION, as in mymodels:make_model; "
        "got 'inputs'",
    ),
    (
        ("mymodels:clean", "--json", "no/such/folder/x.json"),
        "cannot write no/such/folder/x.json: there is no such folder",
    ),
]


@pytest.mark.parametrize(("words", "line"), BAD)
def test_bad_input_is_one_line(ends, words, line):
    assert ends[words] == (2, "", f"gradext check: {line}\n")


def test_bad_input_is_exit_code_2(check):
    expected = "gradext check: mymodels has no 'missing'\n"
    assert check("--inference", "mymodels:missing") == (2, "", expected)


def test_no_question_is_refused(check):
    code, out, err = check()
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == (
        "gradext check: error: one of the arguments --inference --ops is required"
    )


def test_importing_gradext_does_not_load_what_checks(tmp_path):
    rooms = ("gradext.inference_audit", "gradext.opcheck", "gradext.testing")
    code = f"import sys, gradext; print([m for m in sys.modules if m.startswith({rooms})])"
    done = python(tmp_path, "-c", f"{code}; gradext.audit_inference; print(gradext.__file__)")
    assert done.stdout.splitlines() == ["[]", str(ROOT / "gradext" / "__init__.py")]
