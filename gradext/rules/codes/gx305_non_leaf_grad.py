"""GX305: the `.grad` of a tensor that is no leaf was read after backward. Keeps no tensor."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gradext.base import op_names
from gradext.diagnosis.model import Diagnosis
from gradext.objects import graph_rows
from gradext.recording.events import NODES
from gradext.rules import graph_copy
from gradext.rules.rewrite import leaf_flag
from gradext.rules.wording.owners import Owners
from gradext.source import frames, live_frames, sites, statements

if TYPE_CHECKING:
    from gradext.diagnosis.model import Site
    from gradext.recording.tables import Data


_MOST_NODES = 64  # between a tensor and the leaf that it was to be itself


def read(tensor: Any, data: Data) -> list[Diagnosis]:
    """The diagnosis for a `.grad` that is read and None, after a backward through the tensor."""
    rows, whole = graph_copy.rows_below((tensor,), _MOST_NODES)
    made_by = graph_rows.key(rows[0]) if rows else None
    if made_by is None:
        return []
    thread, sequence = made_by
    passed = any(
        (
            (backward.nodes[:, NODES.thread] == thread)
            & (backward.nodes[:, NODES.sequence] == sequence)
        ).any()
        for backward in data.backwards
    )
    stack, _ = data.node_stack(thread, sequence)
    made = sites.site(data.frames(stack))
    if not passed or made is None:
        return []
    live = live_frames.frames_above()
    names = Owners(live)
    name = names.of(tensor)
    spoken = f"`{name}`" if name else "a tensor"
    asked = sites.site(
        frames.stack_of([(frame.f_code, frame.f_lasti) for frame in live]),
        label="reads its .grad, which is None",
    )
    line = sites.where(made.frame)
    op = op_names.of_node(rows[0][graph_rows.NAME])
    made = sites.site(data.frames(stack), label=f"makes {spoken}, which is no leaf ({op})")
    return [
        Diagnosis(
            code="GX305",
            message=(
                f"The .grad of {spoken} is None: the line {line} made it by an op from what "
                "requires grad, so it is no leaf, and backward() fills the .grad of leaves."
            ),
            culprits=sites.distinct([made]),
            victims=sites.distinct([asked]),
            fix=_mend(name, made, line, of_one_leaf=whole and _leaves(rows) == 1),
        )
    ]


def _leaves(rows: Sequence[Sequence[Any]]) -> int:
    return sum(map(graph_rows.is_leaf, rows))


def _mend(name: str | None, made: Site | None, line: str, *, of_one_leaf: bool) -> str:
    keep = f"to keep its gradient, call `{name or 'x'}.retain_grad()` after {line}"
    if made is not None and name not in statements.assigned_names(made):
        keep = f"to keep its gradient, call `.retain_grad()` on what {line} makes"
    earlier = _requires_grad_before(made) if of_one_leaf else None
    if earlier:
        return f"{earlier} ({line}); or {keep}, before backward()"
    return f"{keep}, before backward(); or read the .grad of the leaf that it was made from"


def _requires_grad_before(made: Site | None) -> str | None:
    """`x = torch.zeros(3, requires_grad=True).to(dev)`: the flag belongs on what comes last."""
    node = statements.statement(made) if made is not None else None
    last = leaf_flag.asked_for_last(node)
    if last is not None or not isinstance(node, ast.Assign) or len(node.targets) != 1:
        return last
    target, value = ast.unparse(node.targets[0]), node.value
    while isinstance(value, (ast.Call, ast.Attribute)):
        value = value.func if isinstance(value, ast.Call) else value.value
    if ast.unparse(value) == target:
        text = ast.unparse(node.value)
        return f"make it a leaf after that: `{target} = {text}.detach().requires_grad_()`"
    return None
