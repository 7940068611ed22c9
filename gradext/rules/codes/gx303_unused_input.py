"""GX303: a gradient by a tensor that the outputs do not depend on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gradext.base import raw
from gradext.diagnosis.model import Diagnosis, Site
from gradext.rules.graph_copy import Graph
from gradext.rules.wording import node_sites
from gradext.source import sites

if TYPE_CHECKING:
    from gradext.objects.naming import Names
    from gradext.recording.tables import Data


# 2.13 names the index; older ones say "One of the differentiated Tensors appears to ...".
UNUSED = re.compile(
    r"differentiated Tensors?(?: at index (?P<index>\d+))? appears? to not have been used"
)


def unused_input(
    error: BaseException,
    data: Data | None,
    graph: Graph | None = None,
    names: Names | None = None,
) -> list[Diagnosis]:
    """GX303: autograd.grad was asked about a tensor that the outputs were not computed from."""
    wanted = UNUSED.search(raw.message(error))
    if not wanted:
        return []
    from gradext.source import frames, live_frames

    stack = frames.frames_of_traceback(error.__traceback__)
    call = _grad_frame() if graph is not None else None
    if call is not None or not any(frame.is_user for frame in stack):
        live = [(f.f_code, f.f_lasti) for f in live_frames.frames_above()]
        stack = frames.stack_of(live) or stack
    asks = sites.site(stack, label="asks for a gradient that does not exist")
    index = int(wanted["index"]) if wanted["index"] else None
    unused = _unused(call, names, index) if call is not None else []
    which = "One of the inputs"
    if unused:
        which = ", ".join(item.text for item in unused[:4])
    elif index is not None:
        which = f"inputs[{index}]"
    made = None
    if unused and data is not None and unused[0].node is not None:
        label = f"makes {unused[0].text}, which nothing of the outputs was computed from"
        number, _ = data.node_stack(*unused[0].node)
        made = sites.site(data.frames(number), label=label)
    culprits = sites.distinct([made, asks])
    victims: tuple[Site, ...] = ()
    if data is not None and graph is not None and graph.nodes:
        newest = sorted(graph.nodes, key=graph.order, reverse=True)[:256]
        lines = [node_sites.site_of(data, node, _WITHOUT) for node in newest]
        if asks is not None:
            lines = [s for s in lines if s is None or sites.line_of(s) != sites.line_of(asks)]
        outputs = sites.distinct(lines, 2)
        victims = sites.distinct([asks, *outputs] if made is not None else [*outputs, asks])
    plural = len(unused) > 1
    return [
        Diagnosis(
            code="GX303",
            message=(
                f"{which} {'are' if plural else 'is'} not part of the graph that the outputs were "
                "computed from, so there is no gradient with respect to "
                f"{'them' if plural else 'it'}."
            ),
            culprits=culprits,
            victims=victims,
            fix=_fix_unused(unused, made, asks, victims),
            notes=(),
        )
    ]


_WITHOUT = "computes the outputs without it"


def _fix_unused(
    unused: list[_Unused], made: Site | None, asks: Site | None, victims: tuple[Site, ...]
) -> str:
    name = unused[0].text if unused else "the tensor"
    allow = "pass allow_unused=True if a missing gradient is expected"
    if asks is not None:
        allow = f"pass allow_unused=True at {sites.where(asks.frame)} if it may be missing"
    if made is not None:
        used = next((v for v in victims if v.label == _WITHOUT), None)
        line = sites.where(made.frame)
        at = f" at {sites.where(used.frame)}" if used else ""
        return (
            f"{name} is a new tensor, made at {line}, and the outputs come from another one: "
            f"compute them from {name}{at}, or ask for the gradient of what they were computed "
            f"from; or {allow}"
        )
    if unused and unused[0].is_parameter:
        return (
            f"{name} takes no part in this forward: leave it out of the inputs, or {allow} "
            "(its gradient is then None)"
        )
    return (
        f"compute the outputs from {name} itself (a copy made by clone(), to(), detach() or a new "
        f"slice is another tensor); or {allow}"
    )


class _Unused(NamedTuple):
    """One input without a gradient: its name, and (thread, sequence) of the node that made it."""

    text: str
    node: tuple[int, int] | None
    is_parameter: bool


def _grad_frame() -> Any:
    """The frame of torch.autograd.grad, where the inputs are to be seen."""
    from gradext.source import live_frames

    for frame in live_frames.frames_above():
        if frame.f_code.co_name == "grad" and frame.f_code.co_filename.endswith(
            ("torch/autograd/__init__.py", "torch\\autograd\\__init__.py")
        ):
            return frame
    return None


def inputs_of_grad() -> Sequence[Any] | None:
    """What the call of torch.autograd.grad() that is running was asked about; None without one."""
    from gradext.objects import naming

    frame = _grad_frame()
    return None if frame is None else _inputs_in(dict(naming.locals_of(frame)))


def _inputs_in(local: dict[str, Any]) -> Sequence[Any] | None:
    import torch

    inputs = local.get("inputs")
    if issubclass(type(inputs), torch.Tensor):
        return (inputs,)
    return inputs if type(inputs) in (list, tuple) else None


def _unused(frame: Any, names: Names | None, index: int | None) -> list[_Unused]:
    """The inputs that no node of the outputs' graph belongs to; that of the message first."""
    import torch

    from gradext.native import _C
    from gradext.objects import naming
    from gradext.rules import graph_copy

    local = dict(naming.locals_of(frame))
    inputs = _inputs_in(local)
    outputs = local.get("t_outputs", local.get("outputs"))
    if inputs is None or outputs is None:
        return []
    rows, whole = graph_copy.rows_below(outputs)
    made = {id(row[0]) for row in rows}
    leaves = {id(row[0].variable) for row in rows if row[1].endswith("AccumulateGrad")}
    found: list[_Unused] = []
    for number, item in enumerate(inputs):
        if not issubclass(type(item), torch.Tensor):
            continue
        own, _ = _C.graph([item], 1)
        in_graph = id(item) in leaves if not own else id(own[0][0]) in made
        if number != index and (in_graph or not whole):
            continue
        facts = naming.facts_of(item)
        name = names.of(facts.id) if names and facts else None
        node = (own[0][2], own[0][3]) if own and own[0][3] is not None else None
        is_parameter = bool(names and facts and names.is_parameter(facts.id))
        text = f"`{name}`" if name else f"inputs[{number}]"
        found.insert(0 if number == index else len(found), _Unused(text, node, is_parameter))
    return found
