"""The verdict: each of the four answers, and mutants of the prover that must be found out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gradext.fix import proof
from gradext.fix.trial import Ran


def note(
    loss: str,
    leaves: dict[str, str | None],
    *,
    raised: bool = False,
    returned: tuple[str, ...] = (),
) -> dict[str, Any]:
    return {
        "at": [],
        "outputs": [loss],
        "leaves": list(leaves),
        "gradients": list(leaves.values()),
        "returned": list(returned),
        "raised": raised,
    }


def ran(*passes: dict[str, Any], values: Any = (), code: int | None = 0, **more: Any) -> Ran:
    facts: dict[str, Any] = {
        "diagnoses": more.pop("diagnoses", []),
        "error": more.pop("error", None),
    }
    return Ran(code, "", "", facts, list(passes), list(values), more.pop("stopped", False), 0.0)


FIRST = note("l0", {"w": "g0", "b": "h0"})
BROKEN = ran(FIRST, note("l1", {"w": None, "b": None}, raised=True), code=1, error="RuntimeError")
GOOD = note("l1", {"w": "g1", "b": "h1"})
THEN = note("l2", {"w": "g2", "b": "h2"})
REFERENCE = ran(FIRST, GOOD, THEN)


def test_verified() -> None:
    found = proof.judge(BROKEN, ran(FIRST, GOOD, THEN), [REFERENCE], 3)
    assert (found.level, found.equal, found.gradients, found.more) == ("verified", 6, 6, 1)


def test_the_order_of_leaves_is_free() -> None:
    other = note("l1", {"b": "h1", "w": "g1"})
    assert proof.judge(BROKEN, ran(FIRST, other, THEN), [REFERENCE], 3).level == "verified"


@pytest.mark.parametrize(
    "tried",
    [
        ran(FIRST, note("other", {"w": "g1", "b": "h1"}), THEN),  # another loss
        ran(FIRST, note("l1", {"w": "g1", "b": "xx"}), THEN),  # one gradient of two
        ran(FIRST, note("l1", {"w": "g1"}), THEN),  # a leaf fewer
        ran(FIRST, note("l1", {"w": "g1", "b": "h1", "c": "i1"}), THEN),  # a leaf more
        ran(FIRST, note("l1", {"w": "h1", "b": "g1"}), THEN),  # of the wrong leaf
        ran(FIRST, GOOD, note("l2", {"w": "g2", "b": "xx"})),  # wrong later
        ran(FIRST, GOOD),  # a pass fewer
        ran(FIRST),  # the failing pass is gone
        ran(note("l0", {"w": "xx", "b": "h0"}), GOOD, THEN),  # wrong before
        ran(FIRST, note("l1", {"w": "g1", "b": "h1"}, returned=("r",)), THEN),
    ],
)
def test_what_computes_something_else_is_never_verified(tried: Ran) -> None:
    assert proof.judge(BROKEN, tried, [REFERENCE], 3).level == "changes-meaning"


@pytest.mark.parametrize(
    ("tried", "why"),
    [
        (ran(FIRST, GOOD, THEN, code=1, error="ValueError: x"), "ValueError: x"),
        (ran(FIRST, GOOD, code=None), "in time"),
        (ran(FIRST, note("l1", {"w": None}, raised=True)), "raises"),
        (
            ran(FIRST, GOOD, diagnoses=[{"code": "GX401", "message": "m", "severity": "error"}]),
            "GX401: m",
        ),
    ],
)
def test_what_does_not_run_fails(tried: Ran, why: str) -> None:
    found = proof.judge(BROKEN, tried, [REFERENCE], 3)
    assert found.level == "fails"
    assert why in found.why


def test_a_new_warning_is_not_verified_and_no_failure() -> None:
    warning = {"code": "GX304", "message": "m", "severity": "warning"}
    found = proof.judge(BROKEN, ran(FIRST, GOOD, THEN, diagnoses=[warning]), [REFERENCE], 3)
    assert (found.level, "GX304: m" in found.why) == ("unproved", True)
    known = ran(*BROKEN.passes, code=1, error="RuntimeError", diagnoses=[warning])
    found = proof.judge(known, ran(FIRST, GOOD, THEN, diagnoses=[warning]), [REFERENCE], 3)
    assert found.level == "verified"


def test_without_a_reference_nothing_is_proved() -> None:
    assert proof.judge(BROKEN, ran(FIRST, GOOD, THEN), [], 3).level == "unproved"
    failing = ran(FIRST, note("l1", {}, raised=True), code=1)
    assert proof.judge(BROKEN, ran(FIRST, GOOD, THEN), [failing], 3).level == "unproved"


def values(*numbers: float) -> list[Any]:
    return [torch.tensor([number], dtype=torch.float64) for number in numbers]


def with_values(first: str, w: float) -> Ran:
    pair = note("l0", {"w": first, "b": "h0"})
    return ran(pair, note("l1", {}), values=[values(w, 1.0), []])


def test_the_tolerance_is_what_the_reference_differs_by_itself() -> None:
    """Ten per cent, or any number that somebody finds small, is none."""
    broken = ran(note("l0", {"w": None, "b": None}, raised=True), code=1, error="RuntimeError")
    wanted, close = with_values("a", 1.0), with_values("b", 1.0 + 1e-7)
    assert proof.judge(broken, close, [wanted], 0).level == "changes-meaning"
    assert proof.needs_second_reference(proof.judge(broken, close, [wanted], 0))
    again = with_values("c", 1.0 + 2e-7)
    found = proof.judge(broken, close, [wanted, again], 0)
    assert found.level == "verified"
    assert 1e-7 < found.tolerance < 3e-7
    far = with_values("d", 1.1)
    assert proof.judge(broken, far, [wanted, again], 0).level == "changes-meaning"
    assert not proof.needs_second_reference(proof.judge(broken, far, [wanted], 0))


def test_not_a_number_is_equal_to_nothing() -> None:
    broken = ran(note("l0", {"w": None, "b": None}, raised=True), code=1, error="RuntimeError")
    found = proof.judge(broken, with_values("b", float("nan")), [with_values("a", 1.0)], 0)
    assert found.level == "changes-meaning"
    assert found.difference == float("inf")


def test_a_program_that_is_not_deterministic_is_said_to_be() -> None:
    other = ran(FIRST, note("other", {"w": "g1", "b": "h1"}), THEN)
    tried = ran(FIRST, note("third", {"w": "g1", "b": "h1"}), THEN)
    once = proof.judge(BROKEN, tried, [REFERENCE], 3)
    assert proof.needs_second_reference(once)
    twice = proof.judge(BROKEN, tried, [REFERENCE, other], 3)
    assert (twice.level, "not deterministic" in twice.why) == ("unproved", True)
