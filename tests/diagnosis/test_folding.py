"""Several saves that one write has changed are one block of the report."""

from __future__ import annotations

import dataclasses

from gradext.diagnosis.folding import by_cause
from gradext.diagnosis.model import Diagnosis, Frame, Site


def site(line: int, label: str = "") -> Site:
    return Site(Frame("/train.py", line, "step", column=4), label=label)


def wrong(save: int, write: int = 9, code: str = "GX401", **more: object) -> Diagnosis:
    made = Diagnosis(
        code, message=f"saved at {save}", culprits=(site(write),), victims=(site(save),)
    )
    return dataclasses.replace(made, **more)  # type: ignore[arg-type]


def test_saves_of_one_write_are_one() -> None:
    (found,) = by_cause([wrong(3, notes=("why",)), wrong(5, notes=("why",)), wrong(6)])
    assert found.message == "saved at 3"
    assert [victim.frame.line for victim in found.victims] == [3, 5, 6]
    assert found.notes == ("why", "3 saves for backward were changed by it")


def test_at_most_three_lines_and_the_count_is_whole() -> None:
    (found,) = by_cause([wrong(line) for line in range(1, 6)])
    assert len(found.victims) == 3
    assert found.notes == ("5 saves for backward were changed by it",)


def test_what_differs_stays_apart() -> None:
    apart = [
        wrong(3),
        wrong(3, write=10),
        wrong(3, severity="warning"),
        wrong(3, code="GX101"),
        wrong(4, code="GX101"),
        wrong(3, culprits=()),
        wrong(4, culprits=()),
    ]
    assert by_cause(apart) == apart


def test_one_is_left_as_it_is() -> None:
    assert by_cause([wrong(3)]) == [wrong(3)]
    assert by_cause([]) == []
