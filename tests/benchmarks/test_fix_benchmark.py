"""benchmarks/fix.py: its programs fail and their twins do not; a missed bar is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("libcst")

RESULT = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "fix.json"


@pytest.fixture(scope="module")
def benchmark(load_script):
    return load_script("fix")


def test_each_program_fails_and_its_twin_does_not(benchmark):
    kept = torch.get_rng_state()
    for program in benchmark.PROGRAMS:
        exec(program.twin, {"__name__": "__main__"})
        if program.code != "GX403":  # silent
            with pytest.raises(RuntimeError):
                exec(program.broken, {"__name__": "__main__"})
    torch.set_rng_state(kept)


def row(**changed: Any) -> dict[str, Any]:
    good = {
        "program": "p",
        "code": "GX101",
        "patch like the twin": 1,
        "verified and wrong": False,
        "gradext fix, s": 10.0,
        "bar, s": 20.0,
    }
    return {**good, **changed}


def test_a_missed_bar_is_said(benchmark):
    assert benchmark.missed([row()] * 5) == []
    assert benchmark.missed([row(**{"gradext fix, s": 21.0})]) == ["p: 21.0 s of 20.0"]
    assert benchmark.missed([row(**{"verified and wrong": True})]) == ["p: verified, and wrong"]
    none = row(**{"patch like the twin": None})
    assert benchmark.missed([row()] * 3 + [none]) == ["GX101: 3 of 4 are mended"]
    others = [row(code="GX201"), row(code="GX302", **{"patch like the twin": None})]
    assert benchmark.missed(others) == ["all kinds: 1 of 2 are mended"]


def test_the_row_of_a_program(benchmark, tmp_path):
    program = next(one for one in benchmark.PROGRAMS if one.code == "GX201")
    found = benchmark.measure(program, tmp_path)
    assert found["answer"] == "verified"
    assert found["patch like the twin"] == 1
    assert not found["verified and wrong"]
    assert found["gradext fix, s"] > found["plain run, s"] > 0


def test_the_committed_result_is_of_these_programs_and_reaches_its_bars(benchmark):
    rows = json.loads(RESULT.read_text())["rows"]
    assert [r["program"] for r in rows] == [program.name for program in benchmark.PROGRAMS]
    assert benchmark.missed(rows) == []
