"""Whom a fault concerns, in words and as JSON."""

from __future__ import annotations

import pytest

from gradext.diagnosis.model import Diagnosis
from gradext.diagnosis.run_report import Told, together
from gradext.diagnosis.whom import MOST, Whom, from_json, words
from gradext.reporters import concise, diagnosis_text, github

MAIN = Whom(threads=(None,))


@pytest.mark.parametrize(
    ("met", "said"),
    [
        ([MAIN], ""),
        ([Whom()], ""),
        ([Whom(threads=("learner",))], 'in thread "learner"'),
        ([Whom(threads=(None, "learner"))], 'also in thread "learner"'),
        ([Whom(threads=("a", "b"))], 'in threads "a", "b"'),
        ([Whom(pid=7)], "in the child process 7"),
        ([MAIN, Whom(pid=7), Whom(pid=9)], "also in the child processes 7, 9"),
        ([Whom(pid=7, process="actor")], 'in the child process "actor" (7)'),
        ([Whom(pid=7, process="ForkProcess-1:2")], "in the child process 7"),
        ([Whom(pid=7, rank=1, ranks=2)], "on rank 1 of 2"),
        ([Whom(pid=n, rank=n, ranks=8) for n in range(8)], "on ranks 0-7 of 8"),
        ([Whom(rank=n, ranks=8) for n in (5, 0, 1)], "on ranks 0-1, 5 of 8"),
        ([Whom(pid=7, process="Process-3", worker=0)], "in DataLoader worker 0"),
        ([Whom(pid=n, worker=n) for n in (3, 1, 2)], "in DataLoader workers 1-3"),
        (
            [Whom(pid=7, rank=1, ranks=2, worker=0, threads=("pin",))],
            'on rank 1 of 2, in DataLoader worker 0, in thread "pin"',
        ),
        (
            [Whom(rank=0, ranks=2), Whom(rank=1, ranks=2, threads=("x",))],
            'on rank 0 of 2; on rank 1 of 2, in thread "x"',
        ),
        ([Whom(threads=("a\nb\x1b[31m",))], 'in thread "a b?[31m"'),
    ],
)
def test_words(met: list[Whom], said: str) -> None:
    assert words(met) == said


def test_long_lists_and_names_are_cut() -> None:
    said = words([Whom(pid=n) for n in range(100)])
    assert said.endswith(f"{MOST - 1} and {100 - MOST} more")
    assert len(words([Whom(threads=("x" * 500,))])) < 100
    many = Whom().with_threads(f"t{n}" for n in range(1000))
    assert len(many.threads) == MOST


@pytest.mark.parametrize(
    ("met", "kept"),
    [
        (MAIN, {}),
        (Whom(threads=("a",)), {"thread": "a"}),
        (Whom(threads=(None, "a")), {"thread": "a", "threads": ["MainThread", "a"]}),
        (
            Whom(7, "actor", 1, 2, 0, 3),
            {
                "pid": 7,
                "process": "actor",
                "rank": 1,
                "world_size": 2,
                "local_rank": 0,
                "worker": 3,
            },
        ),
    ],
)
def test_json(met: Whom, kept: dict[str, object]) -> None:
    assert met.to_json() == kept
    again = from_json(kept)
    assert again.to_json() == kept


@pytest.mark.parametrize(
    "wrong", [{"rank": "1"}, {"thread": 3}, {"threads": "a"}, {"threads": [1]}, {"pid": 1.5}]
)
def test_json_of_others(wrong: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        from_json(wrong)


def test_every_format_says_it() -> None:
    diagnosis = Diagnosis("GX401", message="no")
    told = [Told(diagnosis, 3, Whom(pid=n, rank=n, ranks=2)) for n in range(2)]
    (found,) = together(told)
    assert "this happened 6 times" in found.notes
    assert "= on ranks 0-1 of 2\n" in diagnosis_text.text(found)
    assert "no (on ranks 0-1 of 2)" in concise.lines([found])
    assert "no (on ranks 0-1 of 2)" in github.lines([found])
