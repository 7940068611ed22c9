"""GX304 of a reentrant checkpoint: its inputs need no gradient, so what it trains gets none.

torch warns ("None of the inputs have requires_grad=True") and goes on, because the loss reaches
something else that is trained. Works from a recording's flows; touches no tensor.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gradext.diagnosis.model import Diagnosis, Site
from gradext.objects import graph_rows
from gradext.recording import events
from gradext.recording.events import Flow
from gradext.rules.wording import chains
from gradext.rules.wording.lost_gradients import listed
from gradext.rules.wording.owners import Owners
from gradext.source import frames, live_frames, sites, statements

if TYPE_CHECKING:
    from gradext.recording.tables import Data

_SILENCE = "if it is meant, end the line with `# gradext: ignore[GX304]`"


def silent(outputs: Any, data: Data) -> list[Diagnosis]:
    """The diagnoses for a backward on `outputs` whose graph uses results of such a checkpoint."""
    if not data.has_merges(events.TAINT_CHECKPOINT):
        return []
    from gradext.rules import graph_copy

    rows, whole = graph_copy.rows_below(outputs)
    merges = data.merges_in(graph_rows.keys(rows), events.TAINT_CHECKPOINT)
    if not merges or not whole:
        return []
    reached = {facts.id for _, facts in graph_rows.known_leaves(rows)}
    live = live_frames.frames_above()
    names = Owners(live)
    backward = frames.stack_of([(frame.f_code, frame.f_lasti) for frame in live])
    found: dict[tuple[str, int], Diagnosis] = {}
    for merge in merges:
        chain = chains.back_from(data, [data.origin(number) for number in merge.parents])
        diagnosis = _of_chain(data, merge, chain, names, reached, backward)
        if diagnosis is not None:
            found.setdefault(sites.line_of(diagnosis.culprits[0]), diagnosis)
    return list(found.values())


def _of_chain(
    data: Data,
    merge: Flow,
    chain: chains.Chain,
    names: Owners,
    reached: set[int],
    backward: Any,
) -> Diagnosis | None:
    uses = sorted(_uses(data, chain), key=lambda use: use.order)
    missed: dict[int, str] = {}
    for use in uses:
        leaf = use.source
        if leaf in reached or not _is_trained(leaf, names):
            continue
        missed.setdefault(leaf, names.by_id(leaf) or "a parameter")
    if not missed:
        return None
    # Those before it, too: what goes into a checkpoint may be another's result.
    calls = sites.distinct(_call(data, use) for use in uses)
    if not calls:
        return None
    into = sites.site(
        data.frames(merge.stack), op=merge.op, label="takes its result in as constant"
    )
    shown = sites.site(backward, label="backward() ends at that result")
    several = "" if len(missed) > 1 else "s"
    first = calls[0]
    return Diagnosis(
        code="GX304",
        message=(
            f"{listed([*missed.values()])} get{several} no gradient from this loss: none of the "
            f"inputs of the reentrant checkpoint at {sites.where(first.frame)} requires grad, and "
            "then it makes no graph for what is computed within it."
        ),
        culprits=calls,
        victims=sites.distinct([into, shown]),
        fix=_fix(first),
        notes=(_SILENCE,),
    )


def _uses(data: Data, chain: chains.Chain) -> Iterator[Flow]:
    """The flows inside such a checkpoint whose source is a leaf that requires grad."""
    for step in chain.all_cuts():
        origin = step.origin
        if not isinstance(origin, Flow) or not origin.has(events.SOURCE_IS_LEAF):
            continue
        if origin.has(events.IN_FUNCTION) and any(
            frame.file.replace("\\", "/").endswith("torch/utils/checkpoint.py")
            for frame in data.frames(origin.mode)
        ):
            yield origin


def _is_trained(leaf: int, names: Owners) -> bool:
    if names.optimized:
        return leaf in names.optimized
    return names.is_parameter(leaf)


def _call(data: Data, use: Flow) -> Site | None:
    label = "the reentrant checkpoint runs this without a graph"
    found = sites.site(data.frames(use.mode), label=label)
    return found if found is not None and found.frame.is_user else None


def _fix(call: Site) -> str:
    at = sites.where(call.frame)
    if any("/transformers/" in frame.file.replace("\\", "/") for frame in call.stack):
        return (
            "enable checkpointing with "
            '`gradient_checkpointing_kwargs={"use_reentrant": False}`, or call '
            "`model.enable_input_require_grads()` before training"
        )
    given = _inputs(call)
    require = f"`{given[0]}.requires_grad_()`" if given else "`requires_grad_()` on it"
    return (
        f"pass use_reentrant=False to the checkpoint at {at}; or make an input of it require grad, "
        f"if it is of a floating dtype: {require} before the call"
    )


def _inputs(call: Site) -> Sequence[str]:
    """The variables that the call of checkpoint() hands on to the function."""
    node = statements.statement(call)
    for part in ast.walk(node) if node is not None else ():
        if isinstance(part, ast.Call) and ast.unparse(part.func).endswith("checkpoint"):
            return [arg.id for arg in part.args[1:] if isinstance(arg, ast.Name)]
    return []
