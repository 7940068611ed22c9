"""What a live autograd graph shows, copied out of it: nodes, their numbers, what each saved.

The copy holds no node and no tensor, so a diagnosis keeps nothing of the program's alive. Reads
through `_C` only: runs no hook and unpacks nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from gradext.base import op_names
from gradext.native import _C
from gradext.objects import graph_rows
from gradext.source import traced_lines

MOST_NODES = 1 << 19
# A node that has a Python object is freed by Python, and so is what hangs below it: a chain of
# 50,000 such nodes overflows the stack when the program drops it (torch 2.13). Longer paths than
# this are not followed where nodes get objects.
LONGEST_PATH = 1 << 14


@dataclasses.dataclass(frozen=True)
class Saved:
    """One saved tensor of a node.

    Attributes:
        attribute: the node's name for it, "self" or "saved_tensors[1]".
        version: of its counter now; None for an inference tensor.
        tensor: id of the tensor object that the node holds.
        is_unused: backward does not read it (running statistics of a batch norm in training).
    """

    attribute: str
    saved_version: int
    version: int | None
    counter: int
    storage: int
    tensor: int
    is_output: bool
    is_leaf: bool
    output_nr: int
    dtype: Any
    itemsize: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    is_strided: bool
    is_unused: bool = False

    @property
    def is_stale(self) -> bool:
        return self.version is not None and self.version != self.saved_version


@dataclasses.dataclass(frozen=True)
class Node:
    """One node. `sequence` is None for AccumulateGrad, which no op made.

    Attributes:
        next: indices of the nodes that it hands gradients to; -1 where there is none.
        inner_of: index of the CopySlices that hides it, or -1.
        saved: what it saved and can be read.
        hooked: attributes packed by saved-tensor hooks; torch does not check those either.
        is_freed: its backward ran without retain_graph.
        is_readable: False for C++ autograd Functions, which show nothing of what they saved.
        forward_code: for a Python autograd.Function, the code of its setup_context and forward.
        id: opaque; of a node that lives as long as the graph that was read.
        trace: while a graph is traced, the printed traceback of the line that the node is of.
        uses: of a compiled function, for each stale saved tensor by its attribute, the tracebacks
            of the lines that it was saved for.
    """

    name: str
    thread: int
    sequence: int | None
    next: tuple[int, ...]
    inner_of: int
    saved: tuple[Saved, ...]
    hooked: tuple[str, ...]
    is_freed: bool
    is_readable: bool
    forward_code: Any = None
    id: int = 0
    trace: str = ""
    uses: dict[str, list[str]] = dataclasses.field(default_factory=dict)


class _Nodes(Sequence[Node]):
    """The nodes of a copy; each becomes an object when it is first asked for."""

    def __init__(self, copy: _C.GraphCopy) -> None:
        self._copy = copy
        self._made: dict[int, Node] = {}
        self._told: dict[int, dict[str, Any]] = {}  # what is read of some beside the copy

    def __len__(self) -> int:
        return len(self._copy)

    def __getitem__(self, index: Any) -> Any:
        number = range(len(self))[index]
        if number not in self._made:
            self._made[number] = _node(self._copy.node(number), **self._told.get(number, {}))
        return self._made[number]

    def tell(self, number: int, **facts: Any) -> None:
        """Fields of a node that has not been made yet."""
        self._told.setdefault(number, {}).update(facts)


def _node(row: tuple[Any, ...], **told: Any) -> Node:
    name, thread, sequence, following, inner_of, saved, hooked, is_freed, is_nameless, known = row
    return Node(
        name=name,
        thread=thread,
        sequence=sequence,
        next=following,
        inner_of=inner_of,
        saved=tuple(Saved(*one) for one in saved),
        hooked=hooked,
        is_freed=is_freed,
        is_readable=not is_nameless or op_names.short(name) in _READABLE,
        id=known,
        **told,
    )


# Of the classes that torch has no Python type for, those that save nothing, or show it elsewhere.
_READABLE = ("AccumulateGrad", "GraphRoot", "Identity", "CopyBackwards", "CopySlices", "Error")


class Graph:
    """The nodes below the roots, nearest first; `whole` is False where there were too many.

    A graph may have more nodes than there is time to make an object of each: a question about all
    of them is asked of the columns and lists of numbers below, and `nodes` for the few that matter.
    """

    def __init__(self, copy: _C.GraphCopy) -> None:
        self._copy = copy
        self.nodes = _Nodes(copy)
        self.whole = copy.whole

    @property
    def saved_count(self) -> int:
        """How many saved tensors there are that can be read."""
        return self._copy.saved_count

    def threads(self) -> list[int]:
        return self._copy.threads()

    def sequences(self) -> list[int | None]:
        return self._copy.sequences()

    def freed(self) -> list[bool]:
        """For each node, whether its backward ran without retain_graph."""
        return self._copy.freed()

    def following(self) -> list[list[int]]:
        """For each node, the numbers of the next ones; -1 where there is none."""
        return self._copy.following()

    def above(self) -> list[list[int]]:
        """For each node, the numbers of those that lead to it."""
        found: list[list[int]] = [[] for _ in range(len(self.nodes))]
        for number, following in enumerate(self.following()):
            for each in following:
                if each >= 0:
                    found[each].append(number)
        return found

    def newest_first(self) -> Iterator[Node]:
        """All nodes, in the order in which backward would come to them."""
        return map(self.nodes.__getitem__, self._copy.newest_first())

    def saving(self, storages: Iterable[int] = (), counters: Iterable[int] = ()) -> list[Node]:
        """The nodes that saved a tensor on one of the storages or with one of the counters.

        In the order in which backward would come to them.
        """
        numbers = self._copy.saving(list(storages), list(counters))
        return [self.nodes[number] for number in numbers]

    def unread(self) -> list[Node]:
        """The nodes of which something cannot be read."""
        found = (self.nodes[number] for number in self._copy.unread())
        return [node for node in found if node.hooked or not node.is_readable]

    def stale(self) -> list[tuple[Node, Saved]]:
        """Saved tensors whose version moved, in the order in which backward would meet them."""
        nodes = (self.nodes[number] for number in self._copy.stale())
        return [(node, saved) for node in nodes for saved in node.saved if saved.is_stale]

    def order(self, node: Node) -> int:
        """What the engine sorts by: the node made last runs first."""
        if node.inner_of >= 0:
            node = self.nodes[node.inner_of]
        return node.sequence if node.sequence is not None else -1


def read(roots: Any, most: int = MOST_NODES) -> Graph:
    """Copy the graph below `roots`: tensors, GradientEdges or nodes."""
    # Under each node's mutex: another thread's backward may be releasing what it saved. One that
    # is running right now shows nothing.
    copy = _C.GraphCopy(roots, most)
    graph = Graph(copy)
    if traced_lines.is_tracing():
        for number, row in enumerate(rows_below(roots, most)[0]):
            graph.nodes.tell(number, trace=traced_lines.trace_of(row[graph_rows.NODE]))
    for number, name, function in copy.take_functions():
        graph.nodes.tell(number, forward_code=forward_code(function))
        if name == _COMPILED:
            saved = _node(copy.node(number)).saved
            graph.nodes.tell(number, uses=_uses(function, saved))
    return graph


_COMPILED = "CompiledFunctionBackward"


def _uses(node: Any, saved: Iterable[Saved]) -> dict[str, list[str]]:
    found = {}
    for item in saved:
        number = item.attribute.rpartition("[")[2].removesuffix("]")
        if item.is_stale and number.isdigit():
            found[item.attribute] = traced_lines.uses_of_saved(node, int(number), item.sizes)
    return found


def rows_below(roots: Any, most: int = MOST_NODES) -> tuple[list[Any], bool]:
    """(a row of graph_rows for each node, nearest first; whether they are all).

    A row has the node itself, so paths that are too long for that end early: see LONGEST_PATH.
    """
    return _C.graph(roots, most, LONGEST_PATH)


def saved_of(facts: dict[str, Any], attribute: str) -> Saved:
    """What `_C.saved` says of one saved tensor."""
    return Saved(
        attribute=attribute,
        saved_version=facts["saved_version"],
        version=facts["version"],
        counter=facts["counter"],
        storage=facts["storage"],
        tensor=facts["id"],
        is_output=facts["is_output"],
        is_leaf=facts["is_leaf"],
        output_nr=facts["output_nr"],
        dtype=facts["dtype"],
        itemsize=facts["itemsize"],
        sizes=tuple(facts["sizes"]),
        strides=tuple(facts["strides"]),
        offset=facts["offset"],
        is_strided=facts["is_strided"],
        is_unused=facts.get("is_unused", False),
    )


def forward_code(node: Any) -> Any:
    cls = getattr(node, "_forward_cls", None)
    if cls is None:
        return None
    found = []
    for name in ("setup_context", "forward"):
        code = getattr(getattr(cls, name, None), "__code__", None)
        if code is not None:
            found.append(code)
    return tuple(found)
