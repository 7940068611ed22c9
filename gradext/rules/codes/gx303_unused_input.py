"""GX303: a gradient by a tensor that the outputs do not depend on."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gradext.base import package, raw
from gradext.diagnosis.model import Diagnosis, Site
from gradext.native import _C
from gradext.objects import graph_rows
from gradext.recording.events import CUT, TO_PYTHON, Flow
from gradext.rules.graph_copy import Graph
from gradext.rules.wording import constants, cuts, node_sites
from gradext.rules.wording.chains import Step
from gradext.rules.wording.cuts import Cut
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
    ended = None
    if unused and data is not None and graph is not None and names is not None:
        ended = _where_it_ends(data, graph, call, unused[0])
    if ended is None and unused and data is not None:
        ended = _only_loss(data, unused[0])
    ends_at = ended.cut.sites if ended is not None else ()
    culprits = sites.distinct([*ends_at, made]) or sites.distinct([asks])
    victims: tuple[Site, ...] = ()
    if data is not None and graph is not None and graph.nodes:
        newest = itertools.islice(graph.newest_first(), 256)
        lines = [node_sites.site_of(data, node, _WITHOUT) for node in newest]
        if asks is not None:
            lines = [s for s in lines if s is None or sites.line_of(s) != sites.line_of(asks)]
        outputs = sites.distinct(lines, 2)
        asked_first = made is not None or ended is not None
        victims = sites.distinct([asks, *outputs] if asked_first else [*outputs, asks])
    plural = len(unused) > 1
    message = (
        f"{which} {'are' if plural else 'is'} not part of the graph that the outputs were "
        f"computed from, so there is no gradient with respect to {'them' if plural else 'it'}."
    )
    mend = _fix_unused(unused, made, asks, victims)
    notes = []
    if ended is not None and data is not None:
        line = sites.where(ended.cut.sites[0].frame)
        if ended.is_by_itself:
            message = (
                f"{unused[0].text} is not part of the graph that the outputs were computed from, "
                f"and what was computed from it lost its history at {ended.cut.what}, {line}."
            )
            notes.append(f"that the outputs come from there is not known, but {_ONLY_LOSS}")
        elif ended.is_sure:
            message = (
                f"The outputs depend on {unused[0].text} in no way that has a gradient: its path "
                f"to them ends at {ended.cut.what}, {line}."
            )
        else:
            notes.append(
                f"the outputs were computed from a value that {ended.cut.what} cut off from its "
                f"history at {line}; what lay behind it is gone, so whether {unused[0].text} did "
                "is not known"
            )
        mend = f"{cuts.fix(data, ended.cut)}; or {_allow(asks)}"
    return [
        Diagnosis(
            code="GX303",
            message=message,
            culprits=culprits,
            victims=victims,
            fix=mend,
            notes=tuple(notes),
        )
    ]


_WITHOUT = "computes the outputs without it"


def _where_it_ends(data: Data, graph: Graph, call: Any, wanted: _Unused) -> _End | None:
    """Where the way from an input to the outputs loses the gradient; None: no such way is known."""
    from gradext.objects import naming

    rows = _rows_of_outputs(dict(naming.locals_of(call)))
    chain = constants.behind(data, graph, [] if rows is None else _leaves_in(rows[0]))
    ends = []
    for step in chain.cuts():
        # What was computed from an inference tensor, or came back from Python by a way that only
        # the functions tell, may be of any other tensor.
        if not isinstance(step.origin, Flow) or not step.is_sure:
            continue
        is_taken = step.origin.source == wanted.tensor or _lies_behind(step.origin, wanted)
        if is_taken is False:
            continue
        told = cuts.describe(data, step)
        if told is not None and told.sites:
            ends.append(_End(told, bool(is_taken)))
    return min(ends, key=lambda end: (not end.is_sure, end.cut.step.depth), default=None)


_ONLY_LOSS = "on no other line a history was lost that leads to it"
_MOST_LOSSES = 2_048  # of the latest; each asks for the leaves behind it


def _only_loss(data: Data, wanted: _Unused) -> _End | None:
    """The one line on which something computed from a leaf has lost its history.

    For graphs that do not tell of their constants: an op that computes with what it was handed and
    has parameters of its own (a GRU), or a sum with something that has a gradient.
    """
    if wanted.node is not None:
        return None
    found: dict[tuple[str, int], Cut] = {}
    printed = {number for flow in data.flows_with(TO_PYTHON) for number in flow.parents}
    for flow in data.flows_with(CUT, _MOST_LOSSES)[::-1]:
        if (
            flow.has(TO_PYTHON)
            or flow.number in printed
            or wanted.tensor
            not in {
                flow.source,
                *(leaf for leaf, _, _ in _C.leaves_behind(flow.number)),
            }
        ):
            continue
        told = cuts.describe(data, Step(flow, None, 0, is_past_cut=False))
        if told is None or told.mode is not None or not told.sites:
            continue  # without grad mode a constant is meant
        found.setdefault(sites.line_of(told.sites[0]), told)
    if len(found) != 1:
        return None
    return _End(next(iter(found.values())), is_sure=False, is_by_itself=True)


def _lies_behind(cut: Flow, wanted: _Unused) -> bool | None:
    """Whether what was cut off was computed from the input; None where nobody knows."""
    known = _C.leaves_behind(cut.number)
    if known and wanted.node is None:
        return any(leaf == wanted.tensor for leaf, _, _ in known)
    return _leads_to(cut.source, wanted)


def _leads_to(source: int, wanted: _Unused) -> bool | None:
    """Whether a tensor was computed from the input, by its graph; None where it is gone."""
    from gradext.objects import naming
    from gradext.rules import graph_copy
    from gradext.source import live_frames

    for frame in live_frames.frames_above():
        if not package.is_user_file(frame.f_code.co_filename):
            continue
        for _, value in naming.locals_of(frame):
            who = naming.identity_of(value)
            if who is None or who.id != source:
                continue
            rows, _ = graph_copy.rows_below([value])
            return wanted.tensor in _leaves_in(rows) or (
                wanted.node is not None and wanted.node in graph_rows.keys(rows)
            )
    return None


def _leaves_in(rows: Sequence[Any]) -> set[int]:
    return {facts.id for _, facts in graph_rows.known_leaves(rows)}


class _End(NamedTuple):
    """`is_sure`: the value that was cut off is known to be the input, or computed from it.

    `is_by_itself`: it was found as the only one of the input, and not on a way from the outputs.
    """

    cut: Cut
    is_sure: bool
    is_by_itself: bool = False


def _allow(asks: Site | None) -> str:
    if asks is not None:
        return f"pass allow_unused=True at {sites.where(asks.frame)} if it may be missing"
    return "pass allow_unused=True if a missing gradient is expected"


def _fix_unused(
    unused: list[_Unused], made: Site | None, asks: Site | None, victims: tuple[Site, ...]
) -> str:
    name = unused[0].text if unused else "the tensor"
    allow = _allow(asks)
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
    """One input without a gradient: its name and id; (thread, sequence) of what made it."""

    text: str
    node: tuple[int, int] | None
    is_parameter: bool
    tensor: int


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


def _rows_of_outputs(local: dict[str, Any]) -> tuple[list[Any], bool] | None:
    """graph_copy.rows_below() of what torch.autograd.grad() was called on."""
    from gradext.rules import graph_copy

    outputs = local.get("t_outputs", local.get("outputs"))
    return None if outputs is None else graph_copy.rows_below(outputs)


def _unused(frame: Any, names: Names | None, index: int | None) -> list[_Unused]:
    """The inputs that no node of the outputs' graph belongs to; that of the message first."""
    import torch

    from gradext.objects import naming

    local = dict(naming.locals_of(frame))
    inputs = _inputs_in(local)
    below = _rows_of_outputs(local)
    if inputs is None or below is None:
        return []
    rows, whole = below
    made = {id(row[graph_rows.NODE]) for row in rows}
    leaves = set(map(id, graph_rows.leaves(rows)))
    found: list[_Unused] = []
    for number, item in enumerate(inputs):
        if not issubclass(type(item), torch.Tensor):
            continue
        own, _ = _C.graph([item], 1)
        in_graph = id(item) in leaves if not own else id(own[0][graph_rows.NODE]) in made
        if number != index and (in_graph or not whole):
            continue
        facts = naming.facts_of(item)
        name = names.of(facts.id) if names and facts else None
        node = graph_rows.key(own[0]) if own else None
        is_parameter = bool(names and facts and names.is_parameter(facts.id))
        text = f"`{name}`" if name else f"inputs[{number}]"
        found.insert(
            0 if number == index else len(found),
            _Unused(text, node, is_parameter, facts.id if facts else 0),
        )
    return found
