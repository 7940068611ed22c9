"""GX305: the `.grad` of a tensor that is no leaf was read after backward. Keeps no tensor."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

from gradext.diagnosis.model import Diagnosis
from gradext.recording.events import NODES
from gradext.rules import graph_copy
from gradext.rules.wording.owners import Owners
from gradext.source import frames, live_frames, sites, statements

if TYPE_CHECKING:
    from gradext.diagnosis.model import Site
    from gradext.recording.tables import Data


def read(tensor: Any, data: Data) -> list[Diagnosis]:
    """Nothing where no backward has gone through the tensor: then there is no gradient to miss."""
    rows, _ = graph_copy.rows_below((tensor,), 1)
    if not rows or rows[0][3] is None:
        return []
    thread, sequence = rows[0][2], rows[0][3]
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
    op = rows[0][1].rsplit("::", 1)[-1].removesuffix("0").removesuffix("Backward")
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
            fix=_mend(name, made, line),
        )
    ]


def _mend(name: str | None, made: Site | None, line: str) -> str:
    keep = f"to keep its gradient, call `{name or 'x'}.retain_grad()` after {line}"
    earlier = _requires_grad_before(made)
    if earlier:
        return f"{earlier} ({line}); or {keep}, before backward()"
    return f"{keep}, before backward(); or read the .grad of the leaf that it was made from"


def _requires_grad_before(made: Site | None) -> str | None:
    """`x = torch.zeros(3, requires_grad=True).to(dev)`: the flag belongs on what comes last."""
    node = statements.statement(made) if made is not None else None
    if not isinstance(node, ast.Assign) or len(node.targets) != 1:
        return None
    for part in ast.walk(node.value):
        if isinstance(part, ast.Call) and part is not node.value:
            named = ast.unparse(part.func).rsplit(".", 1)[-1]
            flagged = any(word.arg == "requires_grad" for word in part.keywords)
            if named == "requires_grad_" or flagged:
                flag = (
                    "`.requires_grad_()`" if named == "requires_grad_" else "`requires_grad=True`"
                )
                return f"take {flag} off, and put `.requires_grad_()` at the end of the statement"
    target, value = ast.unparse(node.targets[0]), node.value
    while isinstance(value, (ast.Call, ast.Attribute)):
        value = value.func if isinstance(value, ast.Call) else value.value
    if ast.unparse(value) == target:
        text = ast.unparse(node.value)
        return f"make it a leaf after that: `{target} = {text}.detach().requires_grad_()`"
    return None
