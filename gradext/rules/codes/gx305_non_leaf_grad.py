"""GX305: the `.grad` of a tensor that is no leaf was read after backward. Keeps no tensor."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gradext.base import op_names, package
from gradext.diagnosis.model import Diagnosis
from gradext.objects import graph_rows
from gradext.recording.events import NODES
from gradext.rules import graph_copy
from gradext.rules.rewrite import exchanged, leaf_flag
from gradext.rules.wording.owners import Owners
from gradext.source import frames, live_frames, sites, statements

if TYPE_CHECKING:
    from gradext.diagnosis.model import Frame, Site
    from gradext.recording.tables import Data


_MOST_NODES = 64  # between a tensor and the leaf that it was to be itself


def read(tensor: Any, data: Data) -> list[Diagnosis]:
    """The diagnosis for a `.grad` that is read and None, after a backward through the tensor."""
    rows, whole = graph_copy.rows_below((tensor,), _MOST_NODES)
    made_by = graph_rows.key(rows[0]) if rows else None
    if made_by is None:
        return []
    thread, sequence = made_by
    passed = [
        backward
        for backward in data.backwards
        if (
            (backward.nodes[:, NODES.thread] == thread)
            & (backward.nodes[:, NODES.sequence] == sequence)
        ).any()
    ]
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
    called = None
    if name is not None and made is not None and name not in statements.assigned_names(made):
        reader = next((f for f in live if package.is_user_file(f.f_code.co_filename)), None)
        if reader is not None and exchanged.value_at(reader, name) is tensor:
            called = _call_below(name, data.frames(passed[-1].stack), asked)
    return [
        Diagnosis(
            code="GX305",
            message=(
                f"The .grad of {spoken} is None: an op at {line} made it from what "
                "requires grad, so it is no leaf, and backward() fills the .grad of leaves."
            ),
            culprits=sites.distinct([made]),
            victims=sites.distinct([asked, called]),
            fix=_mend(name, made, line, called, of_one_leaf=whole and _leaves(rows) == 1),
        )
    ]


def _leaves(rows: Sequence[Sequence[Any]]) -> int:
    return sum(map(graph_rows.is_leaf, rows))


def _call_below(name: str, frames_of_call: Sequence[Frame], asked: Site | None) -> Site | None:
    """The backward() above which a line can be put that calls a method of what `name` means.

    That is so where the function that reads the `.grad` calls backward() further up, and gives the
    name no other value in between.
    """
    call = sites.site(frames_of_call)
    if call is None or asked is None:
        return None
    reader = asked.frame
    for place in (call.frame, *call.callers):
        if (place.file, place.function) != (reader.file, reader.function):
            continue
        at = dataclasses.replace(
            call, frame=place, callers=(), label="backward() fills the .grad of leaves"
        )
        node = statements.statement(at)
        if node is None or isinstance(node, statements.BLOCKS):
            return None
        if not node.lineno <= place.line < reader.line:
            return None
        return at if statements.holds_from(at, name, reader.line) else None
    return None


def _mend(
    name: str | None, made: Site | None, line: str, called: Site | None, *, of_one_leaf: bool
) -> str:
    keep = f"to keep its gradient, call `{name or 'x'}.retain_grad()` after {line}"
    when = ", before backward()"
    if called is not None:
        keep = f"to keep its gradient, call `{name}.retain_grad()`"
        when = f" above {sites.where(called.frame)}"
    elif made is not None and name not in statements.assigned_names(made):
        keep = f"to keep its gradient, call `.retain_grad()` on what {line} makes"
    earlier = _requires_grad_before(made) if of_one_leaf else None
    if earlier:
        return f"{earlier} ({line}); or {keep}{when}"
    return f"{keep}{when}; or read the .grad of the leaf that it was made from"


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
