"""Draws a Picture as HTML: a strip of SVG for each lane, which needs no script.

The script adds what a picture cannot do: it shows a tick's line, stack and op when it is clicked,
searches, and zooms by another viewBox of the same strips. Every text of the program's is escaped.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from typing import Any

from gradext.base.text import clean
from gradext.diagnosis.model import Frame
from gradext.recording.drawing import Step
from gradext.reporters.timeline.picture import SAVE, USE, WRITE, Lane, Picture
from gradext.source import sites

HEIGHT = 20
MOST_FRAMES = 12  # of one stack
MOST_CODE = 160
# Where a tick of each kind stands in its strip: writes whole, saves above, uses below.
_SPAN = {WRITE: (2, 16), SAVE: (1, 9), USE: (10, 9)}
_CLASS = {WRITE: "w", SAVE: "s", USE: "u"}


def figure(picture: Picture) -> str:
    """The lanes, with what there is to say of them."""
    guides = sorted({tick.at for lane in picture.lanes for tick in lane.ticks if tick.is_bad})
    # One line for each fault's ticks would fill a strip where a loop repeats it.
    guide = _path("g", ((at, 0, HEIGHT) for at in sorted({*guides[:3], *guides[-3:]})))
    writes, saves, uses = picture.counts
    shown = picture.end - picture.first
    facts = [f"{writes:,} writes, {saves:,} saves, {uses:,} uses in backward"]
    if shown < picture.count:
        facts.append(f"drawn: events {picture.first + 1:,} to {picture.end:,} of {picture.count:,}")
    if picture.dropped:
        facts.append(f"{picture.dropped:,} older events were dropped (--memory keeps more)")
    if picture.left_out:
        facts.append(f"{picture.left_out:,} more tensors are not drawn")
    rows = [_backwards(picture, guide)]
    rows += [_lane(picture, lane, number, guide) for number, lane in enumerate(picture.lanes)]
    return _FIGURE.format(facts=_text("; ".join(facts)), rows="\n".join(rows))


def data(picture: Picture) -> str:
    """What the script knows of the ticks, as JSON that can stand within a page."""
    frames: dict[Frame, int] = {}
    stacks: dict[tuple[int, ...], int] = {}
    words: dict[str, int] = {}
    lanes: list[list[int]] = []
    for lane in picture.lanes:
        numbers: list[int] = []
        for tick in lane.ticks:
            stack = tuple(frames.setdefault(f, len(frames)) for f in _told(tick.frames))
            numbers += [
                tick.at,
                tick.kind + (4 if tick.is_bad else 0),
                words.setdefault(tick.op, len(words)),
                words.setdefault(tick.attribute, len(words)),
                stacks.setdefault(stack, len(stacks)),
                tick.before,
                tick.after,
            ]
        lanes.append(numbers)
    known = {
        "first": picture.first,
        "end": picture.end,
        "lanes": lanes,
        "frames": [_frame(frame) for frame in frames],
        "stacks": [list(stack) for stack in stacks],
        "words": [clean(word) for word in words],
    }
    # "</script>" and "<!--" would end the element that this stands in.
    return json.dumps(known, separators=(",", ":")).replace("<", "\\u003c")


def way(steps: Iterable[Step]) -> str:
    """The graph between a backward's root and the node that had saved the tensor."""
    items = []
    for step in steps:
        where = ""
        if step.frame is not None:
            code = f" <code>{_text(step.frame.code[:MOST_CODE])}</code>" if step.frame.code else ""
            where = f" {_text(sites.where(step.frame))}{code}"
        items.append(f"<li><b>{_text(step.node)}</b>{where}</li>")
    if not items:
        return ""
    return (
        "<details open><summary>The graph from backward() to the node that saved it</summary>"
        f'<ol class="way">{"".join(items)}</ol></details>'
    )


def _backwards(picture: Picture, guide: str) -> str:
    marks = _path("b", ((at, 0, HEIGHT) for at, _ in picture.backwards))
    return (
        '<div class="lane"><p class="name">calls of backward</p>'
        f"{_strip(picture, guide + marks, 'calls of backward')}</div>"
    )


def _lane(picture: Picture, lane: Lane, number: int, guide: str) -> str:
    drawn = [guide]
    for kind in (SAVE, USE, WRITE):
        for bad in (False, True):
            ticks = [t for t in lane.ticks if t.kind == kind and t.is_bad == bad]
            top, height = _SPAN[kind]
            name = _CLASS[kind] + (" x" if bad else "")
            drawn.append(_path(name, ((tick.at, top, height) for tick in ticks)))
    note = f" <small>{_text(lane.note)}</small>" if lane.note else ""
    counts = ", ".join(
        f"{n} {word}{'s' if n > 1 else ''}"
        for kind, word in ((WRITE, "write"), (SAVE, "save"), (USE, "use"))
        if (n := sum(tick.kind == kind for tick in lane.ticks))
    )
    classes = "lane view" if lane.depth else "lane"
    label = f"{clean(lane.name)}: {counts}"
    return (
        f'<div class="{classes}{" bad" if lane.is_bad else ""}" data-lane="{number}">'
        f'<p class="name">{_text(lane.name)}{note}</p>'
        f"{_strip(picture, ''.join(drawn), label)}</div>"
    )


def _strip(picture: Picture, inside: str, label: str) -> str:
    width = max(1, picture.end - picture.first)
    margin = width * 0.01 + 0.5
    box = f"{picture.first - margin:g} 0 {width + 2 * margin:g} {HEIGHT}"
    return (
        f'<svg viewBox="{box}" preserveAspectRatio="none" role="img" '
        f'aria-label="{_text(label)}">{inside}</svg>'
    )


def _path(name: str, lines: Iterable[tuple[int, int, int]]) -> str:
    drawn = "".join(f"M{at} {top}v{height}" for at, top, height in lines)
    return f'<path class="{name}" d="{drawn}"/>' if drawn else ""


def _told(frames: tuple[Frame, ...]) -> list[Frame]:
    """The user's line and what called it; library frames only where there is nothing else."""
    own = [frame for frame in frames if frame.is_user]
    return (own or list(frames))[:MOST_FRAMES]


def _frame(frame: Frame) -> list[Any]:
    place = sites.where(frame)
    return [clean(place), clean(frame.function), clean(frame.code[:MOST_CODE]), clean(frame.file)]


def _text(text: str) -> str:
    return html.escape(clean(text))


_FIGURE = """\
<section class="timeline">
<h2>Version timeline</h2>
<p class="facts">{facts}</p>
<p class="legend"><span class="w">write</span> <span class="s">save</span>
<span class="u">use in backward</span> <span class="x">of a fault</span>
<span class="b">backward is called</span></p>
<form class="tools" hidden><label>Search <input type="search" id="search"
placeholder="tensor, op, file:line, code"></label>
<button type="button" data-zoom="0.5" title="closer">+</button>
<button type="button" data-zoom="2" title="further away">&minus;</button>
<button type="button" data-zoom="0" title="everything">all</button>
<button type="button" data-move="-1" title="earlier">&larr;</button>
<button type="button" data-move="1" title="later">&rarr;</button>
<output id="hits"></output></form>
<noscript><p class="facts">With JavaScript a click on a tick shows its line, stack and op.</p>
</noscript>
<div class="lanes">
{rows}
</div>
<aside id="shown" hidden aria-live="polite"></aside>
</section>"""
