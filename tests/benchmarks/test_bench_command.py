"""`gradext bench`, as a program: its suites, its JSON against the schema, its errors."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from gradext.commands import bench, main

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "benchmarks" / "schema.json").read_text())
RESULTS = ROOT / "benchmarks" / "results"


def program(*words, cwd=ROOT):
    command = [sys.executable, "-m", "gradext", "bench", *map(str, words)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "GRADEXT_BENCH_LEAST": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=900)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A real `gradext bench --quick` of all suites: exit code, output, errors, folder."""
    out = tmp_path_factory.mktemp("quick")
    return *program("--quick", "--out", out, cwd=out), out


def test_quick_runs_every_suite_and_writes_what_the_schema_says(quick):
    code, stdout, stderr, out = quick
    assert code == 0, stderr
    assert sorted(path.stem for path in out.glob("*.json")) == sorted(bench.SUITES)
    for suite, says in bench.SUITES.items():
        assert f"== {suite}: {says}\n" in stdout
        result = json.loads((out / f"{suite}.json").read_text())
        jsonschema.validate(result, SCHEMA)
        assert result["benchmark"] == suite


def test_quick_measures_ops_models_and_a_compiled_one(quick):
    rows = json.loads((quick[3] / "modes.json").read_text())["rows"]
    measured = [row for row in rows if row["us"] is not None]
    assert {row["group"] for row in measured} == {"op", "model", "compiled"}
    assert {row["mode"] for row in measured} == {
        *("grad", "no_grad", "inference_mode", "detached", "no_grad_frozen"),
    }
    assert all(row["processes"] >= 3 for row in measured)


def test_quick_has_every_layer_of_every_op_in_every_mode(quick, load_script):
    layers = load_script("layers")
    rows = json.loads((quick[3] / "layers.json").read_text())["rows"]
    expected = [
        (op, mode, layer)
        for op, mode in itertools.product(layers.OPS, layers.MODES)
        for layer in layers.layers_of(op, "cpu")
    ]
    assert [(row["op"], row["mode"], row["layer"]) for row in rows] == expected
    assert len({tuple(row) for row in rows}) == 1
    assert all(row["low"] <= row["ns"] <= row["high"] for row in rows)
    assert {row["processes"] for row in rows} == {layers.PROCESSES}
    assert layers.LAUNCH not in {row["layer"] for row in rows}  # nothing is launched on a CPU


def test_the_committed_results_of_the_suites_are_what_the_schema_says():
    for suite in bench.SUITES:
        jsonschema.validate(json.loads((RESULTS / f"{suite}.json").read_text()), SCHEMA)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: r.update(benchmark="another"),
        lambda r: r["machine"].pop("torch"),
        lambda r: r["rows"].clear(),
        lambda r: r["rows"][0].pop("low"),
        lambda r: r["rows"][0].update(mode=3),
        lambda r: r["rows"][0].update(us=-1.0),
        lambda r: r["rows"][0].update(processes=2),
        lambda r: r["rows"][0].update(extra="column"),
    ],
)
def test_the_schema_refuses_what_is_wrong(spoil):
    result = json.loads((RESULTS / "modes.json").read_text())
    jsonschema.validate(result, SCHEMA)
    spoil(result)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(result, SCHEMA)


def test_against_an_earlier_result(quick, tmp_path):
    code, out, err = program("state", "--quick", "--against", quick[3] / "state.json")
    assert code == 0, err
    assert "rows overlap" in out
    other = json.loads((quick[3] / "state.json").read_text())
    other["machine"]["processor"] = "another"
    (tmp_path / "other.json").write_text(json.dumps(other))
    code, out, err = program("state", "--quick", "--against", tmp_path / "other.json")
    assert code == 2
    assert "one fact" not in out  # it is said before anything is measured
    assert "--against: different machines: processor 'another' and " in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["speed"], "no suite is called 'speed'; there are modes, recorder"),
        (["--against", "README.md"], "--against compares one suite"),
        (["state", "--against", "no.json"], "--against: there is no file no.json"),
        (["state", "--out", "README.md"], "--out: README.md is a file, and a folder is needed"),
        (["--device", "tpu"], "--device is cpu or cuda, not 'tpu'"),
    ],
)
def test_a_command_line_that_makes_no_sense(words, said, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["bench", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"gradext bench: {said}")
    assert len(err.splitlines()) == 1


def test_without_scripts_it_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "PACKAGE", tmp_path / "gradext")
    assert main(["bench", "state"]) == 2
    assert "neither in the package nor beside it" in capsys.readouterr().err
