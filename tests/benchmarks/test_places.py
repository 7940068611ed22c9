"""The programs of benchmarks/places.py: each is one that runs, clean and broken."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import places  # noqa: E402
import places_programs  # noqa: E402


@pytest.mark.parametrize("place", [*places.PLACES])
def test_a_program_is_one(place: str) -> None:
    clean = places_programs.program(place, steps=3)
    broken = places_programs.program(place, steps=3, broken=True)
    turns = places_programs.program(place, steps=3, turns=True)
    for text in (clean, broken, turns):
        ast.parse(text)
    assert sum(line.endswith(places_programs.SAVES) for line in broken.splitlines()) == 1
    assert sum(line.endswith(places_programs.WRITES) for line in broken.splitlines()) == 1
    assert places_programs.WRITES not in clean
    differing = [a for a, b in zip(clean.splitlines(), broken.splitlines(), strict=True) if a != b]
    assert len(differing) == 1


def test_a_place_is_run(tmp_path: Path) -> None:
    """A plain script, through the benchmark itself."""
    words = ("--quick", "--only", "a script", "--out", str(tmp_path))
    subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "places.py"), *words],
        check=True,
        capture_output=True,
    )
    (row,) = json.loads((tmp_path / "places.json").read_text())["rows"]
    assert row["same stdout"] is row["same exit code"] is row["same parameters"] is True
    assert row["quiet"] is row["fails"] is True
    assert row["named"] == "GX101: the write and the save"
    assert row["cost"] > 0


def test_every_place_of_the_table_is_unchanged() -> None:
    """The committed result: nothing that trains is changed anywhere."""
    result = ROOT / "benchmarks" / "results" / "places.json"
    rows = json.loads(result.read_text())["rows"]
    assert {row["place"] for row in rows} == set(places.PLACES)
    for row in rows:
        kept = ("same stdout", "same exit code", "same parameters", "quiet", "fails")
        assert all(row[name] for name in kept), row
