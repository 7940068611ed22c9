"""Syntax trees that are kept are bounded, and many threads may ask for them at once."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradext.base.met_before import MetBefore
from gradext.recording import own_errors
from gradext.source import syntax

FILES, LINES, THREADS = 60, 10, 4
KEPT = 400  # lines, fewer than there are


@pytest.fixture
def switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(syntax, "_MOST_LINES", KEPT)
    made = []
    for number in range(FILES):
        path = tmp_path / f"module_{number}.py"
        path.write_text("".join(f"x{line} = {number}\n" for line in range(LINES)))
        made.append(str(path))
    return made


def in_threads(*works: object) -> list[BaseException]:
    raised: list[BaseException] = []
    ready = threading.Barrier(len(works))

    def run(work: object) -> None:
        ready.wait()
        try:
            work()  # type: ignore[operator]
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_threads_that_ask_for_trees_at_once(files: list[str], switching_often: None) -> None:
    def ask() -> None:
        for file in [*files, *files[::2], *reversed(files)]:
            (statement,) = syntax.statements(file, 7)
            assert statement.lineno == 7

    assert in_threads(*[ask] * THREADS) == []


def test_what_is_kept_is_bounded_and_what_was_asked_for_last_is_kept(files: list[str]) -> None:
    for file in files:
        syntax.statements(file, 1)
        first = syntax.around(files[0], 1)
        assert first is syntax.around(files[0], 1)
    kept = [key for key in syntax._trees if key[0] in files]
    assert sum(last - start for _, start, last in kept) <= KEPT
    assert {files[0], files[-1]} <= {key[0] for key in kept}
    assert files[1] not in {key[0] for key in kept}


def test_errors_that_are_counted_while_they_are_listed(
    monkeypatch: pytest.MonkeyPatch, switching_often: None
) -> None:
    long = MetBefore[None](most=20_100)  # soon full: then each new one takes another's place
    for number in range(20_000):
        long.meet(f"an error {number}", None)
    monkeypatch.setattr(own_errors, "_errors", long)

    is_over = threading.Event()

    def count() -> None:
        number = 0
        while not is_over.is_set() and number < 50_000:
            own_errors.count(ValueError(f"{threading.get_ident()} {number}"), "a test")
            number += 1

    def listed() -> None:
        try:
            for _ in range(30):
                own_errors.lines()
        finally:
            is_over.set()

    assert in_threads(count, count, listed) == []
    assert own_errors.lines()
