"""Reports as HTML: the terminal's picture, in a notebook and as a page of its own.

The page is whole in itself: nothing is loaded from elsewhere. With a recording it has a timeline.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib.resources import files

from gradext.base.text import clean
from gradext.diagnosis.model import Diagnosis
from gradext.diagnosis.run_report import RunReport, together
from gradext.reporters import ansi_html, diagnosis_text

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
    count = len(report.told)
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
        from gradext.reporters.timeline import drawing_html, picture

        data, drawing = report.drawn
        drawn = picture.of(data, drawing, found, picture.MOST_TICKS if most is None else most)
        ways = {key: drawing_html.way(steps) for key, steps in drawing.ways.items()}
        if drawn is not None:
            ticks = drawn.end - drawn.first
            timeline = drawing_html.figure(drawn)
            script = _SCRIPT.format(data=drawing_html.data(drawn), script=_asset("page.js"))
    reports = [_one(diagnosis) + ways.get(diagnosis.key(), "") for diagnosis in found]
    page = _PAGE.format(
        title=html.escape(title),
        facts=html.escape(clean(facts)),
        style=_asset("page.css"),
        timeline=timeline,
        reports="\n".join(reports) or "<p>Nothing was found.</p>",
        script=script,
    )
    return page, ticks


def _asset(name: str) -> str:
    return (files("gradext.reporters.timeline") / name).read_text(encoding="utf-8")


def _one(diagnosis: Diagnosis) -> str:
    drawn = diagnosis_text.text(diagnosis, color=True, width=WIDTH)
    return ansi_html.pre(drawn)
