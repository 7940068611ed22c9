"""What a terminal can show: one rule for colour and for width, and a way to print that never fails.

Colour: never with NO_COLOR; always with FORCE_COLOR; else on a terminal that is not TERM=dumb. A
variable that is empty counts as not set, and so does FORCE_COLOR=0. Sources: no-color.org,
force-color.org.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING, Any

from gradext.base.text import clean

if TYPE_CHECKING:
    from rich.console import Console

MAX_WIDTH = 100  # longer lines are harder to read than to scroll


def is_terminal(stream: Any) -> bool:
    """Whether a person reads what is written to `stream`, whatever the program has put there."""
    try:
        return bool(stream.isatty())
    except Exception:
        return False


def wants_color(stream: Any) -> bool:
    """Whether what is written to `stream` may have escape sequences in it."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "0") not in {"", "0"}:
        return True
    return os.environ.get("TERM") != "dumb" and is_terminal(stream)


def width(most: int = MAX_WIDTH, otherwise: int = MAX_WIDTH) -> int:
    """Cells of a line: COLUMNS, or the terminal's, at most `most`; `otherwise` without either."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return min(int(columns), most)
    for descriptor in (2, 1):  # reports go to stderr as a rule
        try:
            found = os.get_terminal_size(descriptor).columns
        except (OSError, ValueError, AttributeError):
            continue
        if found:
            return min(found, most)
    return otherwise


def console(stream: Any, **options: Any) -> Console:
    """A console of rich's on `stream`, by the same rule; `options` come before it."""
    from rich.console import Console

    colored = wants_color(stream)
    of_rule = {
        "force_terminal": colored or is_terminal(stream),
        "color_system": "auto" if colored else None,
    }
    return Console(file=stream, **{**of_rule, **options})


def rendered(renderable: Any, **options: Any) -> str:
    """What rich makes of it, as the text of a result: `str(result)`.

    It has colour where a person at a terminal has asked for it and never elsewhere, FORCE_COLOR or
    not: a text may be logged, compared or written to a file.
    """
    seen = is_terminal(sys.stdout)
    out = io.StringIO()
    made = console(
        out,
        force_terminal=seen,
        color_system="auto" if seen and wants_color(sys.stdout) else None,
        **options,
    )
    made.print(renderable)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip("\n").split("\n"))


def say(line: str) -> None:
    """Print one line on stderr, whatever it was made of."""
    print_safely(clean(line))


def print_safely(text: str) -> None:
    """Print on stderr, whatever the program has done to it; `text` must be safe to print."""
    for stream in (sys.stderr, sys.__stderr__):
        if stream is None:
            continue
        try:
            stream.write(text + "\n")
            stream.flush()
            return
        except UnicodeEncodeError:
            encoding = getattr(stream, "encoding", None) or "ascii"
            with contextlib.suppress(Exception):
                stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
                stream.flush()
                return
        except Exception:
            continue
