"""`gradext check --ops`, as a program: what it prints, writes and ends with."""

from __future__ import annotations

import json
import os
from pathlib import Path

import forks
import pytest
import torch

# Reading torch's samples imports it, and it warns, once, on a machine with a compiler for GPUs and
# no GPU: here, where no test reads what is printed.
import torch.utils.cpp_extension

from gradext.commands import main

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def program(*words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    code, out, err = forks.run(("-m", "gradext", "check", *words), HERE, environment)
    return code, out.decode(), err.decode()


@pytest.fixture(scope="module")
def liars(tmp_path_factory):
    """(exit code, stdout, stderr, the JSON) of the namespace of liars."""
    file = tmp_path_factory.mktemp("ops") / "report.json"
    words = ["--namespace", "gradext_liars", "--import", "liars.py", "--seconds", "4"]
    code, out, err = program("--ops", *words, "--verbose", "--json", str(file))
    return code, out, err, json.loads(file.read_text())


def test_a_namespace_with_lies_is_exit_code_1(liars):
    code, out, err, report = liars
    assert (code, err) == (1, "")
    assert out.startswith(
        f"ops of gradext_liars (torch {torch.__version__}, on cpu, in processes of their own)\n"
    )
    assert report["namespace"] == "gradext_liars"
    assert report["devices"] == ["cpu"]


def test_each_kind_of_lie_is_found_and_nothing_else(liars):
    names = {
        kind: [name.removeprefix("gradext_liars::") for name in ops]
        for kind, ops in liars[3]["kinds"].items()
    }
    assert names == {
        "declared but not bumped": ["uncounted_", "uncounted_list_"],
        "bumped twice": ["twice_"],
        "written but not declared": ["custom_undeclared", "undeclared", "undeclared_counted"],
        "returns an undeclared alias": ["hidden_alias", "same"],
        "wrong under inference_mode": [
            *("inside_is_normal", "inside_is_other", "inside_is_uncounted_", "inside_raises"),
        ],
        "written outside the tensor": [],
        "returns other memory than declared": ["copy_instead_"],
        "devices disagree": [],
    }


def test_the_reasons_and_remedies_are_printed(liars):
    lines = liars[1].splitlines()
    start = lines.index(
        "declared but not bumped: 2 ops (the schema says written, the bytes changed, the version "
        "did not)"
    )
    text = " ".join(line.strip() for line in lines[start : start + 12])
    assert "gradext_liars::uncounted_ error: the schema declares that `x` is written" in text
    assert "help: count the write: torch.autograd.graph.increment_version(x) after it" in text


def test_crashes_and_hangs_cost_only_themselves(liars):
    _, out, _, report = liars
    assert report["crashed"] == {
        "gradext_liars::crashes_on_ints": "killed its process (SIGABRT)",
        "gradext_liars::hangs": "ran longer than 4 s",
        "gradext_liars::leaves": "ended its process with exit code 7",
    }
    assert "crashed: gradext_liars::hangs ran longer than 4 s on some input" in out.splitlines()
    others = report["not_exercised"]["others"]
    assert sorted(name for names in others.values() for name in names) == sorted(report["crashed"])
    assert others["refused every input that was tried"] == ["gradext_liars::crashes_on_ints"]
    counts = report["counts"]
    assert counts["overloads"] - counts["exercised"] == 3
    assert counts["writable"] == counts["writable exercised"]


def test_torchs_own_lies_are_findings_and_no_failure(capsys, tmp_path):
    file = tmp_path / "aten.json"
    words = ["--op", "fill_.Scalar", "--op", "_fused_sgd_", "--json", str(file)]
    assert main(["check", "--ops", *words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert (
        "3 overloads, 3 ran on some input; 3 declare a write: 3 of them ran, and on 3 every "
        "declared write was seen" in " ".join(out.split())
    )
    assert "  aten::_fused_sgd_" in lines
    report = json.loads(file.read_text())
    assert report["kinds"]["declared but not bumped"] == [
        "aten::_fused_sgd_",
        "aten::_fused_sgd_.tensor_lr",
    ]
    assert sum(map(len, report["kinds"].values())) == 2


def test_agreement_is_said(capsys):
    assert main(["check", "--ops", "--op", "fill_.Scalar"]) == 0
    assert "the three witnesses agree on every op that ran" in capsys.readouterr().out


BAD = [
    (
        ("--ops", "--namespace", "nothing_here"),
        "no ops in the namespace 'nothing_here'; name the module that registers them with --import",
    ),
    (
        ("--ops", "--namespace", "nothing_here", "--import", "json"),
        "no ops in the namespace 'nothing_here'",
    ),
    (("--ops", "--op", "no_such", "--op", "nor_such"), "no op of aten is called no_such or nor_su"),
    (("--ops", "--import", "no_such_module"), "no module named 'no_such_module' in the current"),
    (("--ops", "--import", "no_such.py"), "no such file: no_such.py"),
    (("--ops", "--device", "toaster"), "--device toaster: only cpu, cuda and meta can be compared"),
    (("--ops", "--device", ","), "--device takes names of devices, as in cpu,cuda"),
    (("--ops", "--inputs", "x:y"), "--inputs goes with --inference"),
    (("--ops", "--no-fork"), "--no-fork goes with --inference"),
    (("--inference", "x:y", "--op", "add"), "--op goes with --ops"),
    (("--inference", "x:y", "--verbose"), "--verbose goes with --ops"),
    (("--ops", "--json", "no/such/folder/x.json"), "cannot write no/such/folder/x.json: there is"),
]


@pytest.mark.parametrize(("words", "line"), BAD)
def test_bad_input_is_one_line_and_exit_code_2(capsys, words, line):
    assert main(["check", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"gradext check: {line}")
    assert err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there(capsys):
    assert main(["check", "--ops", "--device", "cpu,cuda"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == (
        "",
        f"gradext check: --device cuda: torch {torch.__version__} finds no CUDA device here\n",
    )
