"""GX304: a value that should carry a gradient does not, and torch says nothing.

A loss or an intermediate value that was rebuilt from numbers, and a term that was computed from
gradients without create_graph. Works from chains of births and flows. Keeps no tensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gradext.diagnosis.model import Diagnosis, Site
from gradext.native import _C
from gradext.recording import events
from gradext.recording.events import Flow
from gradext.rules.rewrite import detach, optimizer_step
from gradext.rules.wording import chains
from gradext.rules.wording.cuts import Cut, best, describe, fix
from gradext.rules.wording.lost_gradients import listed, names_lost
from gradext.rules.wording.owners import Owners
from gradext.source import sites, statements

if TYPE_CHECKING:
    from gradext.recording.tables import Data
    from gradext.rules.wording.chains import Step

# Why a backward was looked at (csrc/recorder/python/backward.h).
LEAF_ROOT, CONSTANT_TERM = _C.SUSPICIONS["LEAF_ROOT"], _C.SUSPICIONS["CONSTANT_TERM"]
REBUILT_LEAF = _C.SUSPICIONS["REBUILT_LEAF"]


def silent(outputs: Any, why: int, data: Data) -> list[Diagnosis]:
    """GX304: what is about to run backward carries no gradient where it should."""
    from gradext.source import live_frames

    live = live_frames.frames_above()
    found: list[Diagnosis] = []
    if why & LEAF_ROOT:
        found += _leaf_roots(outputs, data, live)
    if why & CONSTANT_TERM:
        found += _constant_terms(outputs, data, live)
    if why & REBUILT_LEAF and not found:
        found += _rebuilt_leaves(outputs, data, live)
    return found


def _leaf_roots(outputs: Any, data: Data, live: Sequence[Any]) -> list[Diagnosis]:
    """backward() of a tensor without history that requires grad: only its own .grad is filled."""
    from gradext.objects import naming

    names = None
    found = []
    for output in outputs if isinstance(outputs, (tuple, list)) else (outputs,):
        facts = naming.facts_of(output)
        if facts is None or facts.grad_fn is not None or not facts.requires_grad:
            continue
        names = names or Owners(live)
        diagnosis = _rebuilt(data, output, facts.id, names, live, is_root=True)
        if diagnosis is not None:
            found.append(diagnosis)
    return found


def _rebuilt(
    data: Data, tensor: Any, identity: int, names: Owners, live: Sequence[Any], *, is_root: bool
) -> Diagnosis | None:
    """A leaf that was computed from something with a gradient, which it has lost on the way."""
    chain = chains.back_from(data, [data.flow_of(identity)])
    known: dict[tuple[object, ...], Cut | None] = {}
    cuts = [cut for step in chain.cuts() if (cut := _described(data, step, known)) is not None]
    if not is_root:
        cuts = [cut for cut in cuts if cut.step.is_sure]
    cut = best(data, cuts, names)
    if cut is None:
        return None
    flag = data.flag_of(identity)
    flow = data.flow_of(identity)
    spoken = names.of(tensor)
    spoken = f"`{spoken}`" if spoken else "the loss" if is_root else "a tensor"
    set_at: Site | None = None
    if flag is not None and flag.value:
        set_at = sites.site(
            data.frames(flag.stack), label=f"makes {spoken} a leaf, and hides that it was cut off"
        )
    elif flow is not None:
        set_at = sites.site(
            data.frames(flow.stack), op=flow.op, label=f"makes {spoken} a leaf of its own"
        )
    backward = sites.site(stack_of(live), label="backward() reaches this leaf and nothing behind")
    lost = names_lost(data, chain, names)
    where = f" at {sites.where(cut.sites[0].frame)}" if cut.sites else ""
    message = (
        f"backward() of {spoken} trains nothing: {cut.what} cut it off from what it was computed "
        f"from{where}, and requires_grad=True made it a leaf that hides the error."
        if is_root
        else f"{spoken} was rebuilt as a leaf: {cut.what} cut it off from what it was computed "
        f"from{where}, so the gradient of this backward() ends there."
    )
    notes = []
    if lost:
        notes.append(f"{listed(lost)} get{'' if len(lost) > 1 else 's'} no gradient from it")
    undo = ""
    if flag is not None and flag.value and set_at is not None:
        at = sites.where(set_at.frame)
        undo = f"take `{statements.text_of(set_at)}` ({at}) out, and "
        without = detach.without_call(set_at, "requires_grad_")
        if without:
            undo = f"take `.requires_grad_()` out at {at}: `{without}`, and "
    return Diagnosis(
        code="GX304",
        message=message,
        culprits=cut.sites,
        victims=sites.distinct([set_at, backward]),
        fix=undo + fix(data, cut),
        notes=(*notes, _SILENCE),
    )


_SILENCE = "if it is meant, end the line with `# gradext: ignore[GX304]`"


@dataclasses.dataclass(frozen=True)
class _Graph:
    """What this backward reaches: nodes as (thread, sequence), ids of leaves."""

    nodes: frozenset[tuple[int, int]]
    leaves: frozenset[int]

    @classmethod
    def below(cls, outputs: Any) -> _Graph:
        from gradext.objects import naming
        from gradext.rules import graph_copy

        rows, _ = graph_copy.rows_below(outputs)
        leaves = (naming.facts_of(r[0].variable) for r in rows if r[1].endswith("AccumulateGrad"))
        return cls(
            frozenset((row[2], row[3]) for row in rows if row[3] is not None),
            frozenset(facts.id for facts in leaves if facts is not None),
        )

    def misses(self, names: Owners) -> list[str]:
        """Names of what is trained and gets no gradient from this backward."""
        return [name for i, name in names.trainable_ids.items() if i not in self.leaves]


def _constant_terms(outputs: Any, data: Data, live: Sequence[Any]) -> list[Diagnosis]:
    """Values that were made of gradients, or rebuilt from numbers, within this graph."""
    graph = _Graph.below(outputs)
    found: dict[tuple[str, int], Diagnosis] = {}
    names: Owners | None = None
    merges = [m for m in data.flows_with(events.MERGE)[::-1] if m.source_node in graph.nodes]
    harmful: set[int] = set()
    for merge in {merge.stack: merge for merge in merges}.values():
        if not merge.has(events.TAINT_GRAD) and not merge.has(events.IS_NUMBER):
            names = names or Owners(live)
            if not graph.misses(names):
                # A target, a weight: all that is trained is reached in another way. Nearly every
                # loss of reinforcement learning has one, with thousands of values behind it.
                continue
        chain = chains.back_from(data, [data.origin(n) for n in merge.parents])
        known: dict[tuple[object, ...], Cut | None] = {}
        cuts = [
            told
            for step in chain.cuts()
            if step.is_sure and (told := _described(data, step, known)) and told.sites
        ]
        of_gradients = [told for told in cuts if told.kind == "grad"]
        taken_by = {
            told.step.origin.source
            for told in of_gradients
            if isinstance(told.step.origin, Flow) and told.step.origin.source
        }
        if merge.source in taken_by:
            continue  # `fast = fast - lr * g`: an inner loop, whose steps are constants (FOMAML)
        names = names or Owners(live)
        if of_gradients and merge.has(events.TAINT_GRAD):
            cut = min(of_gradients, key=lambda told: told.step.depth)
            diagnosis = _constant_term(data, merge, cut, live, names)
            if diagnosis is not None and optimizer_step.is_step_along(
                diagnosis.victims[0], cut.sites[0]
            ):
                continue
        elif merge.has(events.TAINT_PYTHON) and cuts:
            missed = graph.misses(names)
            if not missed and not merge.has(events.IS_NUMBER):
                continue  # as above
            cut = min(cuts, key=lambda told: (told.kind == "detach", told.step.depth))
            diagnosis = _rebuilt_value(data, merge, cut, live, missed)
        else:
            continue
        if diagnosis is not None:
            harmful.add(merge.stack)
            found.setdefault(sites.line_of(diagnosis.culprits[0]), diagnosis)
    # Those are counted each time (gradext.recording.findings); the others are not looked at again.
    _C.recorder_judged([merge.stack for merge in merges if merge.stack not in harmful])
    return list(found.values())


def _described(data: Data, step: Step, known: dict[tuple[object, ...], Cut | None]) -> Cut | None:
    """describe(), once for all rounds of a loop: what it reads is the same for each of them."""
    origin = step.origin
    after = step.after.origin.op if step.after is not None else None
    key: tuple[object, ...] = (type(origin), origin.stack, origin.mode, origin.op, after)
    if isinstance(origin, Flow):
        key += (origin.flags, origin.parents if origin.has(events.FROM_INFERENCE) else ())
    if key not in known:
        known[key] = describe(data, step)
    told = known[key]
    return told if told is None else dataclasses.replace(told, step=step)


def _constant_term(
    data: Data, merge: Flow, cut: Cut, live: Sequence[Any], names: Owners
) -> Diagnosis | None:
    """A penalty on gradients that are constants."""
    term = sites.site(
        data.frames(merge.stack), op=merge.op, label="adds the term, a constant, to the loss"
    )
    backward = sites.site(stack_of(live), label="backward() takes the term for a constant")
    if term is None:
        return None
    where = sites.where(cut.sites[0].frame)
    lost = names.trainable
    notes = []
    if lost:
        several = "" if len(lost) > 1 else "s"
        notes.append(f"{listed(lost)} get{several} no gradient from this term")
    return Diagnosis(
        code="GX304",
        message=(
            f"A term of this loss was computed from the result of {cut.what}, at {where}: it is a "
            "constant for backward(), and changes no gradient."
        ),
        culprits=cut.sites,
        victims=sites.distinct([term, backward]),
        fix=fix(data, cut),
        notes=(*notes, _SILENCE),
    )


def _rebuilt_value(
    data: Data, merge: Flow, cut: Cut, live: Sequence[Any], missed: Sequence[str]
) -> Diagnosis | None:
    """A value that went to Python and back on its way to the loss, and what is not trained."""
    into = sites.site(
        data.frames(merge.stack),
        op=merge.op,
        label="computes on with the rebuilt value, a constant",
    )
    backward = sites.site(stack_of(live), label="backward() ends at the rebuilt value")
    if into is None:
        return None
    several = "" if len(missed) > 1 else "s"
    lost = (f"{listed(missed)} get{several} no gradient from this loss",) if missed else ()
    return Diagnosis(
        code="GX304",
        message=(
            f"A value that this loss is computed from was rebuilt from numbers: {cut.what}, at "
            f"{sites.where(cut.sites[0].frame)}, took it out of the graph, and the gradient of "
            "this backward() ends there."
        ),
        culprits=cut.sites,
        victims=sites.distinct([into, backward]),
        fix=fix(data, cut),
        notes=(*lost, _SILENCE),
    )


def _rebuilt_leaves(outputs: Any, data: Data, live: Sequence[Any]) -> list[Diagnosis]:
    """Leaves of this graph that came back from Python, where no parameter is among the leaves."""
    from gradext.objects import naming
    from gradext.rules import graph_copy

    rows, whole = graph_copy.rows_below(outputs)
    leaves = [
        (row[0].variable, facts)
        for row in rows
        if row[1].endswith("AccumulateGrad") and (facts := naming.facts_of(row[0].variable))
    ]
    if not whole or not leaves:
        return []
    names = Owners(live)
    if any(names.is_parameter(facts.id) or facts.id in names.optimized for _, facts in leaves):
        return []
    found = []
    for tensor, facts in leaves[:8]:
        flow = data.flow_of(facts.id)
        if flow is None or not flow.has(events.FROM_PYTHON | events.TAINT_PYTHON):
            continue
        diagnosis = _rebuilt(data, tensor, facts.id, names, live, is_root=False)
        if diagnosis is not None:
            found.append(diagnosis)
    return found[:1]


def stack_of(live: Sequence[Any]) -> Any:
    from gradext.source import frames

    return frames.stack_of([(frame.f_code, frame.f_lasti) for frame in live])
