"""What a live autograd graph shows, copied out of it: nodes, their numbers, what each saved.

The copy holds no node and no tensor, so a diagnosis keeps nothing of the program's alive. Reads
through `_C` only: runs no hook and unpacks nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from gradext.base import op_names
from gradext.native import _C
from gradext.source import traced_lines

MOST_NODES = 1 << 18
# A node that Python has looked at is freed by Python, and so is what hangs below it: a chain of
# 50,000 such nodes overflows the stack when the program drops it (torch 2.13). Longer paths than
# this are not followed.
LONGEST_PATH = 1 << 14


@dataclasses.dataclass(frozen=True)
class Saved:
    """One saved tensor of a node.

    Attributes:
        attribute: the node's name for it, "self" or "saved_tensors[1]".
        version: of its counter now; None for an inference tensor.
        is_original: the node holds the very tensor (False: a detached copy of its output).
        tensor: id of the tensor object that the node holds.
        is_unused: backward does not read it (running statistics of a batch norm in training).
    """

    attribute: str
    saved_version: int
    version: int | None
    counter: int
    storage: int
    tensor: int
    is_original: bool
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


@dataclasses.dataclass(frozen=True)
class Graph:
    """The nodes below the roots; `whole` is False where there were too many (see rows_below)."""

    nodes: tuple[Node, ...]
    whole: bool

    def stale(self) -> list[tuple[Node, Saved]]:
        """Saved tensors whose version moved, in the order in which backward would meet them."""
        found = [(n, s) for n in self.nodes for s in n.saved if s.is_stale]
        return sorted(found, key=lambda pair: -(self.order(pair[0])))

    def order(self, node: Node) -> int:
        """What the engine sorts by: the node made last runs first."""
        if node.inner_of >= 0:
            outer = self.nodes[node.inner_of]
            return outer.sequence if outer.sequence is not None else -1
        return node.sequence if node.sequence is not None else -1


def read(roots: Any, most: int = MOST_NODES) -> Graph:
    """Copy the graph below `roots`: tensors, GradientEdges or nodes."""
    rows, whole = rows_below(roots, most)
    nodes = []
    is_tracing = traced_lines.is_tracing()
    for node, name, thread, sequence, following, inner_of in rows:
        # Under the node's mutex: another thread's backward may be releasing what it saved. One that
        # is running right now shows nothing.
        items, is_freed, _ = _C.saved_of(node)
        saved = [saved_of(facts, label) for label, facts in items if facts["kind"] == "tensor"]
        hooked = [label for label, facts in items if facts["kind"] == "hooked"]
        kind = type(node)
        nodes.append(
            Node(
                name=name,
                thread=thread,
                sequence=sequence,
                next=tuple(following),
                inner_of=inner_of,
                saved=tuple(saved),
                hooked=tuple(hooked),
                is_freed=is_freed,
                is_readable=_is_readable(kind, name),
                forward_code=_forward_code(node),
                id=_C.node_id(node),
                trace=traced_lines.trace_of(node) if is_tracing else "",
                uses=_uses(node, saved) if name == _COMPILED else {},
            )
        )
    return Graph(tuple(nodes), whole)


_COMPILED = "CompiledFunctionBackward"


def _uses(node: Any, saved: list[Saved]) -> dict[str, list[str]]:
    found = {}
    for item in saved:
        number = item.attribute.rpartition("[")[2].removesuffix("]")
        if item.is_stale and number.isdigit():
            found[item.attribute] = traced_lines.uses_of_saved(node, int(number), item.sizes)
    return found


def rows_below(roots: Any, most: int = MOST_NODES) -> tuple[list[Any], bool]:
    """(what `_C.graph` says of the nodes, nearest first; whether they are all)."""
    limit = LONGEST_PATH
    while True:
        rows, whole = _C.graph(roots, min(limit, most))
        if whole or limit >= most:
            return rows, whole
        left = LONGEST_PATH - _longest_path(rows)
        if left < LONGEST_PATH // 16:
            return rows, False
        limit += left  # that many more nodes make no path longer than LONGEST_PATH


def _longest_path(rows: list[Any]) -> int:
    """How many nodes the longest path has; without recursion."""
    above = [0] * len(rows)
    for row in rows:
        for following in row[4]:
            if following >= 0:
                above[following] += 1
    length = [1] * len(rows)
    ready = [index for index, count in enumerate(above) if count == 0]
    while ready:
        index = ready.pop()
        for following in rows[index][4]:
            if following >= 0:
                length[following] = max(length[following], length[index] + 1)
                above[following] -= 1
                if above[following] == 0:
                    ready.append(following)
    return max(length, default=0)


def saved_of(facts: dict[str, Any], attribute: str) -> Saved:
    """What `_C.saved` says of one saved tensor."""
    return Saved(
        attribute=attribute,
        saved_version=facts["saved_version"],
        version=facts["version"],
        counter=facts["counter"],
        storage=facts["storage"],
        tensor=facts["id"],
        is_original=facts["is_original"],
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


def _is_readable(kind: type, name: str) -> bool:
    # torch gives each node class that it generates a Python type of its own; all C++ Functions of
    # extensions share one.
    if kind.__name__ == "CppFunction":
        plain = ("AccumulateGrad", "GraphRoot", "Identity", "CopyBackwards", "CopySlices", "Error")
        return op_names.short(name) in plain
    return True


def _forward_code(node: Any) -> Any:
    cls = getattr(node, "_forward_cls", None)
    if cls is None:
        return None
    found = []
    for name in ("setup_context", "forward"):
        code = getattr(getattr(cls, name, None), "__code__", None)
        if code is not None:
            found.append(code)
    return tuple(found)
