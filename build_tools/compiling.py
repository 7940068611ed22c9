"""Shows how far the compilers are, and says in one line why they failed.

Owns what is read from their output. pip shows none of it without -v, and all of it when the build
fails: so the line that says why is the last.
"""

from __future__ import annotations

import os
import re
import select
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What ninja prints when a unit is done: how many are, and the whole command.
DONE = re.compile(r"\[(\d+)/(\d+)\] .*? -c \S*?([\w.-]+)\.(?:cpp|cu) ")

REASONS = (
    (
        r"No space left on device",
        "the disk is full; free some space, or name another folder for temporary files with TMPDIR",
    ),
    (
        r"Killed signal|fatal error: Killed|virtual memory exhausted|bad_alloc"
        r"|out of memory|[Cc]annot allocate memory",
        "the compiler ran out of memory; compile one unit at a time: MAX_JOBS=1 pip install .",
    ),
    (
        r"Python\.h: No such file",
        "Python's headers are missing (Python.h); install them (Debian: apt install python3-dev)",
    ),
)


@contextmanager
def watched() -> Iterator[None]:
    """While the block runs: one line on stderr for each unit that is compiled.

    Everything else that it and its compilers print is passed on. Raises SystemExit, one line, where
    the block raises an Exception.
    """
    if os.name != "posix":  # no select() on pipes there
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    os.close(writer)
    lines: list[str] = []
    thread = threading.Thread(target=_pass_on, args=(reader, saved[1], lines), daemon=True)
    thread.start()
    failed = None
    try:
        yield
    except Exception as error:
        failed = error
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        thread.join(10)  # what a compiler left behind may still hold the pipe
        for number in saved:
            os.close(number)
    if failed is not None:
        raise SystemExit(f"gradext: {reason(lines, failed)}") from None


def _pass_on(reader: int, target: int, lines: list[str]) -> None:
    start = time.monotonic()
    rest = b""
    while chunk := os.read(reader, 1 << 16):
        # Whether a unit failed comes right behind the line that says it is done.
        while DONE.match(chunk.decode(errors="replace").splitlines()[-1]):
            more = os.read(reader, 1 << 16) if select.select([reader], [], [], 0.3)[0] else b""
            if not more:
                break
            chunk += more
        *whole, rest = (rest + chunk).split(b"\n")
        shown = shorter([line.decode(errors="replace") for line in whole], time.monotonic() - start)
        lines += shown
        os.write(target, "".join(f"{line}\n" for line in shown).encode())
    lines.append(rest.decode(errors="replace"))
    os.write(target, rest)
    os.close(reader)


def shorter(lines: list[str], seconds: float) -> list[str]:
    """The lines, those of ninja's that say a unit is done made short.

    Of a unit that failed, ninja says that it is done too, and then FAILED.
    """
    shown = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        found = DONE.match(line)
        if found is None:
            shown.append(line)
        elif not following.startswith("FAILED: "):
            count = f"{found[1]} of {found[2]}, after {seconds:.0f} s"
            shown.append(f"gradext: compiled {found[3]} ({count})")
    return shown


def reason(lines: list[str], error: Exception) -> str:
    """One line that says why the compilers failed, from what they printed."""
    text = "\n".join(lines)
    for pattern, line in REASONS:
        if re.search(pattern, text):
            return line
    if isinstance(error, OSError) and error.strerror:
        return f"the build stopped: {error.strerror}: {error.filename or Path.cwd()}"
    errors = [line.strip() for line in lines if re.search(r"\berror\b\s*:", line)]
    if errors:
        return f"the compiler failed, its first error: {errors[0]}"
    return f"the build failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
