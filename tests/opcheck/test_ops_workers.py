"""Jobs in forks: crashes, hangs, exits and errors cost one step of one job, never the run."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from gradext.opcheck import workers

pytestmark = pytest.mark.skipif(not workers.is_possible(), reason="no fork here")

STEPS = 4


def work(job, first):
    """Four steps; "x at k" goes wrong in step k."""
    trouble, _, at = str(job).partition(" at ")
    for step in range(first, STEPS):
        yield step, None
        if at and step == int(at):
            if trouble == "abort":
                os.abort()
            if trouble == "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            if trouble == "exit":
                os._exit(3)
            if trouble == "hang":
                time.sleep(600)
            if trouble == "raise":
                raise ValueError("a bug")
        yield step, f"{job}/{step}"


def outcomes(jobs, **options):
    """By job: [what each step gave], in order."""
    found = {job: [] for job in jobs}
    for result in workers.run(jobs, work, **options):
        found[jobs[result.job]].append(result.fault or result.value.rpartition("/")[2])
    return found


def test_every_way_to_go_wrong():
    jobs = ["a", "abort at 1", "b", "segfault at 0", "exit at 3", "raise at 2", "c"]
    done = []
    found = outcomes(jobs, progress=done.append)
    assert found == {
        "a": ["0", "1", "2", "3"],
        "abort at 1": ["0", "killed its process (SIGABRT)", "2", "3"],
        "b": ["0", "1", "2", "3"],
        "segfault at 0": ["killed its process (SIGSEGV)", "1", "2", "3"],
        "exit at 3": ["0", "1", "2", "ended its process with exit code 3"],
        "raise at 2": ["0", "1", "gradext failed: ValueError: a bug", "3"],
        "c": ["0", "1", "2", "3"],
    }
    assert done == list(range(1, 8))


def test_a_hang_ends_at_the_time_limit():
    start = time.monotonic()
    found = outcomes(["hang at 1", "a"], seconds=3, processes=1)
    assert found == {"hang at 1": ["0", "ran longer than 3 s", "2", "3"], "a": list("0123")}
    assert time.monotonic() - start < 20


def test_a_job_that_always_crashes_is_given_up():
    def always(job, first):
        for step in range(first, 100):
            yield step, None
            os.abort()

    found = list(workers.run(["x"], always))
    assert [result.step for result in found] == [0, 1, 2]
    assert len(found) == workers.CRASHES


def test_memory_is_bounded_and_files_cannot_be_written(tmp_path):
    def greedy(job, first):
        yield 0, None
        try:
            torch.empty(1 << 45, dtype=torch.uint8)
        except RuntimeError as error:
            yield 0, type(error).__name__
        yield 1, None
        try:
            with open(tmp_path / "file", "w") as file:
                file.write("x" * 10)
        except OSError as error:
            yield 1, type(error).__name__

    assert [r.value for r in workers.run([0], greedy)] == ["RuntimeError", "OSError"]


def children() -> set[int]:
    """Processes whose parent this one is; other tests of this process may have left some."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            number, _, rest = stat.read_text().partition(" ")
            if int(rest.rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(number))
    return found


def test_nothing_of_a_child_is_left():
    before = children()
    list(workers.run(["a", "abort at 1"], work))
    assert children() <= before


def test_an_abandoned_run_ends_its_processes():
    before = children()
    results = workers.run(["hang at 2"] * 4, work, processes=2)
    next(results)
    assert children() > before
    results.close()
    assert children() <= before
