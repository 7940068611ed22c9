"""The user's lines that torch.compile's graphs remember for their nodes.

A node of an fx graph has a printed traceback of the line that it was traced from. Reads graphs that
are there; runs none of their code and keeps none of them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from gradext.diagnosis.model import Frame
from gradext.source import frames

_AUGMENTED = {
    *("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor"),
    *("ilshift", "irshift", "setitem", "imatmul"),
}
_VIEWS = {
    *("getitem", "view", "view_as", "reshape", "flatten", "ravel", "t", "transpose", "permute"),
    *("squeeze", "unsqueeze", "expand", "select", "narrow", "detach", "unbind", "split", "chunk"),
    *("diagonal", "movedim", "swapaxes", "alias", "contiguous"),
}


def frames_of(trace: str) -> tuple[Frame, ...]:
    """The frames of a printed traceback, innermost first."""
    return tuple(reversed(frames.frames_in_text(trace)))


def is_tracing() -> bool:
    """Whether a graph is being traced from another, whose lines are handed on to its nodes."""
    known = sys.modules.get("torch.fx.traceback")
    return known is not None and bool(known.has_preserved_node_meta())


def trace_of(node: Any) -> str:
    """What anomaly mode keeps of the line that made a node of autograd; "" for nothing."""
    kept = node.metadata.get("traceback_") if hasattr(node, "metadata") else None
    return "".join(kept) if isinstance(kept, list) else ""


def uses_of_saved(node: Any, index: int, sizes: Sequence[int]) -> list[str]:
    """Tracebacks of the lines that a compiled forward saved its tensor `index` for.

    Args:
        node: of a compiled function (CompiledFunctionBackward). sizes: of the tensor.
    """
    lazy = getattr(getattr(node, "_forward_cls", None), "_lazy_backward_info", None)
    graph = getattr(getattr(lazy, "bw_module", None), "graph", None)
    if graph is None:
        return []
    given = [n for n in graph.nodes if n.op == "placeholder" and _sizes(n) is not None]
    if index >= len(given) or _sizes(given[index]) != tuple(sizes):
        return []
    found = (user.meta.get("stack_trace") for user in graph.nodes if user in given[index].users)
    return list(dict.fromkeys(trace for trace in found if trace))


def _sizes(node: Any) -> tuple[int, ...] | None:
    shape = getattr(node.meta.get("val"), "shape", None)
    if shape is None or not all(type(size) is int for size in shape):
        return None
    return tuple(shape)


def graph_of(live: Sequence[Any]) -> Any:
    """The graph that torch.compile hands to its backend, in the frames that run; None for none."""
    fx = sys.modules.get("torch.fx.graph_module")
    if fx is None:
        return None
    for frame in live:
        name = frame.f_code.co_filename.replace("\\", "/")
        if name.endswith(("torch/_dynamo/output_graph.py", "torch/_dynamo/backends/common.py")):
            module = frame.f_locals.get("gm")
            if issubclass(type(module), fx.GraphModule):
                return module.graph
    return None


def writes_within(graph: Any, trace: str, is_output: bool) -> tuple[str, list[str]]:
    """(traceback of the line that saved, those of lines that wrote it afterwards, oldest first).

    Args:
        graph: as graph_of() gives it. trace: that of the autograd node. is_output: it saved its
            own result, and no input.
    """
    nodes = list(graph.nodes)
    fitting = [
        (len(text), at)
        for at, node in enumerate(nodes)
        if (text := node.meta.get("stack_trace")) and trace.startswith(text)
    ]
    if not fitting:
        return "", []
    longest = max(fitting)[0]
    savers = [nodes[at] for length, at in fitting if length == longest]
    roots = {_root(s) for s in savers}
    if not is_output:
        roots = {_root(item) for s in savers for item in s.all_input_nodes}
    last = max(nodes.index(s) for s in savers)
    found = [
        node.meta["stack_trace"]
        for node in nodes[last + 1 :]
        if (written := _written(node)) is not None
        and _root(written) in roots
        and node.meta.get("stack_trace")
    ]
    return savers[0].meta["stack_trace"], list(dict.fromkeys(found))


def _name(node: Any) -> str:
    target = node.target
    return target if isinstance(target, str) else str(getattr(target, "__name__", ""))


def _written(node: Any) -> Any:
    """The node of the tensor that a node writes in place; None for what writes none."""
    if node.op not in ("call_method", "call_function"):
        return None
    out = node.kwargs.get("out")
    if hasattr(out, "all_input_nodes"):
        return out
    name = _name(node)
    is_inplace = name.endswith("_") and not name.endswith("__")
    if name in _AUGMENTED or is_inplace or node.kwargs.get("inplace") is True:
        first = node.args[0] if node.args else None
        return first if hasattr(first, "all_input_nodes") else None
    return None


def _root(node: Any) -> Any:
    """The node whose memory a node's result is: of a view its base, of a write what it wrote."""
    for _ in _bounded():
        of = _written(node)
        if of is None and node.op in ("call_method", "call_function") and _name(node) in _VIEWS:
            of = node.args[0] if node.args else None
        if not hasattr(of, "all_input_nodes"):
            break
        node = of
    return node


def _bounded() -> Iterator[int]:
    return iter(range(10_000))
