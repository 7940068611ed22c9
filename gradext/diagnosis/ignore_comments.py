"""Comments that silence a warning on one line: `# gradext: ignore[GX304]`, `# gradext: ignore`.

For a line that does on purpose what a rule warns of, or whose error the program catches on purpose.
Applied where diagnoses are told: to subscribers, by a guard, and in the report of a run. Errors
that nobody catches, and gradients that are silently wrong, cannot be silenced.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from gradext.base import chosen, source_lines

if TYPE_CHECKING:
    from gradext.diagnosis.model import Diagnosis

_COMMENT = re.compile(r"#\s*gradext:\s*ignore\s*(?:\[\s*(?P<codes>[A-Z0-9,\s]*)\])?")


def kept(diagnoses: Iterable[Diagnosis]) -> list[Diagnosis]:
    """The diagnoses, without the warnings that a comment on one of their lines silences.

    And without those whose code is ignored in the whole run (gradext.base.chosen).
    """
    told = (d for d in diagnoses if not chosen.is_ignored(d.code))
    return [d for d in told if d.severity != "warning" or not silences(d)]


def silences(diagnosis: Diagnosis) -> bool:
    """Whether a comment on a culprit's or a victim's line names the code, or no code at all."""
    for site in (*diagnosis.culprits, *diagnosis.victims):
        if not _has_comments(site.frame.file):
            continue
        first, last = site.frame.line, site.frame.end_line or site.frame.line
        for line in range(first, min(last, first + 100) + 1):
            text = source_lines.getline(site.frame.file, line)
            found = _COMMENT.search(text) if "gradext:" in text else None
            if found is None:
                continue
            codes = {code.strip() for code in (found["codes"] or "").split(",") if code.strip()}
            if not codes or diagnosis.code in codes:
                return True
    return False


# Per file the lines that were looked through, and whether one of them speaks of gradext: a finding
# that is told again and again is asked about again and again.
_looked: dict[str, tuple[list[str], bool]] = {}
_MOST = 256  # files


def _has_comments(file: str) -> bool:
    lines = source_lines.getlines(file)
    known = _looked.get(file)
    if known is None or known[0] is not lines:  # the same list: linecache makes one for each text
        known = (lines, any("gradext:" in line for line in lines))
        if len(_looked) >= _MOST:
            _looked.clear()
        _looked[file] = known
    return known[1]
