"""One block of a report for one cause: a write that changes what several ops have saved."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradext.diagnosis.model import Diagnosis

_OF_ONE_SAVE = {"GX401", "GX402"}  # made anew for each save that the write has changed
_MOST = 3  # victims of one diagnosis


def by_cause(found: Iterable[Diagnosis]) -> list[Diagnosis]:
    """The diagnoses, those that blame the same lines for the same folded into the first of them.

    The first keeps its words; the lines of the others' saves are its victims, too.
    """
    groups: dict[object, list[Diagnosis]] = {}
    for number, diagnosis in enumerate(found):
        groups.setdefault(cause(diagnosis) or number, []).append(diagnosis)
    return [_one(group) for group in groups.values()]


def cause(diagnosis: Diagnosis) -> tuple[object, ...] | None:
    """A key that is the same for all diagnoses of one cause; None for one that stands alone."""
    if diagnosis.code in _OF_ONE_SAVE and diagnosis.culprits:
        lines = tuple((s.frame.file, s.frame.line, s.frame.column) for s in diagnosis.culprits)
        return (diagnosis.code, diagnosis.severity, lines)
    return None


def _one(group: list[Diagnosis]) -> Diagnosis:
    import dataclasses  # as in run_report

    first = group[0]
    if len(group) == 1:
        return first
    victims = {
        (site.frame.file, site.frame.line, site.frame.column, site.label): site
        for diagnosis in group
        for site in diagnosis.victims
    }
    notes = list(dict.fromkeys(note for diagnosis in group for note in diagnosis.notes))
    if not any("saved tensors are stale" in note for note in notes):
        notes.append(f"{len(group)} saves for backward were changed by it")
    return dataclasses.replace(first, victims=tuple(victims.values())[:_MOST], notes=tuple(notes))
