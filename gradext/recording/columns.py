"""Where each column of the tables of events stands, by name: `rows[:, WRITES.order]`.

The order of the columns is C++'s (csrc/journal/events.h), which exports it. A class below names the
columns that Python knows; a compiled part that has others fails the import of this module.
"""

from __future__ import annotations

import inspect

from gradext.native import _C


class Columns:
    """The columns of one table, each an attribute that is its position in a row.

    Attributes:
        names: their names, in the order of a row.

    Raises:
        ImportError: the compiled part has other columns than the class names; one line.
    """

    def __init__(self, table: str) -> None:
        self.names: tuple[str, ...] = tuple(_C.EVENT_COLUMNS.get(table, ()))
        known = set(inspect.get_annotations(type(self)))
        if set(self.names) != known or len(self.names) != len(known):
            differing = ", ".join(sorted(known.symmetric_difference(self.names)))
            raise ImportError(
                f"gradext: the table of {table} has other columns in the compiled part than in "
                f"gradext/recording/columns.py ({differing or 'one twice'}); build gradext again"
            )
        for position, name in enumerate(self.names):
            setattr(self, name, position)

    def __len__(self) -> int:
        return len(self.names)


class _Writes(Columns):
    order: int
    storage: int
    counter: int
    begin: int
    end: int
    sequence: int
    thread: int
    stack: int
    op: int
    inner_op: int
    version_before: int
    version_after: int
    geometry: int
    argument: int
    flags: int


class _Views(Columns):
    order: int
    storage: int
    begin: int
    end: int
    sequence: int
    tensor: int
    thread: int
    stack: int
    op: int
    creation_meta: int


class _Saves(Columns):
    thread: int
    sequence: int
    stack: int
    origin_thread: int
    origin_sequence: int


class _Births(Columns):
    storage: int
    order: int
    number: int
    tensor: int
    stack: int
    mode: int
    op: int
    thread: int
    has_gradient_behind: int


class _Flows(Columns):
    order: int
    number: int
    tensor: int
    source: int
    source_thread: int
    source_sequence: int
    value: int
    stack: int
    mode: int
    thread: int
    op: int
    flags: int
    parent0: int
    parent1: int
    parent2: int
    parent3: int
    lives: int
    unused: int


class _Flags(Columns):
    tensor: int
    order: int
    stack: int
    thread: int
    value: int
    taints: int
    parent: int


class _Nodes(Columns):
    thread: int
    sequence: int


WRITES = _Writes("writes")
VIEWS = _Views("views")
SAVES = _Saves("saves")
BIRTHS = _Births("births")
FLOWS = _Flows("flows")
FLAGS = _Flags("flags")
NODES = _Nodes("nodes")  # of one call of the backward engine
