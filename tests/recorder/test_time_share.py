"""How much of a run the checks for silent errors may take."""

from __future__ import annotations

import time

import pytest

from gradext.recording import time_share


@pytest.fixture
def looked(monkeypatch):
    """Sets how long has been looked, how long the run has taken, and how much of the processor."""

    def set_to(seconds: float, by_clock: float, of_processor: float) -> None:
        monkeypatch.setattr(time_share, "_unlimited", 0)
        monkeypatch.setitem(time_share._looked, "explained", seconds)
        monkeypatch.setitem(time_share._looked, "skipped", 0.0)
        monkeypatch.setattr(time_share, "_since", (0.0, 0.0))
        monkeypatch.setattr(time, "perf_counter", lambda: by_clock)
        monkeypatch.setattr(time, "process_time", lambda: of_processor)

    return set_to


def may_look() -> bool:
    with time_share.limited("explained") as answer:
        return answer


@pytest.mark.parametrize(
    ("by_clock", "of_processor", "share"),
    [
        (1000.0, 100.0, 5.0),  # it waited, or another program had the processor
        (100.0, 1000.0, 5.0),  # it has many threads
        (100.0, 100.0, 5.0),
    ],
)
def test_the_share_is_one_of_the_time_that_the_program_ran(looked, by_clock, of_processor, share):
    looked(1.0 + share - 0.01, by_clock, of_processor)
    assert may_look()
    looked(1.0 + share + 0.01, by_clock, of_processor)
    assert not may_look()
    assert time_share.skipped() is not None


def test_a_second_may_be_taken_whatever_the_run_has_taken(looked, monkeypatch):
    looked(0.99, 0.0, 0.0)
    monkeypatch.setattr(time, "process_time", lambda: pytest.fail("a call of the system"))
    assert may_look()


def test_a_guard_raises_the_share(looked, monkeypatch):
    looked(1.0 + 10.0, 100.0, 100.0)
    monkeypatch.setattr(time_share, "_unlimited", 1)
    with time_share.limited("explained", by_guard=False) as answer:
        assert answer
