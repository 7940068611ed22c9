"""Rows in several processes: limits of time and memory, crashes, and what comes of each."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import processes  # noqa: E402

sys.path.remove(str(BENCHMARKS))

WORKER = f"""
import json, os, subprocess, sys, time
sys.path.insert(0, {str(BENCHMARKS)!r})
import processes

def measure(name):
    if name == "slow":
        subprocess.Popen(["sleep", "97.25"]).wait()
    if name == "large":
        kept = bytearray(os.urandom(1 << 20) * 600)
        time.sleep(60)
    if name == "crash":
        os.kill(os.getpid(), 9)
    if name == "exit":
        os._exit(3)
    if name == "raise":
        raise ValueError("of no use\\nmore")
    print("a library speaks")
    return {{"process": asked["process"], "pid": os.getpid()}}

asked = json.loads(sys.argv[1])
processes.serve(measure, asked["rows"])
"""


@pytest.fixture
def collect(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)

    def run(*names, seconds=3.0, memory=400 << 20, number=3, fewer=None):
        return processes.collect(
            [sys.executable, str(script)],
            names,
            limits=processes.Limits(seconds, memory),
            processes=number,
            fewer=fewer,
            show=False,
        )

    return run


def test_each_row_is_measured_in_three_processes_that_take_turns(collect, capfd):
    found = collect("a", "b")
    assert [r["process"] for r in found["a"]] == [0, 1, 2]
    assert len({r["pid"] for r in found["a"]}) == 3
    assert [r["pid"] for r in found["a"]] == [r["pid"] for r in found["b"]]
    assert "a library speaks" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("slow", "took longer than 3 s"),
        ("large", "took more than 0.4 GiB ("),
        ("crash", "the process that measured it ended with signal 9"),
        ("exit", "the process that measured it ended with exit code 3"),
        ("raise", "ValueError: of no use"),
    ],
)
def test_a_row_that_does_not_come_to_an_end_is_skipped_with_the_reason(collect, name, reason):
    # Only the slow one may come to its limit, however busy the machine is.
    found = collect("a", name, "b", number=2, seconds=3.0 if name == "slow" else 60.0)
    assert len(found[name]) == 1
    assert found[name][0]["skipped"].startswith(reason)
    assert [len(found["a"]), len(found["b"])] == [2, 2]  # the others are measured all the same


def test_some_rows_take_part_in_fewer_processes(collect):
    found = collect("a", "b", number=3, fewer={"b": 1})
    assert [len(found["a"]), len(found["b"])] == [3, 1]


def test_a_worker_that_cannot_start_is_an_error(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent("raise SystemExit(1)"))
    with pytest.raises(RuntimeError, match="a worker ended before its first row"):
        processes.collect(
            [sys.executable, str(script)],
            ["a"],
            limits=processes.Limits(3, 1 << 30),
            show=False,
        )


def test_no_process_is_left(collect):
    collect("slow", seconds=1.0, number=1)
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert not [line for line in left.splitlines() if "worker.py" in line and "slow" in line]
    assert "sleep 97.25" not in left  # nor what the row had started
