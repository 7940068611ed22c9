"""The kinds of events of a recording as plain data: of each its columns and its record.

Owns no switch and no live tensor; everything here can be made by hand or read from a file.
"""

from __future__ import annotations

import dataclasses
import inspect

from gradext.native import _C
from gradext.recording.arrays import Array

# Bits of the columns `flags`. C++ has the numbers, and says there what each means
# (csrc/journal/events.h).
_OF_WRITES, _OF_FLOWS = _C.EVENT_FLAGS["writes"], _C.EVENT_FLAGS["flows"]
DECLARED_ONLY, SHARED_STORAGE = _OF_WRITES["DECLARED_ONLY"], _OF_WRITES["SHARED_STORAGE"]
INFERENCE, GRAD_MODE = _OF_WRITES["INFERENCE"], _OF_WRITES["GRAD_MODE"]
NOTE, HOLES = _OF_WRITES["NOTE"], _OF_WRITES["HOLES"]
CUT, MERGE, GRAD_CALL = _OF_FLOWS["CUT"], _OF_FLOWS["MERGE"], _OF_FLOWS["GRAD_CALL"]
FROM_PYTHON, TO_PYTHON = _OF_FLOWS["FROM_PYTHON"], _OF_FLOWS["TO_PYTHON"]
NO_GRAD, IN_FUNCTION = _OF_FLOWS["NO_GRAD"], _OF_FLOWS["IN_FUNCTION"]
IN_INFERENCE, FROM_INFERENCE = _OF_FLOWS["IN_INFERENCE"], _OF_FLOWS["FROM_INFERENCE"]
NOT_FLOATING, SOURCE_IS_LEAF = _OF_FLOWS["NOT_FLOATING"], _OF_FLOWS["SOURCE_IS_LEAF"]
IS_NUMBER, WRITTEN = _OF_FLOWS["IS_NUMBER"], _OF_FLOWS["WRITTEN"]
TAINT_GRAD, TAINT_PYTHON = _OF_FLOWS["TAINT_GRAD"], _OF_FLOWS["TAINT_PYTHON"]
TAINT_INPUT = _OF_FLOWS["TAINT_INPUT"]
TAINT_CHECKPOINT = _OF_FLOWS["TAINT_CHECKPOINT"]
TAINT_HELD, TAKES_HELD = _OF_FLOWS["TAINT_HELD"], _OF_FLOWS["TAKES_HELD"]
TAINT_DECISION, TAINT_GUESS = _OF_FLOWS["TAINT_DECISION"], _OF_FLOWS["TAINT_GUESS"]
BY_SIZE = _OF_FLOWS["BY_SIZE"]


