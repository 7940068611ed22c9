"""Source files as they are read and named: lines, and paths for a person."""

from __future__ import annotations

import io
import linecache
import os
import re
import stat
import tokenize

from gradext.base import overlay, source_lines
from gradext.base.package import standard_library
from gradext.base.text import clean
from gradext.source import cells

# A source file is smaller; something larger is data under a wrong name.
MAX_BYTES = 16 * 1024 * 1024


def read_lines(file: str) -> list[str] | None:
    """The lines of a source file as Python counts them, or None where there are none to read."""
    try:
        text = _read(file)
    except (OSError, ValueError, LookupError):
        text = None
    if text is None:
        # Code of a notebook cell or of `-c` is in no file; Python keeps what it was told of it.
        if typed := source_lines.typed(file):
            return _split("".join(typed))
        entry = linecache.cache.get(file)
        return _split("".join(entry[2])) if entry is not None and len(entry) == 4 else None
    return _split(text)


_TORCH = re.compile(r"\btorch\.|\bimport\b[^#\n]*\btorch\b|\bas\s+torch\b")


def knows_torch(text: str) -> bool:
    """Whether the text of a file imports torch, or speaks of it: `torch.` can be typed there."""
    return _TORCH.search(text) is not None


def _read(file: str) -> str | None:
    laid = overlay.bytes_of(file)
    if laid is not None:
        return _decoded(laid)
    # Opening a pipe or a device would wait, or do something.
    found = os.stat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_BYTES:
        return None
    with open(file, "rb") as stream:
        data = stream.read(MAX_BYTES)
    return None if b"\0" in data else _decoded(data)  # no Python source has one


def _decoded(data: bytes) -> str:
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    except SyntaxError:  # a coding line that names none, or bytes that are not what it names
        encoding = "utf-8"
    return data.decode(encoding, "replace")


def _split(text: str) -> list[str]:
    # Not str.splitlines(): that also breaks at form feeds and other characters, Python does not.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]  # the last line end begins no line


def user_path(file: str) -> str:
    """`file` relative to the working folder when it is inside, else as it is; a cell's name."""
    if (cell := cells.name(file)) is not None:
        return clean(cell)
    try:
        inside = os.path.join(os.getcwd(), "")
    except OSError:  # the folder was removed
        return clean(file)
    for path in (file, _real(file)):
        if path.startswith(inside) and path != inside:
            return clean(path[len(inside) :])
    return clean(file)


def _real(file: str) -> str:
    try:
        return os.path.realpath(file)
    except (OSError, ValueError):
        return file


def library_path(file: str) -> str:
    """`file` from its package on: "torch/nn/functional.py"."""
    match = re.search(r".*[/\\](?:site|dist)-packages[/\\]", file)
    if match is not None:
        return clean(file[match.end() :])
    library = os.path.join(standard_library()[0], "")
    return clean(file[len(library) :]) if file.startswith(library) else user_path(file)
