"""The report of one run of a program, as data: what every output format renders.

Imports neither gradext.diagnosis.model nor dataclasses until there is a diagnosis: most programs
that are run have none, and each would make every start of `gradext run` longer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from gradext.diagnosis import whom
from gradext.diagnosis.whom import NOBODY, Whom

if TYPE_CHECKING:
    from gradext.diagnosis.model import Diagnosis
    from gradext.recording.drawing import Drawn


class Told(NamedTuple):
    """One diagnosis of the run, by one of its processes.

    Attributes:
        diagnosis: with the severity that it has in this run.
        count: how often it was met. whom: by whom.
    """

    diagnosis: Diagnosis
    count: int = 1  # type: ignore[assignment]  # hides tuple.count
    whom: Whom = NOBODY


class Part(NamedTuple):
    """How one of several processes that reported together has ended: a rank."""

    whom: Whom
    exit_code: int | None
    error: str | None


class RunReport(NamedTuple):
    """The report of one run.

    Attributes:
        gradext, torch: versions; torch is None where the program has not imported it.
        exit_code: None while the program runs. error: the uncaught error's text.
        told: the diagnoses, most important first.
        parts: the ranks that it comes from, where several have reported together.
        drawn: the events, where a format wants them and the program has ended.
    """

    gradext: str
    torch: str | None
    exit_code: int | None
    error: str | None
    told: tuple[Told, ...]
    parts: tuple[Part, ...] = ()
    drawn: Drawn | None = None


def alike(told: Iterable[Told]) -> list[list[Told]]:
    """Groups of what several processes met alike, in the order in which it was first told."""
    groups: dict[tuple[object, ...], list[Told]] = {}
    for one in told:
        key = (*one.diagnosis.key(), one.diagnosis.severity)
        groups.setdefault(key, []).append(one)
    return list(groups.values())


def together(told: Iterable[Told]) -> list[Diagnosis]:
    """One diagnosis for what several processes met, with how often and whom it concerns."""
    return [_as_one(group) for group in alike(told)]


def _as_one(group: list[Told]) -> Diagnosis:
    import dataclasses

    first, count = group[0].diagnosis, sum(one.count for one in group)
    notes = first.notes
    if count > len(group):
        notes = (*notes, f"this happened {count} times")
    concerns = whom.words([one.whom for one in group])
    return dataclasses.replace(first, notes=notes, whom=concerns)
