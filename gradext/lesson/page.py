"""The lesson as one HTML page, from the results of a run: no script, no file beside it.

Owns the page's text and style. The code and the evidence are those of the terminal.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from html import escape
from pathlib import Path

import torch

from gradext.lesson.core import Chapter, ClaimResult
from gradext.lesson.terminal import INTRO, Glyphs, render_evidence

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52em; margin: 2em auto; padding: 0 1em; }
pre { background: #f4f4f4; padding: .8em 1em; overflow-x: auto; font-size: 14px; }
pre.evidence { background: none; border-left: 3px solid #999; }
.true { color: #17692e; } .false { color: #b00020; } .depends, .unknown { color: #8a5a00; }
@media (prefers-color-scheme: dark) {
  body { background: #181818; color: #ddd; } pre { background: #242424; }
  .true { color: #6fcf86; } .false { color: #ff8095; } .depends, .unknown { color: #e6b450; }
  a { color: #8ab4f8; }
}
"""


def page(results: Iterable[tuple[Chapter, ClaimResult]]) -> str:
    """The page; ``results`` as `core.play` yields them."""
    rows = list(results)
    mark = Glyphs.unicode().mark
    contents, body, told = [], [], None
    for chapter, result in rows:
        if chapter is not told:
            told = chapter
            title = f"{chapter.number} {escape(chapter.title)}"
            contents.append(f'<h3><a href="#c{chapter.number}">{title}</a></h3>')
            body.append(f'<h2 id="c{chapter.number}">{title}</h2><p>{escape(chapter.intro)}</p>')
        sign = f'<span class="{result.verdict}">{mark(result.verdict)}</span>'
        said = f"{result.number} {sign} {escape(result.claim)}"
        contents.append(f'<div><a href="#c{result.number}">{said}</a></div>')
        body.append(f'<h3 id="c{result.number}">{said}</h3>')
        body.append(f"<pre>{escape(result.code)}</pre>")
        body.append(f'<pre class="evidence">{escape(render_evidence(result))}</pre>')
    device = f"torch {escape(torch.__version__)}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>gradext: the lesson</title><style>{STYLE}</style></head><body>\n"
        f"<h1>gradext: the lesson</h1>\n<p>{escape(INTRO)}</p><p>Run with {device}.</p>\n"
        + "\n".join([*contents, *body])
        + "\n</body></html>\n"
    )


def write(text: str, path: str | os.PathLike[str]) -> None:
    """Write the page to a file. Raises OSError if that cannot be done."""
    Path(path).write_text(text, encoding="utf-8")
