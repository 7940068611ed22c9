"""benchmarks/load.py: each kind makes its events, and a missed bar is said."""

from __future__ import annotations

import json
from pathlib import Path

import forks
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPT = BENCHMARKS / "load.py"


@pytest.fixture(scope="module")
def benchmark(load_script):
    return load_script("load")


# What a kind leaves in a recording.
LEAVES = {
    "writes": "writes",
    "writes_to_many_tensors": "writes",
    "writes_to_new_tensors": "writes",
    "writes_of_many_shapes": "writes",
    "saves": "saves",
    "views": "views",
    "births": "births",
    "cuts": "flows",
    "cuts_that_live": "flows",
    "crossings": "flows",
    "backwards": "backwards",
    "new_code": "writes",
    "new_stacks": "writes",
}


def test_all_kinds_are_tried_here(benchmark):
    assert {kind.__name__ for kind in benchmark.KINDS} == set(LEAVES)


@pytest.mark.parametrize("name", LEAVES)
def test_a_kind_makes_an_event_each_time(benchmark, name):
    import gradext

    with gradext.record() as recording:
        getattr(benchmark, name)(200)
    data = recording.data
    found = len(getattr(data, LEAVES[name])) + data.dropped[LEAVES[name]]
    assert found >= 200


def test_a_fault_at_the_end_is_explained(benchmark):
    import gradext

    with gradext.record() as recording:
        assert benchmark.is_explained(recording)
    with gradext.record(saves=False) as recording:
        assert not benchmark.is_explained(recording)


def test_a_row_over_its_bar_is_named(benchmark):
    kept = {"events": "kept", "ratio": 1.1, "held": 31.0, "stacks": 9.0, "grown": 4.0}
    kept["explained"] = True
    rows = [
        kept,
        {**kept, "events": "dearer", "ratio": 2.0},
        {**kept, "events": "larger", "held": 33.0},
        {**kept, "events": "grown", "grown": 99.0},
        {**kept, "events": "lost", "explained": False},
    ]
    missed = benchmark.over(rows)
    assert [line.partition(":")[0] for line in missed] == ["dearer", "larger", "grown", "lost"]


def test_a_kind_is_measured_in_processes_of_its_own(benchmark):
    row = benchmark.measure(benchmark.writes, 20_000)
    assert row["count"] == 20_000
    assert row["explained"]
    assert row["held"] <= benchmark.MEMORY


def test_help_and_a_wrong_option(tmp_path):
    done = forks.script(SCRIPT, "--help", folder=tmp_path)
    assert done.returncode == 0
    assert "--check" in done.stdout
    assert "--here" not in done.stdout
    done = forks.script(SCRIPT, "--nonsense", folder=tmp_path)
    assert done.returncode == 2


def test_the_result_that_is_kept_keeps_the_bars(benchmark):
    kept = json.loads((BENCHMARKS / "results" / "load.json").read_text())
    assert benchmark.over(kept["rows"]) == []
    names = {kind.__name__.replace("_", " ") for kind in benchmark.KINDS}
    assert {row["events"] for row in kept["rows"]} == names
