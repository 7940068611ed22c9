"""Comparing two results: rows that overlap, machines that differ, files that are no results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import overlap  # noqa: E402

sys.path.remove(str(BENCHMARKS))

MACHINE = {
    "processor": "a machine",
    "system": "Linux",
    "gpu": None,
    "torch": "2.13.0",
    "commit": "abc",
    "date": "2000-01-01",
}


def row(what, low, high, threads=1, **more):
    middle = (low + high) / 2
    return {"what": what, "threads": threads, "ratio": middle, "low": low, "high": high, **more}


def write(path, rows, **machine):
    result = {"benchmark": "modes", "machine": {**MACHINE, **machine}, "rows": rows}
    path.write_text(json.dumps(result))
    return path


@pytest.fixture
def program(monkeypatch, capsys):
    """Runs main() with a command line of its own: exit code, output, errors."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["overlap.py", *map(str, words)])
        code = overlap.main()
        return (code, *capsys.readouterr())

    return run


def test_as_a_program(tmp_path):
    same = write(tmp_path / "same.json", [row("a", 1.0, 1.2)])
    command = [sys.executable, str(BENCHMARKS / "overlap.py"), str(same), str(same)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("100.0 % overlap; at least 95 % must\n")


def test_enough_rows_overlap(program, tmp_path):
    old = write(tmp_path / "old.json", [row(f"r{k}", 1.0, 1.2) for k in range(20)])
    new = write(
        tmp_path / "new.json",
        [row("r0", 1.3, 1.4), *(row(f"r{k}", 1.1, 1.3) for k in range(1, 20))],
    )
    code, out, _ = program(old, new)
    assert code == 0
    assert "19 of 20 rows overlap" in out
    assert "r0, 1: 1.1 [1, 1.2] then, 1.35 [1.3, 1.4] now" in out
    assert out.endswith("95.0 % overlap; at least 95 % must\n")
    assert program(old, new, "--least", "0.96")[0] == 1


def test_threads_tell_rows_apart_and_skipped_rows_do_not_count():
    old = [row("a", 1.0, 1.1), row("a", 2.0, 2.1, threads=2), {**row("b", 1, 1), "low": None}]
    new = [row("a", 1.0, 1.1), row("a", 2.0, 2.1, threads=2), row("b", 1.0, 1.1)]
    both = overlap.pairs(old, new)
    assert [(a["low"], b["low"]) for a, b in both] == [(1.0, 1.0), (2.0, 2.0)]


def test_what_a_row_says_of_its_result_is_not_what_it_is_about():
    old, new = [{**row("a", 1.0, 1.1), "note": ""}], [{**row("a", 3.0, 3.1), "note": "none"}]
    ((a, b),) = overlap.pairs(old, new)
    assert not overlap.overlaps(a, b)


def test_a_thing_over_itself_does_not_count():
    same = [{**row("a", 1.0, 1.0)}]
    assert overlap.pairs(same, same) == []


@pytest.mark.parametrize("key", ["processor", "system", "gpu"])
def test_another_machine_is_refused(program, tmp_path, key):
    old = write(tmp_path / "old.json", [row("a", 1.0, 1.2)], **{key: "other"})
    new = write(tmp_path / "new.json", [row("a", 1.0, 1.2)])
    code, out, err = program(old, new)
    assert (code, out) == (2, "")
    assert err.startswith(f"overlap: different machines: {key} 'other' and ")


def test_another_torch_is_what_one_compares(program, tmp_path):
    old = write(tmp_path / "old.json", [row("a", 1.0, 1.2)], torch="2.11.0")
    new = write(tmp_path / "new.json", [row("a", 1.0, 1.2)])
    assert program(old, new)[0] == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot read"),
        ("no", "is no JSON of a benchmark"),
        ("[]", "is no JSON of a benchmark"),
        ("{}", "is no result of a benchmark"),
    ],
)
def test_a_file_that_is_no_result(program, tmp_path, text, said):
    new = write(tmp_path / "new.json", [row("a", 1.0, 1.2)])
    old = tmp_path / "old.json"
    if text is not None:
        old.write_text(text)
    code, _, err = program(old, new)
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1


def test_another_benchmark_is_refused(tmp_path):
    old = write(tmp_path / "old.json", [row("a", 1.0, 1.2)])
    with pytest.raises(overlap.NotComparable, match="is a result of modes, not of state"):
        overlap.against(old, "state", [row("a", 1.0, 1.2)], MACHINE)


def test_results_without_a_row_in_common(program, tmp_path):
    old = write(tmp_path / "old.json", [row("a", 1.0, 1.2)])
    new = write(tmp_path / "new.json", [row("b", 1.0, 1.2)])
    code, _, err = program(old, new)
    assert code == 2
    assert "has no row of this run" in err
