"""Threads that fail at the same time: explained one after the other, and nobody waits for ever."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import gradext
from gradext.base.met_before import MetBefore
from gradext.recording import incidents, own_errors
from gradext.rules import case, graph_copy, judge

ROOT = Path(__file__).parents[2]


def fail(spoil):
    x = torch.ones(3, requires_grad=True)
    h = x.exp()
    loss = h.sum()
    spoil(h)
    with pytest.raises(RuntimeError) as info:
        loss.backward()
    return info.value


def at_once(*jobs):
    """Each job on a thread of its own, all begun together. How many came to an end in time."""
    together = threading.Barrier(len(jobs))
    done = []

    def run(job):
        together.wait(60)
        done.append(job())

    threads = [threading.Thread(target=run, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return done


@pytest.fixture
def inside(monkeypatch):
    """How many explanations were being made each time that one began."""
    running, seen = [], []
    original = judge.of_backward

    def slow(*args):
        running.append(1)
        seen.append(len(running))
        try:
            time.sleep(0.05)
            return original(*args)
        finally:
            running.pop()

    monkeypatch.setattr(judge, "of_backward", slow)
    return seen


def test_different_faults_are_explained_one_after_the_other(inside, monkeypatch):
    monkeypatch.setattr(incidents, "_TURN", 60.0)
    with gradext.record():
        errors = at_once(
            lambda: fail(lambda h: h.add_(1)),
            lambda: fail(lambda h: h.mul_(2)),
            lambda: fail(lambda h: h.zero_()),
            lambda: fail(lambda h: h.sigmoid_()),
        )
        ops = {gradext.explain(error)[0].culprits[0].op for error in errors}
    assert ops == {"aten::add_", "aten::mul_", "aten::zero_", "aten::sigmoid_"}
    assert inside == [1, 1, 1, 1]


def test_who_fails_like_the_one_before_is_given_that_answer(inside, monkeypatch):
    monkeypatch.setattr(incidents, "_TURN", 60.0)
    with gradext.record():
        errors = at_once(*[lambda: fail(lambda h: h.add_(1))] * 4)
        assert [gradext.explain(error)[0].code for error in errors] == ["GX101"] * 4
    assert inside == [1]


def test_who_never_gets_a_turn_goes_on_without(inside, monkeypatch):
    monkeypatch.setattr(incidents, "_TURN", 0.05)
    with gradext.record(), incidents._in_turn():
        errors = at_once(lambda: fail(lambda h: h.add_(1)), lambda: fail(lambda h: h.mul_(2)))
        assert [gradext.explain(error)[0].code for error in errors] == ["GX101"] * 2
        taken = at_once(lambda: incidents._turn.acquire(blocking=False))
        assert taken == [False]  # still this one's
    assert len(inside) == 2


def test_what_waits_for_the_next_in_turn_is_not_stuck(monkeypatch):
    """A finalizer may run in the middle of an explanation, and join a thread that fails too."""
    monkeypatch.setattr(incidents, "_TURN", 0.05)
    original, begun, ended = judge.of_backward, [], []

    def joins(*args):
        if not begun:
            begun.append(1)
            ended.extend(at_once(lambda: fail(lambda h: h.mul_(2))))
        return original(*args)

    monkeypatch.setattr(judge, "of_backward", joins)
    with gradext.record():
        assert gradext.explain(fail(lambda h: h.add_(1)))[0].code == "GX101"
    assert len(ended) == 1


@pytest.mark.parametrize("what", ["read", "Names"])
def test_what_is_read_of_a_case_holds_up_no_other_thread(monkeypatch, what):
    """The finalizer may run while the graph, or the names, of one failure are read."""
    monkeypatch.setattr(incidents, "_TURN", 0.05)
    owner = {"read": graph_copy, "Names": case}[what]
    original, begun, ended = getattr(owner, what), [], []

    def joins(*args):
        if not begun:
            begun.append(1)
            ended.extend(at_once(lambda: fail(lambda h: h.mul_(2))))
        return original(*args)

    monkeypatch.setattr(owner, what, joins)
    with gradext.record():
        assert gradext.explain(fail(lambda h: h.add_(1)))[0].code == "GX101"
        assert gradext.explain(ended[0])[0].code == "GX101"


def test_an_own_error_may_be_counted_within_another(monkeypatch):
    """A finalizer may run wherever something is allocated, and fail there."""

    class Errors(MetBefore[None]):
        def meet(self, key, kept, times=1):
            if not len(self):
                super().meet("within", None)
                own_errors.count(ValueError("second"), "finalizer")
            return super().meet(key, kept, times)

    monkeypatch.setattr(own_errors, "_errors", Errors())
    at_once(lambda: own_errors.count(ValueError("first"), "diagnosis"))
    assert {"finalizer: ValueError: second", "diagnosis: ValueError: first"} <= {
        key for key, _ in own_errors._errors.counts()
    }


def test_a_turn_within_a_turn_and_an_error_leave_it_free():
    def twice():
        with incidents._in_turn():
            with incidents._in_turn():
                pass
            assert at_once(lambda: incidents._turn.acquire(blocking=False)) == [False]
            raise KeyError

    with pytest.raises(KeyError):
        twice()
    assert incidents._turn.acquire(blocking=False)
    incidents._turn.release()
    assert at_once(lambda: incidents._turn.acquire(blocking=False)) == [True]
    incidents._turn = threading.RLock()  # that thread has ended with it


def run(program):
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


def test_a_child_does_not_inherit_another_threads_turn():
    run(
        """
import os, threading
from gradext.recording import incidents
taken, done = threading.Event(), threading.Event()
def hold():
    with incidents._in_turn():
        taken.set()
        done.wait(60)
thread = threading.Thread(target=hold)
thread.start()
taken.wait(60)
child = os.fork()
if child == 0:
    os._exit(0 if incidents._turn.acquire(blocking=False) else 3)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
done.set()
thread.join()
raise SystemExit(code)
"""
    )


def test_the_memory_of_a_snapshot_goes_back_to_the_system():
    """malloc would keep it, for each of the threads apart."""
    grown = run(
        """
import threading, torch, gradext
x = torch.ones(3, requires_grad=True)
recording = gradext.record().start()
for _ in range(60_000):
    y = x * 2
    y.mul_(y.detach())
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
def look():
    assert len(recording.data.writes) > 50_000
    ready.wait(60)
ready = threading.Barrier(1)
look()
before = resident()
ready = threading.Barrier(6)
threads = [threading.Thread(target=look) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print((resident() - before) >> 20)
"""
    )
    assert int(grown) < 60  # 120 with malloc
