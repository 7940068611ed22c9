"""Reports as HTML: the terminal's picture, in a notebook and as a page of its own.

The page is whole in itself: no script, no font and no image is loaded.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from gradext.diagnosis.model import Diagnosis
from gradext.diagnosis.run_report import RunReport, together
from gradext.reporters import diagnosis_text

WIDTH = 96  # cells of a line
# What an escape sequence of diagnosis_text looks like; tones that light and dark pages can show.
_STYLES = {
    "1;31": "color:#d9413f;font-weight:bold",
    "1;33": "color:#b7791f;font-weight:bold",
    "1;36": "color:#11899a;font-weight:bold",
    "1;32": "color:#2b9348;font-weight:bold",
    "1;34": "color:#5580d6",
    "1": "font-weight:bold",
    "2": "opacity:.65",
}
_ESCAPE = re.compile(r"\x1b\[([0-9;]*)m")
_PRE = "white-space:pre;overflow-x:auto;line-height:1.35;font-family:ui-monospace,monospace"
_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ max-width: 62rem; margin: 2rem auto; padding: 0 1rem; font-family: system-ui, sans-serif }}
pre {{ border-left: 3px solid #5580d6; padding-left: 1rem; font-size: .85rem }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{facts}</p>
{reports}
</body>
</html>
"""


def fragment(found: Sequence[Diagnosis]) -> str:
    """Diagnoses one below the other, for a page that is there already; "" without any."""
    return "\n".join(_one(diagnosis) for diagnosis in found)


def text(report: RunReport) -> str:
    """A run's report as a page."""
    count = len(report.told)
    title = f"gradext: {count} finding{'' if count == 1 else 's'}"
    ended = "still running" if report.exit_code is None else f"exit code {report.exit_code}"
    facts = [f"gradext {report.gradext}", f"torch {report.torch or 'not imported'}", ended]
    if report.error:
        facts.append(report.error.split("\n", 1)[0])
    return _PAGE.format(
        title=html.escape(title),
        facts=html.escape("; ".join(facts)),
        reports=fragment(together(report.told)) or "<p>Nothing was found.</p>",
    )


def _one(diagnosis: Diagnosis) -> str:
    drawn = diagnosis_text.text(diagnosis, color=True, width=WIDTH)
    parts, is_open = [], False
    # Every second piece is what stands in an escape sequence.
    for number, piece in enumerate(_ESCAPE.split(drawn)):
        if number % 2 == 0:
            parts.append(html.escape(piece))
            continue
        if is_open:
            parts.append("</span>")
        style = _STYLES.get(piece)
        is_open = style is not None
        if is_open:
            parts.append(f'<span style="{style}">')
    end = "</span>" if is_open else ""
    return f'<pre style="{_PRE}">{"".join(parts)}{end}</pre>'
