"""A notebook as one program: its code cells in order, and a patch as a diff of each cell's text.

Source: the notebook format, nbformat 4.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator

_MARK = "# cell {} of the notebook"
_MARKS = re.compile(r"^# cell (\d+) of the notebook\n", re.M)
_MAGIC = re.compile(r"^(\s*)([%!?].*)$")
_OTHER_LANGUAGE = re.compile(r"%%(?!time|timeit|capture|prun)\w")


class NoNotebook(ValueError):
    """A notebook that cannot be read; the text says why."""


def program(path: str) -> str:
    """The code of all cells, each below a comment with its number, counted from 1 as shown.

    What only IPython understands (`%magic`, `!command`, a cell in another language) is left out.

    Raises:
        NoNotebook: there is no such file, or it holds something else.
    """
    try:
        with open(path, encoding="utf-8") as file:
            cells = json.load(file)["cells"]
        texts = [
            (number, "".join(cell["source"]))
            for number, cell in enumerate(cells, 1)
            if cell["cell_type"] == "code"
        ]
    except OSError as error:
        raise NoNotebook(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NoNotebook(f"{path} is no notebook") from None
    return "".join(f"{_MARK.format(number)}\n{_plain(text)}\n" for number, text in texts)


def _plain(text: str) -> str:
    lines = text.rstrip("\n").split("\n")
    whole = bool(_OTHER_LANGUAGE.match(text))
    return "\n".join(f"# {x}" if whole else _MAGIC.sub(r"\1pass  # \2", x) for x in lines)


def diff(old: str, new: str, name: str) -> str:
    """A unified diff of each cell that a patch changes."""
    lines: list[str] = []
    for (number, before), (_, after) in zip(_cells(old), _cells(new), strict=True):
        a, b = before.splitlines(keepends=True), after.splitlines(keepends=True)
        lines += difflib.unified_diff(a, b, f"a/{name}, cell {number}", f"b/{name}, cell {number}")
    return "".join(lines)


def _cells(text: str) -> Iterator[tuple[str, str]]:
    parts = _MARKS.split(text)
    return zip(parts[1::2], parts[2::2], strict=True)
