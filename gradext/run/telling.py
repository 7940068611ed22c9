"""What of a run's findings is told when: at once, as a repetition, or by a signal that ends it.

Functions of entries; the session keeps these and says who is asked. Imports no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from gradext.diagnosis import folding, whom
from gradext.diagnosis.run_report import together
from gradext.run.entries import Entry, where

if TYPE_CHECKING:
    from gradext.base.met_before import MetBefore
    from gradext.run.joint import Joint
    from gradext.run.shown import Shown


def at_once(
    entries: Iterable[Entry], severity: Callable[[Entry], str], told: MetBefore[None]
) -> list[Entry]:
    """The silent errors that were not told; marks them. `told`: the causes that were told before.

    Another victim of a write that was told is no news.
    """
    fresh = []
    for entry in entries:
        if entry.printed or not entry.silent or severity(entry) != "error":
            continue
        entry.printed, entry.told = True, entry.count
        cause = folding.cause(entry.diagnosis)
        if cause is None or cause not in told:
            fresh.append(entry)
    for entry in fresh:
        told.meet(folding.cause(entry.diagnosis), None)
    return fresh


def repeats(entries: Iterable[Entry]) -> list[str]:
    """A line for each finding that was told at once, and has been met again since; marks them."""
    alike: dict[str, list[Entry]] = {}
    for entry in entries:
        alike.setdefault(where(entry.diagnosis), []).append(entry)
    lines = []
    for place, group in alike.items():
        if not any(entry.told for entry in group):
            continue
        count, told = (
            _most(group, [getattr(entry, name) for entry in group]) for name in ("count", "told")
        )
        if count > told:
            by = whom.words([entry.whom for entry in group])
            lines.append(f"gradext: {place} happened {count} times{f', {by}' if by else ''}")
        for entry in group:
            entry.printed, entry.told = True, entry.count
    return lines


def _most(group: Sequence[Entry], numbers: Sequence[int]) -> int:
    """The largest sum of one diagnosis: several victims of one write are not several writes."""
    sums: dict[object, int] = {}
    for entry, number in zip(group, numbers, strict=True):
        key = entry.diagnosis.key()
        sums[key] = sums.get(key, 0) + number
    return max(sums.values())


def fix(entries: Iterable[Entry], command: str | None) -> list[str]:
    """The line with the `gradext fix` for what was told at once, before edits were looked for."""
    wanted = command is not None and any(e.told and e.diagnosis.fixes for e in entries)
    return [f"fix: {command}"] if wanted else []


def of_more_ranks(ranks: Joint | None) -> list[str]:
    """The last rank's: a line for each finding that was met again after some rank had told it."""
    alike: dict[str, tuple[int, str]] = {}
    for group in ranks.ends() if ranks is not None else ():
        place, count = where(group[0].diagnosis), sum(one.count for one in group)
        by = whom.words([one.whom for one in group])
        alike[place] = max(alike.get(place, (0, "")), (count, by))  # of several victims, one
    return [f"gradext: {place} happened {n} times, {by}" for place, (n, by) in alike.items()]


def fails(entries: Iterable[Entry], severity: Callable[[Entry], str], codes: Sequence[str]) -> bool:
    """Whether what is silently wrong makes a run a failure.

    `codes` are codes, or their beginnings, of errors and warnings; none: every error.
    """
    silent = [entry for entry in entries if entry.silent]
    if not codes:
        return any(severity(entry) == "error" for entry in silent)
    return any(entry.diagnosis.code.startswith(tuple(codes)) for entry in silent)


def last_words(entries: Iterable[Entry], shown: Shown) -> str:
    """The text to print if a signal ends the process now: all that was not printed; "" for none."""
    told = []
    for entry in entries:
        if not entry.printed:
            # An error that a signal finds on its way was, as a rule, caught long ago.
            severity = entry.diagnosis.severity if entry.silent or entry.uncaught else "warning"
            told.append(entry.as_told(severity))
    return shown.text(folding.by_cause(together(told))) if told else ""


def has_faulthandler() -> bool:
    """Whether Python's faulthandler is on, which has handlers of its own."""
    module = sys.modules.get("faulthandler")
    return module is not None and module.is_enabled()
