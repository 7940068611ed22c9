"""What a terminal can show: one rule for colour and for width, and a way to print that never fails.

Colour: never with NO_COLOR; always with FORCE_COLOR; else on a terminal that is not TERM=dumb. A
variable that is empty counts as not set, and so does FORCE_COLOR=0. Sources: no-color.org,
force-color.org.
"""

from __future__ import annotations

import contextlib
import contextvars
import io
import os
import sys
from collections.abc import Iterator
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


@contextlib.contextmanager
def pager(wanted: bool = True) -> Iterator[Console]:
    """A console whose output a person scrolls through, in $PAGER or less; stdout elsewhere.

    What is printed is shown as it comes. A reader that leaves ends the block.
    """
    # Imported here: this module is part of what `gradext run` loads before a program starts.
    import shlex
    import shutil
    import subprocess

    from rich.console import Console

    class Paged(Console):
        def on_broken_pipe(self) -> None:  # rich's own ends the program
            raise BrokenPipeError

    words = shlex.split(os.environ.get("PAGER") or "less")
    both = is_terminal(sys.stdout) and is_terminal(sys.stdin)
    if not (wanted and both and words and shutil.which(words[0])) or words == ["cat"]:
        yield console(sys.stdout, highlight=False)
        return
    # F: nothing to scroll, nothing stays open; R: colours; X: the text stays when it is left.
    environment = {"LESS": "FRX", "LESSCHARSET": "utf-8", **os.environ}
    shown = subprocess.Popen(words, stdin=subprocess.PIPE, env=environment, encoding="utf-8")
    assert shown.stdin is not None
    colored = wants_color(sys.stdout)
    options: dict[str, Any] = {"color_system": "standard" if colored else None, "width": width()}
    try:
        yield Paged(file=shown.stdin, force_terminal=True, highlight=False, **options)
        shown.stdin.close()
    except BrokenPipeError:
        pass  # the reader has seen enough
    finally:
        with contextlib.suppress(OSError):
            shown.stdin.close()
        while True:
            try:
                shown.wait()
                break
            except KeyboardInterrupt:
                continue  # less takes Ctrl-C itself, and goes on


_in_color: contextvars.ContextVar[bool] = contextvars.ContextVar("in_color", default=False)


@contextlib.contextmanager
def in_color() -> Iterator[None]:
    """A block in which rendered() has colour, for a caller that turns the text into HTML."""
    token = _in_color.set(True)
    try:
        yield
    finally:
        _in_color.reset(token)


def rendered(renderable: Any, **options: Any) -> str:
    """What rich makes of it, as the text of a result: `str(result)`.

    It has colour where a person at a terminal has asked for it and never elsewhere, FORCE_COLOR or
    not: a text may be logged, compared or written to a file.
    """
    seen = is_terminal(sys.stdout)
    colored = seen and wants_color(sys.stdout)
    out = io.StringIO()
    made = console(
        out,
        force_terminal=seen or _in_color.get(),
        color_system="standard" if _in_color.get() else "auto" if colored else None,
        **options,
    )
    made.print(renderable)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip("\n").split("\n"))


def stderr_mark() -> tuple[int, int] | None:
    """What tells this process's stderr from another file; None where it is closed."""
    try:
        found = os.fstat(2)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def is_stderr(mark: tuple[int, int] | None) -> bool:
    """Whether stderr is still the file that stderr_mark() saw: nobody has redirected it since."""
    return mark is not None and sys.stderr is sys.__stderr__ and stderr_mark() == mark


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
