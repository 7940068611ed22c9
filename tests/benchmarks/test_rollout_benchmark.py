"""benchmarks/rollout.py: its programs run, a missed bar is said, and nothing is found in them."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import forks
import pytest

import gradext

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPT = BENCHMARKS / "rollout.py"


@pytest.fixture(scope="module")
def benchmark(load_script: Any) -> Any:
    return load_script("rollout")


@pytest.mark.parametrize("subject", ["rollout", "numbers"])
def test_a_program_learns_the_same_under_run(benchmark: Any, subject: str) -> None:
    (plain, recorded), *_ = benchmark.in_turns(subject, 512, 1)
    assert plain["loss"] == recorded["loss"] != 0
    assert plain["playing"] > 0 < recorded["learning"] < recorded["whole"]


def test_what_comes_from_python_is_looked_up_once_however_long_a_rollout_is(
    load_script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step asks about the same few lines: reading the source for each took seconds."""
    child = load_script("rollout_child")
    looked: list[int] = []
    walk = ast.walk
    monkeypatch.setattr(ast, "walk", lambda node: looked.append(1) or walk(node))
    counts = []
    for steps in (8, 8, 48):  # what the first has read of the source is kept for the others
        monkeypatch.setattr(child, "PLAYED", steps)
        looked.clear()
        with gradext.record():
            training = child.Training()
            training.play()
            training.learn()
        counts.append(len(looked))
    assert counts[0] > counts[1] == counts[2] > 0


def test_a_thread_counts_and_another_writes(benchmark: Any) -> None:
    found = benchmark.once("thread", 1, True)
    assert found["counted"] > 0 < found["writes"]
    assert 0 < found["share"] < 1


def test_a_row_over_its_bar_is_named(benchmark: Any) -> None:
    rows = [
        {"what": "kept", "size": 1, "ratio": 1.2, "bar": 1.25},
        {"what": "missed", "size": 2, "ratio": 1.3, "bar": 1.25},
        {"what": "only shown", "size": 3, "ratio": 9.0, "bar": None},
    ]
    said = ["missed 2: 1.30 times the processor time of plain, not 1.25"]
    assert benchmark.over(rows) == said


def test_help_and_a_wrong_option(tmp_path: Path) -> None:
    done = forks.script(SCRIPT, "--help", folder=tmp_path)
    assert done.returncode == 0
    assert "--check" in done.stdout
    done = forks.script(SCRIPT, "--nonsense", folder=tmp_path)
    assert done.returncode == 2


def test_the_result_that_is_kept_keeps_the_bars(benchmark: Any) -> None:
    kept = json.loads((BENCHMARKS / "results" / "rollout.json").read_text())
    assert benchmark.over(kept["rows"]) == []
    measured = {(row["what"], row["size"]) for row in kept["rows"]}
    assert measured >= {(what, sizes[0]) for what, sizes in benchmark.SIZES.items()}
