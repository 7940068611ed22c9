"""The line that a guard's finding points at."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from gradext.diagnosis.model import Site
from gradext.source import sites, statements

if TYPE_CHECKING:
    from gradext.recording.tables import Data


UNDECLARED = (
    "no op declares a write there: it came from outside torch, or from an op that does not say "
    "what it writes"
)


def line_of(data: Data, stack: int, label: str) -> Site | None:
    """A line that is known as a whole: the stack is of the moment when it began."""
    place = sites.site(data.frames(stack), label=label)
    if place is None:
        return None
    statement = statements.statement(place)
    columns: tuple[int | None, int | None] = (None, None)
    end = place.frame.line
    if (
        statement is not None
        and statement.lineno == end
        and not isinstance(statement, statements.BLOCKS)
    ):
        columns = (statement.col_offset, statement.end_col_offset)
        end = statement.end_lineno or end
    frame = dataclasses.replace(place.frame, column=columns[0], end_column=columns[1], end_line=end)
    return dataclasses.replace(place, frame=frame)
