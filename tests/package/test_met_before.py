"""MetBefore: whether something was met before, and how often; and that all who tell use it."""

from __future__ import annotations

import os

import gradext
from gradext.base.met_before import MetBefore
from gradext.integrations.steps import WatchedSteps
from gradext.recording import findings, incidents, own_errors
from gradext.run.session import Session
from gradext.run.settings import Settings


def test_the_first_time_and_again() -> None:
    met = MetBefore[str]()
    assert met.meet(("GX101", 3), "first")
    assert not met.meet(("GX101", 3), "second")
    assert not met.meet(("GX101", 3), "third", times=5)
    assert met.meet("other", "x", times=2)
    assert (met.get(("GX101", 3)), met.count(("GX101", 3)), met.count("other")) == ("first", 7, 2)
    assert (met.get("never"), met.count("never"), "never" in met) == (None, 0, False)
    assert met.counts() == [(("GX101", 3), 7), ("other", 2)]
    assert met.values() == ["first", "x"]


def test_what_is_forgotten_is_new_again() -> None:
    met = MetBefore[str]()
    met.meet("key", "old")
    assert met.forget("key") == "old"
    assert met.forget("key") is None
    assert met.meet("key", "new")
    assert met.count("key") == 1
    met.clear()
    assert (len(met), met.more) == (0, 0)


def test_the_oldest_makes_room() -> None:
    met = MetBefore[None](3)
    assert all(met.meet(number, None) for number in range(9))
    assert met.counts() == [(6, 1), (7, 1), (8, 1)]
    assert met.more == 6
    assert not met.meet(7, None)  # what was met is counted, and moves nothing
    assert met.counts() == [(6, 1), (7, 2), (8, 1)]


def test_what_must_stay_stays() -> None:
    met = MetBefore[bool](2, lambda may_go: may_go)
    met.meet("stays", False)
    met.meet("goes", True)
    assert met.meet("new", False)
    assert [key for key, _ in met.counts()] == ["stays", "new"]
    assert not met.meet("no room", True)
    assert [key for key, _ in met.counts()] == ["stays", "new"]
    assert ("no room" in met, met.more) == (False, 2)


def test_all_who_tell_have_one_each(tmp_path) -> None:
    steps, guard, known = WatchedSteps(), gradext.guard(), findings.Known()
    session = Session(Settings("run", os.getpid(), str(tmp_path / "run.json")))
    of_each = [
        *[steps._told, guard.told, known._places, session._entries, session._causes],
        *[incidents.silent_places, own_errors._errors],
    ]
    assert all(type(each) is MetBefore for each in of_each)
    assert len(set(map(id, of_each))) == len(of_each)
