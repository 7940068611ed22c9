"""Others' trace functions: they stay, and a line that nobody watched blames no other line."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import gradext
from gradext import _C


class Worker:
    """A thread that runs what it is given, one piece after the other."""

    def __init__(self) -> None:
        self.job: Callable[[], object] = lambda: None
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.stops = False
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def work(self) -> None:
        while True:
            self.go.acquire()
            if self.stops:
                return
            self.job()
            self.done.release()

    def __call__(self, job: Callable[[], object]) -> None:
        self.job = job
        self.go.release()
        self.done.acquire()


@pytest.fixture
def worker() -> Iterator[Worker]:
    started = Worker()
    yield started
    started.stops = True
    started.go.release()
    started.thread.join()


def put(memory: Any) -> None:
    memory[0] = 7


class Tracer:
    """What a debugger puts on a thread; keeps the lines that it is told of."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, frame: Any, event: str, argument: object) -> Tracer:
        if event == "line":
            self.lines.append(frame.f_code.co_name)
        return self


def write_in(run: Callable[[Callable[[], object]], object]) -> Any:
    """One silent write, by `run`, under a guard. Returns the one finding."""
    with warnings.catch_warnings(), gradext.guard() as on:
        warnings.simplefilter("ignore")
        h = torch.ones(3, requires_grad=True).exp()
        memory = h.detach().numpy()
        first = 1
        run(lambda: put(memory))
        second = first + 1
        h.sum().backward()
        assert second == 2
    (found,) = on.diagnoses
    assert found.code == "GX401"
    return found


def blamed(found: Any) -> set[str]:
    return {site.frame.function for site in found.culprits}


def test_a_write_of_the_own_thread_is_known_by_its_line() -> None:
    assert blamed(write_in(lambda job: job())) == {"put"}


def test_a_thread_that_was_there_before_is_watched_too(worker: Worker) -> None:
    # A window is right as well, but no line of the thread that only waited.
    assert blamed(write_in(worker)) <= {"put"}


def test_a_thread_under_a_debugger_writes_and_nobody_else_is_blamed(worker: Worker) -> None:
    tracer = Tracer()
    worker(lambda: sys.settrace(tracer))
    found = write_in(worker)
    assert blamed(found) == set()
    assert found.window is not None
    assert "put" in tracer.lines  # it saw all its lines
    assert sys.gettrace() is None
    had: list[object] = []
    worker(lambda: had.append(sys.gettrace()))
    assert had == [tracer]
    worker(lambda: sys.settrace(None))


def test_a_debugger_that_comes_while_lines_are_watched_stays(worker: Worker) -> None:
    tracer = Tracer()

    def run(job: Callable[[], object]) -> None:
        worker(lambda: sys.settrace(tracer))
        worker(job)

    assert blamed(write_in(run)) == set()
    assert "put" in tracer.lines
    lines = len(tracer.lines)
    worker(lambda: put([0]))
    assert len(tracer.lines) > lines  # after the guard too
    worker(lambda: sys.settrace(None))


def test_the_own_thread_is_watched_where_another_is_under_a_debugger(worker: Worker) -> None:
    # The other thread may have written: a window, not a line.
    worker(lambda: sys.settrace(Tracer()))
    found = write_in(lambda job: job())
    assert blamed(found) == set()
    worker(lambda: sys.settrace(None))


def test_nothing_is_left_on_any_thread(worker: Worker) -> None:
    tracer = Tracer()
    looks = []
    for settrace in (lambda: None, lambda: worker(lambda: sys.settrace(tracer))):
        with warnings.catch_warnings(), gradext.guard():
            warnings.simplefilter("ignore")
            h = torch.ones(3, requires_grad=True).exp()
            memory = h.detach().numpy()
            settrace()
            h.sum().backward()
            del memory, h
        assert _C.testing.guard_facts()["armed"] is False
        looks.append(_C.testing.guard_facts()["looks"])
        worker(lambda: put([0]))
        put([0])
        assert _C.testing.guard_facts()["looks"] == looks[-1]
    # A debugger finds the place free.
    mine = Tracer()
    had = sys.gettrace()
    sys.settrace(mine)
    put([0])
    sys.settrace(had)
    assert "put" in mine.lines
    worker(lambda: sys.settrace(None))


def test_all_threads_are_blamed_again_when_the_debugger_has_gone(worker: Worker) -> None:
    worker(lambda: sys.settrace(Tracer()))
    assert blamed(write_in(lambda job: job())) == set()
    worker(lambda: sys.settrace(None))
    assert blamed(write_in(lambda job: job())) == {"put"}