class Columns:
    """The columns of one table, each an attribute that is its position in a row: `WRITES.order`.

    The order of the columns is C++'s (csrc/journal/events.h), which exports it. A subclass names
    the columns that Python knows; a compiled part that has others fails the import of this module.

    Attributes:
        table: the table's name; in_file: what it is called in a recording's file.
        names: the columns, in the order of a row.
        may_lack: files of earlier versions have no such table, and are read as if it were empty.
        is_counted: it is counted how many of its events were dropped.

    Raises:
        ImportError: the compiled part has other columns than the class names; one line.
    """

    def __init__(
        self, table: str, in_file: str = "", *, may_lack: bool = False, is_counted: bool = True
    ) -> None:
        self.table, self.in_file = table, in_file or table
        self.may_lack, self.is_counted = may_lack, is_counted
        self.names: tuple[str, ...] = tuple(_C.EVENT_COLUMNS.get(table, ()))
        known = set(inspect.get_annotations(type(self)))
        if set(self.names) != known or len(self.names) != len(known):
            differing = ", ".join(sorted(known.symmetric_difference(self.names)))
            raise ImportError(
                f"gradext: the table of {table} has other columns in the compiled part than in "
                f"gradext/recording/events.py ({differing or 'one twice'}); build gradext again"
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


@dataclasses.dataclass(frozen=True)
class Write:
    """One in-place write of one tensor. Ids are opaque; bytes count from the storage's start.

    Attributes:
        order: position among all events of the process.
        op: the outermost operator, "aten::dropout_"; inner_op: what it called to write, or "".
        argument: index of the written argument in the op's schema.
        storage, counter: ids as in TensorState.
        begin, end: the bytes, from the first to one past the last.
        version_before, version_after: of the counter; equal when the op bumped nothing.
        thread, sequence: the thread's number and its autograd sequence number at the time.
        stack: number of the Python stack, for Recording.frames().
        geometry: (itemsize, sizes, strides) where elements of others lie between, else None.
        declared_only: the schema says that it writes, and the counter did not move.
        shared_storage: the memory belongs to tensors that this counter does not cover (`.data`).
        is_inference: the tensor has no counter.
        grad_mode: whether grad mode was on.
        is_note: no op: a Python call that moves counters (mark_dirty, increment_version ...).
        has_unknown_holes: elements of others lie between, and the journal had no room for which.
    """

    order: int
    op: str
    inner_op: str
    argument: int
    storage: int
    counter: int
    begin: int
    end: int
    version_before: int
    version_after: int
    thread: int
    sequence: int
    stack: int
    geometry: tuple[int, tuple[int, ...], tuple[int, ...]] | None
    declared_only: bool
    shared_storage: bool
    is_inference: bool
    grad_mode: bool
    is_note: bool
    has_unknown_holes: bool = False


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


@dataclasses.dataclass(frozen=True)
class View:
    """A view that no graph node remembers: made without grad mode, or one of several of its op."""

    order: int
    op: str
    storage: int
    begin: int
    end: int
    tensor: int
    thread: int
    sequence: int
    stack: int
    creation_meta: str


class _Saves(Columns):
    thread: int
    sequence: int
    stack: int
    origin_thread: int
    origin_sequence: int


class _Nodes(Columns):
    thread: int
    sequence: int


@dataclasses.dataclass(frozen=True)
class Backward:
    """One call of the backward engine; `nodes` is int64[n, 2]: thread and sequence of each node."""

    order: int
    thread: int
    stack: int
    keeps_graph: bool
    creates_graph: bool
    whole: bool
    nodes: Array


@dataclasses.dataclass(frozen=True)
class Refused:
    """A use of a tensor that torch refused, with what was known of the tensor at that moment.

    In-place writes; and, for inference tensors, saves and `requires_grad`. `is_leftover`: no
    inference tensor any more, but without a version counter since it was one.
    """

    order: int
    op: str
    what: str
    storage: int
    begin: int
    end: int
    tensor: int
    base: int
    thread: int
    stack: int
    creation_meta: str | None
    is_view: bool
    is_leaf: bool
    requires_grad: bool
    base_is_leaf: bool
    is_inference: bool
    is_leftover: bool
    grad_mode: bool
    chain: tuple[tuple[str, int, int], ...]


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


@dataclasses.dataclass(frozen=True)
class Birth:
    """How the memory of an inference tensor that lives came to be.

    Attributes:
        order: position among all events of the process; number: among births and flows.
        op: the outermost operator, or the Python function that made it ("torch.from_numpy").
        storage: id as in TensorState (the tensor's own id where it has no storage).
        tensor: id that the tensor had; views and parameters made from it have others.
        stack, mode: numbers for Recording.frames(): where it was made, and where inference_mode
            was entered (0: not known).
        has_gradient_behind: something that it was computed from required grad.
    """

    order: int
    number: int
    op: str
    storage: int
    tensor: int
    stack: int
    mode: int
    thread: int
    has_gradient_behind: bool
    is_inference: bool = True


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


@dataclasses.dataclass(frozen=True, slots=True)
class Flow:
    """A value without gradient: what it was made of, and whether the gradient was lost here.

    Attributes:
        number: names it in the `parents` of others.
        tensor: id of the result, which means that tensor only if `lives`; 0 for none.
        source: id of the input that required grad, 0 for none. source_node: (thread, sequence) of
            the node that made it, None for a leaf; for a merge, the node that took the value in.
        value: the number that went to Python or came from there; None where it is no one number.
            Of a GRAD_CALL, the number of the flow of what the gradient was taken by, 0 for none.
        stack, mode: numbers for Recording.frames(); mode is where grad mode was switched off.
        parents: numbers of the births and flows of the inputs.
        flags: the constants above.
    """

    order: int
    number: int
    tensor: int
    source: int
    source_node: tuple[int, int] | None
    value: float | None
    stack: int
    mode: int
    thread: int
    op: str
    flags: int
    parents: tuple[int, ...]
    lives: bool

    def has(self, flag: int) -> bool:
        return bool(self.flags & flag)


class _Flags(Columns):
    tensor: int
    order: int
    stack: int
    thread: int
    value: int
    taints: int
    parent: int


@dataclasses.dataclass(frozen=True)
class FlagChange:
    """The last time that a program set `requires_grad` of a tensor that lives, itself."""

    tensor: int
    order: int
    stack: int
    thread: int
    value: bool
    taints: int
    parent: int


class _Uses(Columns):
    """Saved tensors of nodes, noted when a backward that may use them began."""

    order: int
    storage: int
    counter: int
    begin: int
    end: int
    sequence: int
    thread: int
    stack: int
    op: int
    attribute: int
    saved_version: int
    version: int
    flags: int


class _Moments(Columns):
    """The times at which writes happened, nodes were made and nodes ran."""

    order: int
    time: int
    sequence: int
    thread: int
    system_thread: int
    stack: int
    op: int
    kind: int


# Kinds of moments: a write, a node that was made; a third one is a use.
OF_WRITE, OF_NODE = _C.MOMENT_KINDS["WRITE"], _C.MOMENT_KINDS["NODE"]

CREATION_META = _C.CREATION_METAS


def creation_meta_of(value: int) -> str | None:
    return CREATION_META[value] if 0 <= value < len(CREATION_META) else None


WRITES = _Writes("writes")
VIEWS = _Views("views")
SAVES = _Saves("saves", "saved")  # a file's "saves" says whether there are any
BIRTHS = _Births("births", "born")
FLOWS = _Flows("flows")
FLAGS = _Flags("flags", is_counted=False)
USES = _Uses("uses", may_lack=True)
MOMENTS = _Moments("moments", may_lack=True)
TABLES = {each.table: each for each in (WRITES, VIEWS, USES, MOMENTS, SAVES, BIRTHS, FLOWS, FLAGS)}
NODES = _Nodes("nodes")  # of one call of the backward engine

# Columns whose numbers look something up: in the table of stacks, in that of ops.
STACK_COLUMNS = frozenset({"stack", "mode"})
OP_COLUMNS = frozenset({"op", "inner_op", "attribute"})
# The kinds of events of which it is counted how many were dropped.
COUNTED = (*(each.table for each in TABLES.values() if each.is_counted), "backwards")
