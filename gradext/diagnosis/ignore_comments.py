"""Comments that silence a warning on one line: `# gradext: ignore[GX304]`.

For a line that does on purpose what a rule warns of. Errors cannot be silenced: they are raised.
"""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterable

from gradext.diagnosis.model import Diagnosis

_COMMENT = re.compile(r"#\s*gradext:\s*ignore\s*(?:\[\s*(?P<codes>[A-Z0-9,\s]*)\])?")


def kept(diagnoses: Iterable[Diagnosis]) -> list[Diagnosis]:
    """Without the warnings that a comment on a culprit's or a victim's line silences."""
    return [d for d in diagnoses if d.severity != "warning" or not _is_silenced(d)]


def _is_silenced(diagnosis: Diagnosis) -> bool:
    for site in (*diagnosis.culprits, *diagnosis.victims):
        first, last = site.frame.line, site.frame.end_line or site.frame.line
        for line in range(first, min(last, first + 100) + 1):
            found = _COMMENT.search(linecache.getline(site.frame.file, line))
            if found is None:
                continue
            codes = {code.strip() for code in (found["codes"] or "").split(",") if code.strip()}
            if not codes or diagnosis.code in codes:
                return True
    return False
