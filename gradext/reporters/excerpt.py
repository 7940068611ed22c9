"""Source text and prose as a terminal can show them: read, measured in cells, cut and wrapped.

Owns no layout and knows no diagnosis. Nothing here raises on odd input: a file that cannot be read
has no lines, and a character that cannot be shown safely is replaced.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Iterator

from gradext.base.text import clean, printable

TAB = 4
DOTS = "..."
LEAD = 12  # cells shown before the marked part of a line that is cut on its left


# --- characters ------------------------------------------------------------------------------


def cell_width(character: str) -> int:
    """How many cells of a terminal the character takes: 0, 1 or 2."""
    if character.isascii():
        return 1
    if unicodedata.category(character) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cells(text: str) -> int:
    return len(text) if text.isascii() else sum(map(cell_width, text))


# --- one line of code ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Line:
    """A source line as it is shown.

    Attributes:
        pieces: what is printed for each character of the source line.
        starts: the cell at which each piece begins, and at the end the width of the whole.
    """

    pieces: tuple[str, ...]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, source: str) -> Line:
        pieces: list[str] = []
        starts = [0]
        for character in source.rstrip():
            at = starts[-1]
            piece = " " * (TAB - at % TAB) if character == "\t" else printable(character)
            pieces.append(piece)
            starts.append(at + cells(piece))
        return cls(tuple(pieces), tuple(starts))

    @property
    def width(self) -> int:
        return self.starts[-1]

    def cell(self, column: int) -> int:
        """The cell of a character's column; the end of the line for a column behind it."""
        return self.starts[min(max(column, 0), len(self.pieces))]

    def cut(self, room: int, start: int, end: int) -> tuple[str, int, int]:
        """At most `room` cells of the line around its cells `start` to `end`.

        Returns the text, what to subtract from a cell of the line to find it in the text, and the
        cell of the text where code ends (what follows are dots).
        """
        if self.width <= room:
            return "".join(self.pieces), 0, self.width
        inner = room - len(DOTS)
        if end <= inner:
            last = self._last(0, inner)
            return "".join(self.pieces[:last]) + DOTS, 0, self.starts[last]
        # Some code before the marked part, as far as that leaves the marked part whole.
        spare = inner - len(DOTS) - (end - start)
        left = start - min(LEAD, max(spare, 0))
        if self.width - left <= inner:
            left = self.width - inner
        # Dots that hide no more than they take are no gain; and where the marked part is cut
        # anyway, what stands before it is worth as much as its end.
        if left <= len(DOTS) or (spare < 0 and start <= room // 3):
            last = self._last(0, inner)
            return "".join(self.pieces[:last]) + DOTS, 0, self.starts[last]
        first = self._first(left)
        shift = self.starts[first] - len(DOTS)
        if self.width - shift <= room:
            return DOTS + "".join(self.pieces[first:]), shift, self.width - shift
        last = self._last(first, inner - len(DOTS))
        text = DOTS + "".join(self.pieces[first:last]) + DOTS
        return text, shift, self.starts[last] - shift

    def _first(self, cell: int) -> int:
        """The first character that begins at `cell` or behind it."""
        return next(i for i, start in enumerate(self.starts) if start >= cell)

    def _last(self, first: int, room: int) -> int:
        """The end of the longest run of characters from `first` that fits into `room`."""
        last = first
        while last < len(self.pieces) and self.starts[last + 1] - self.starts[first] <= room:
            last += 1
        return last


# --- files -----------------------------------------------------------------------------------


# --- prose -----------------------------------------------------------------------------------


def wrap(text: str, width: int, first: str = "", rest: str | None = None) -> list[str]:
    """`text` in lines of at most `width` cells behind `first`; later lines behind `rest`.

    A line that begins with spaces is code and stays as it is, and `code` in backquotes is not
    broken while it fits on a line. A word longer than a line keeps its line to itself.
    """
    if rest is None:
        rest = " " * cells(first)
    lines: list[str] = []
    for paragraph in text.strip("\n").split("\n"):
        prefix = rest if lines else first
        if paragraph.startswith((" ", "\t")):
            lines.append(prefix + "".join(Line.of(paragraph).pieces))
            continue
        line = prefix
        fresh = True
        for word in _words(clean(paragraph), width - cells(rest)):
            if not fresh and cells(line) + 1 + cells(word) > width:
                lines.append(line)
                line, fresh = rest, True
            line += word if fresh else f" {word}"
            fresh = False
        lines.append(line.rstrip())
    return lines


def _words(text: str, room: int) -> Iterator[str]:
    for match in re.finditer(r"(?:[^\s`]*`[^`]*`)+[^\s`]*|\S+", text):
        if cells(match[0]) <= room:
            yield match[0]
        else:
            yield from match[0].split()
