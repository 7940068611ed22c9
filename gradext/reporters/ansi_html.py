"""A terminal's text as HTML: the same characters, in colours that light and dark pages can show."""

from __future__ import annotations

import html
import re

from gradext.base import display, terminal

# What the escape sequences of gradext and of rich look like.
_STYLES = {
    "1;31": "color:#d9413f;font-weight:bold",
    "1;33": "color:#b7791f;font-weight:bold",
    "1;36": "color:#11899a;font-weight:bold",
    "1;32": "color:#2b9348;font-weight:bold",
    "1;34": "color:#5580d6",
    "31": "color:#d9413f",
    "32": "color:#2b9348",
    "33": "color:#b7791f",
    "34": "color:#5580d6",
    "36": "color:#11899a",
    "1": "font-weight:bold",
    "2": "opacity:.65",
    "3": "font-style:italic",
}
_ESCAPE = re.compile(r"\x1b\[([0-9;]*)m")
_PRE = "white-space:pre;overflow-x:auto;line-height:1.35;font-family:ui-monospace,monospace"


def pre(text: str) -> str:
    """The text as one block."""
    parts, is_open = [], False
    # Every second piece is what stands in an escape sequence.
    for number, piece in enumerate(_ESCAPE.split(text)):
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


def result(renderer: str, *args: object) -> str:
    """What a renderer ("module.function") makes of a result, as a notebook shows it."""
    with terminal.in_color():
        return pre(display.show(renderer, *args))
