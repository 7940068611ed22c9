"""Reports as HTML: the terminal's picture, in a notebook and as a page of its own.

The page is whole in itself: nothing is loaded from elsewhere. With a recording it has a timeline.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

from gradext.base.text import clean
from gradext.diagnosis import folding
from gradext.diagnosis.model import Diagnosis
from gradext.diagnosis.run_report import RunReport, together
from gradext.reporters import ansi_html, diagnosis_text

if TYPE_CHECKING:
    from gradext.recording.drawing import Drawn

WIDTH = 96  # cells of a line
MOST_BYTES = 2 << 20
# No network: whatever a page of ours could be made to load, the browser refuses.
_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<h1>{title}</h1>
<p class="facts">{facts}</p>
<div class="sides">
{timeline}
<section class="reports">
{reports}
</section>
</div>
{script}
</body>
</html>
"""
_SCRIPT = """\
<script type="application/json" id="ticks">{data}</script>
<script>
{script}</script>"""


def fragment(found: Sequence[Diagnosis]) -> str:
    """Diagnoses one below the other, for a page that is there already; "" without any."""
    return "\n".join(_one(diagnosis) for diagnosis in found)


def text(report: RunReport) -> str:
    """A run's report as a page."""
    count = len(folding.by_cause(together(report.told)))
    title = f"gradext: {count} finding{'' if count == 1 else 's'}"
    ended = "still running" if report.exit_code is None else f"exit code {report.exit_code}"
    facts = [f"gradext {report.gradext}", f"torch {report.torch or 'not imported'}", ended]
    if report.error:
        facts.append(report.error.split("\n", 1)[0])
    page = ""
    most: int | None = None
    while True:
        page, ticks = _page(report, title, "; ".join(facts), most)
        if len(page) <= MOST_BYTES or ticks < 100:
            return page
        most = ticks // 2


def _page(report: RunReport, title: str, facts: str, most: int | None) -> tuple[str, int]:
    """The page with at most so many ticks, and how many it has."""
    found = together(report.told)
    timeline = script = ""
    ways: dict[tuple[object, ...], str] = {}
    ticks = 0
    if report.drawn is not None:
        try:
            timeline, script, ways, ticks = _timeline(report.drawn, found, most)
        except Exception as error:  # the report itself must not be lost
            timeline = f"<p>The timeline could not be drawn: {html.escape(clean(repr(error)))}</p>"
    reports = [
        _one(diagnosis) + next((way for one in found if (way := _way(one, diagnosis, ways))), "")
        for diagnosis in folding.by_cause(found)
    ]
    page = _PAGE.format(
        title=html.escape(title),
        facts=html.escape(clean(facts)),
        style=_asset("page.css"),
        timeline=timeline,
        reports="\n".join(reports) or "<p>Nothing was found.</p>",
        script=script,
    )
    return page, ticks


def _way(one: Diagnosis, told: Diagnosis, ways: dict[tuple[object, ...], str]) -> str:
    """The way to the fault of `one`, where it is what is told, or folded into that."""
    is_of_it = (one.code, one.culprits) == (told.code, told.culprits)
    return ways.get(one.key(), "") if is_of_it else ""


def _timeline(
    drawn: Drawn, found: Sequence[Diagnosis], most: int | None
) -> tuple[str, str, dict[tuple[object, ...], str], int]:
    """The picture, its script, the ways to the faults by their keys, and the number of ticks."""
    from gradext.reporters.timeline import drawing_html, picture

    data, drawing = drawn
    ways = {key: drawing_html.way(steps) for key, steps in drawing.ways.items()}
    laid_out = picture.of(data, drawing, found, picture.MOST_TICKS if most is None else most)
    if laid_out is None:
        return "", "", ways, 0
    script = _SCRIPT.format(data=drawing_html.data(laid_out), script=_asset("page.js"))
    return drawing_html.figure(laid_out), script, ways, laid_out.end - laid_out.first


def _asset(name: str) -> str:
    return (files("gradext.reporters.timeline") / name).read_text(encoding="utf-8")


def _one(diagnosis: Diagnosis) -> str:
    drawn = diagnosis_text.text(diagnosis, color=True, width=WIDTH)
    return ansi_html.pre(drawn)
