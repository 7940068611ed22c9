"""Whom a fault concerns, in words: each process, worker, rank and thread once."""

from __future__ import annotations

import pytest

from gradext.diagnosis.whom import NOBODY, Whom, words


@pytest.mark.parametrize(
    ("met", "said"),
    [
        ([NOBODY], ""),
        ([Whom(pid=7)], "in the child process 7"),
        # Several tensors that one write has changed are several findings of one process.
        ([Whom(pid=7), Whom(pid=7)], "in the child process 7"),
        ([Whom(pid=7), Whom(pid=8), Whom(pid=7)], "in the child processes 7, 8"),
        (
            [Whom(pid=7, process="actor"), Whom(pid=7, process="actor")],
            'in the child process "actor" (7)',
        ),
        ([NOBODY, Whom(pid=7), NOBODY], "also in the child process 7"),
        ([Whom(worker=1), Whom(worker=1)], "in DataLoader worker 1"),
        (
            [Whom(rank=0, ranks=2), Whom(rank=1, ranks=2), Whom(rank=0, ranks=2)],
            "on ranks 0-1 of 2",
        ),
        ([Whom(threads=("a",)), Whom(threads=("a", "b"))], 'in threads "a", "b"'),
    ],
)
def test_each_is_named_once(met: list[Whom], said: str) -> None:
    assert words(met) == said
