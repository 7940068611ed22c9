"""benchmarks/findings.py: what goes wrong in it does go wrong, and a missed bar is said."""

from __future__ import annotations

import json
from pathlib import Path

import forks
import pytest
import torch

from gradext.diagnosis.codes import CODES as ALL_CODES

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPT = BENCHMARKS / "findings.py"


@pytest.fixture(scope="module")
def benchmark(load_script):
    return load_script("findings")


FAULT = "GX101, a caught error"
# The codes that a running program meets; GX204 is found by an audit, GX405 by a guard's end, and
# GX306 is told once, at the end.
CODES = {code for code in ALL_CODES if code not in ("GX204", "GX306", "GX405")}
# The benchmark has these; the result that is kept is older.
NEWER = ("GX107", "GX305", "GX406")


def test_every_code_of_a_running_program_is_tried(benchmark):
    assert {fault.code for fault in benchmark.FAULTS.values()} == CODES | {None}


@pytest.mark.parametrize("lines", [0, 2000])
def test_a_fault_is_found_each_time(benchmark, lines, tmp_path):
    x = torch.linspace(0.0, 1.0, 8, requires_grad=True)
    for fault in benchmark.FAULTS:
        with benchmark.switched_on(fault, tmp_path, lines) as (step, heard):
            for _ in range(3):
                step(x)
        benchmark.check(fault, heard, 3)


def test_the_long_source_has_its_length(benchmark):
    for fault in benchmark.FAULTS:
        text = benchmark.source(fault, benchmark.LINES)
        assert abs(text.count("\n") - benchmark.LINES) < 100
        at = text[: text.index("def step(self, x)")].count("\n")
        assert benchmark.LINES // 3 < at < benchmark.LINES * 2 // 3


def test_a_row_over_its_bar_is_named(benchmark):
    rows = [
        {"what": "kept", "time": "again", "milliseconds": 0.09, "bar": 0.1},
        {"what": "missed", "time": "first", "milliseconds": 250.0, "bar": 200.0},
    ]
    assert benchmark.over(rows) == ["missed, first: 250 ms, and 200 ms are allowed"]


def test_the_first_time_is_measured_in_a_process_of_its_own(benchmark):
    row = benchmark.first(FAULT, 2, 1000, 500)
    assert row["samples"] == 2
    assert 0 < row["low"] <= row["milliseconds"] <= row["high"]


def test_an_error_over_a_large_graph_is_explained_in_each_shape(benchmark):
    for shape in benchmark.SHAPES:
        row = benchmark.large(shape, 1, 2_000)
        assert row["what"] == f"GX101, 2,000 nodes {shape}"
        assert 0 < row["milliseconds"] < 60_000


def test_a_fault_that_is_not_found_is_no_measurement(benchmark, tmp_path, monkeypatch):
    harmless = benchmark.FAULTS[FAULT]._replace(text="x.exp().sum().backward()")
    monkeypatch.setitem(benchmark.FAULTS, "harmless", harmless)
    with pytest.raises(RuntimeError, match="harmless: 0 of"):
        benchmark.again("harmless", tmp_path, 0.01)


def test_a_step_that_is_right_and_is_told_of_is_no_measurement(benchmark, tmp_path, monkeypatch):
    wrong = benchmark.FAULTS[FAULT]._replace(code=None)
    monkeypatch.setitem(benchmark.FAULTS, "wrong", wrong)
    with pytest.raises(RuntimeError, match=r"wrong: .* of 0 were found"):
        benchmark.again("wrong", tmp_path, 0.01)


def test_help_and_a_wrong_option(tmp_path):
    done = forks.script(SCRIPT, "--help", folder=tmp_path)
    assert done.returncode == 0
    assert "--check" in done.stdout
    assert "--first" not in done.stdout
    done = forks.script(SCRIPT, "--nonsense", folder=tmp_path)
    assert done.returncode == 2


def test_the_result_that_is_kept_keeps_the_bars(benchmark):
    kept = json.loads((BENCHMARKS / "results" / "findings.json").read_text())
    assert benchmark.over(kept["rows"]) == []
    assert {(row["what"], row["time"]) for row in kept["rows"]} == {
        (fault, time)
        for fault in benchmark.FAULTS
        for time in ("again", "first")
        if not fault.startswith(NEWER)
    }
