"""The edits that could mend a diagnosed fault, as a diagnosis carries them: proposed, not tried.

`gradext fix` runs them. Needs LibCST, which is imported when the first diagnosis is looked at.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from gradext.base import package
from gradext.diagnosis.model import Diagnosis, Fix, TextEdit
from gradext.rules.rewrite import strategies
from gradext.rules.rewrite.strategies.case import Candidate, Case, Sources
from gradext.source.edits import CannotEdit

MOST = 8  # of one diagnosis
SECONDS = 2.0  # for one report
LARGEST = 400_000  # bytes of a file; a larger one takes longer to parse than a person waits


class Proposals:
    """Edits for the diagnoses of one report. Files are read once; all share one limit of time.

    Args:
        texts: what no file has, by its name: the cells of a notebook. Nothing else is edited then.
    """

    def __init__(self, texts: Mapping[str, bytes] | None = None) -> None:
        known = dict(texts or {})
        self._sources = Sources(known, known.__contains__ if known else _is_small_and_own)
        self._ends = time.monotonic() + SECONDS

    def of(self, diagnosis: Diagnosis, failed_at: Sequence[Mapping[str, Any]]) -> tuple[Fix, ...]:
        """The likeliest first; none where there is no more time.

        Args:
            diagnosis: whose sites say where.
            failed_at: the user's lines of the call that raised, innermost first ("file", "line",
                "function").
        """
        found: list[Fix] = []
        if time.monotonic() >= self._ends:
            return ()
        case = Case.of(diagnosis.to_json(), failed_at, self._sources)
        for candidate in strategies.propose(case):
            if candidate.instead:
                continue
            try:
                self._sources.patched(candidate)
            except CannotEdit:
                continue
            found.append(self._fix(candidate))
            if len(found) >= MOST or time.monotonic() >= self._ends:
                break
        return tuple(found)

    def _fix(self, candidate: Candidate) -> Fix:
        edits = []
        for path, edit in candidate.edits:
            source = self._sources.get(path)
            assert source is not None  # it was patched
            edits.append(
                TextEdit(path, *source.place(edit.start), *source.place(edit.end), edit.text)
            )
        return Fix(candidate.title, tuple(edits))


def _is_small_and_own(path: str) -> bool:
    try:
        return package.is_user_file(path) and os.path.getsize(path) <= LARGEST
    except OSError:
        return False
