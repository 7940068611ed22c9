"""GX304: a value that should carry a gradient does not, and torch says nothing.

A loss or an intermediate value that was rebuilt from numbers, and a term that was computed from
gradients without create_graph. Works from chains of births and flows. Keeps no tensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from gradext.diagnosis.model import Diagnosis, Site
from gradext.native import _C
from gradext.objects import graph_rows
from gradext.recording import events
from gradext.recording.awaited import Awaited
from gradext.recording.events import Flow
from gradext.rules.reached import Reached
from gradext.rules.rewrite import detach, optimizer_step
from gradext.rules.wording import chains
from gradext.rules.wording.chains import Step
from gradext.rules.wording.cuts import Cut, best, describe, fix
from gradext.rules.wording.lost_gradients import listed, names_lost
from gradext.rules.wording.lost_leaves import LostLeaves
from gradext.rules.wording.meant_cuts import (
    goes_to_python,
    is_beside_itself,
    is_draw,
    is_of_data,
    is_support,
    unless_meant,
)
from gradext.rules.wording.owners import Owners
from gradext.source import sites, statements
from gradext.source.value_flow import ValueFlow

if TYPE_CHECKING:
    from gradext.recording.tables import Data
    from gradext.rules.wording.chains import Chain

# Why a backward was looked at (csrc/recorder/python/backward.h).
LEAF_ROOT, CONSTANT_TERM = _C.SUSPICIONS["LEAF_ROOT"], _C.SUSPICIONS["CONSTANT_TERM"]
REBUILT_LEAF = _C.SUSPICIONS["REBUILT_LEAF"]


_MOST_PAIRED = 64  # values that left for Python, and that came from it, of one constant
_DECIDES = ("integer", "op", "function", "step", "draw", "drawn", "off")  # kinds of cuts


def silent(outputs: Any, why: int, data: Data) -> list[Diagnosis | Awaited]:
    """GX304: what is about to run backward carries no gradient where it should."""
    from gradext.source import live_frames

    live = live_frames.frames_above()
    found: list[Diagnosis | Awaited] = []
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
    source = ValueFlow()
    cuts = [
        cut for cut in cuts if (is_root or cut.step.is_sure) and _is_read_so(data, cut.step, source)
    ]
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


def _is_read_so(data: Data, step: Step, source: ValueFlow) -> bool:
    """Whether the source, too, leads from where a value left to where it seems to have come back.

    The recorder takes an array of the same size for what had left, and a value of the same function
    (chains.linked_exit), which are guesses.
    """
    return all(
        source.leads(data.frames(left.origin.stack), data.frames(left.after.origin.stack))
        for left in step.way()
        if left.after is not None
        and isinstance(left.after.origin, Flow)
        and left.after.origin.has(events.FROM_PYTHON)
        and (left.after.origin.has(events.BY_SIZE) or left.after.is_sure > left.is_sure)
    )


_SILENCE = "if it is meant, end the line with `# gradext: ignore[GX304]`"


def _constant_terms(outputs: Any, data: Data, live: Sequence[Any]) -> list[Diagnosis | Awaited]:
    """Values that were made of gradients, rebuilt from numbers, or decided, within this graph."""
    graph = Reached.below(outputs)
    found: dict[tuple[str, int], _Told] = {}
    names = Owners(live)
    leaves, source = LostLeaves(graph.leaves, names), ValueFlow()
    merges = data.merges_in(graph.nodes)
    harmful: set[int] = set()
    harmless: set[int] = set()
    for merge in merges:
        chain = chains.back_from(data, [data.origin(n) for n in merge.parents])
        told = None
        if merge.has(events.TAINT_GRAD):
            told = _of_gradients(data, merge, chain, live, names)
        if told is None:
            told = _of_constants(data, merge, chain, live, graph, leaves, source)
        if told is None:
            harmless |= {merge.stack, *(step.origin.stack for step in _guessed(chain))}
            continue
        harmful.add(merge.stack)
        found.setdefault(told.line, told)
    # Those are counted each time (gradext.recording.findings); the others are not looked at again.
    _C.recorder_judged([*harmless - harmful])
    return _without_echoes([*found.values()])


@dataclasses.dataclass(frozen=True)
class _Told:
    """The diagnosis of one merge.

    Attributes:
        line: the culprit's. copied, decided: the leaves that lose their gradient to a number or a
            copy; to a comparison, an index or a draw.
    """

    line: tuple[str, int]
    diagnosis: Diagnosis | Awaited
    copied: frozenset[int] = frozenset()
    decided: frozenset[int] = frozenset()


def _without_echoes(found: Sequence[_Told]) -> list[Diagnosis | Awaited]:
    """Without decisions on values that a number or a copy has taken from the graph as well.

    The score of an action that was drawn (`log_prob`) is what its policy learns by: where that has
    become a number, the draw is not to blame.
    """
    copied = {leaf for told in found for leaf in told.copied}
    return [told.diagnosis for told in found if not told.decided or not told.decided <= copied]


def _of_gradients(
    data: Data, merge: Flow, chain: Chain, live: Sequence[Any], names: Owners
) -> _Told | None:
    """A term that was computed from gradients without create_graph."""
    known: dict[tuple[object, ...], Cut | None] = {}
    cuts = [
        told
        for step in chain.cuts()
        if step.is_sure and (told := _described(data, step, known)) and told.sites
    ]
    taken = [told for told in cuts if told.kind == "grad"]
    sources = {told.step.origin.source for told in taken if isinstance(told.step.origin, Flow)}
    # What was differentiated by may be a detached copy of what is stepped.
    numbers = [t.step.origin.value for t in taken if isinstance(t.step.origin, Flow)]
    made = [data.origin(int(number)) for number in numbers if number]
    sources |= {m.source for m in made if isinstance(m, Flow) and m.op in chains.DETACHES}
    if not taken or (merge.source and merge.source in sources):
        return None  # `fast = fast - lr * g`: an inner loop, whose steps are constants (FOMAML)
    cut = min(taken, key=lambda told: told.step.depth)
    diagnosis = _constant_term(data, merge, cut, live, names)
    if diagnosis is None or optimizer_step.is_step_along(diagnosis.victims[0], cut.sites[0]):
        return None
    return _Told(sites.line_of(cut.sites[0]), diagnosis)


def _guessed(chain: Chain) -> list[Step]:
    """Where values came from Python of which only the source says where they had left."""
    return [
        step
        for step in chain.steps
        if isinstance(step.origin, Flow)
        and step.origin.has(events.FROM_PYTHON)
        and step.origin.has(events.BY_SIZE | events.TAINT_GUESS)
        and not step.is_past_cut
    ]


def _cuts_behind(
    data: Data, merge: Flow, chain: Chain, source: ValueFlow
) -> list[tuple[Cut, bool]]:
    """The cuts that a constant comes from; and whether it was followed through the source."""
    known: dict[tuple[object, ...], Cut | None] = {}
    found = []
    if merge.has(events.CUT):  # a step function, which hands on zeros
        chain = chains.back_from(data, [merge])

    def add(steps: Sequence[Step], *, is_read: bool) -> None:
        for step in steps:
            told = _described(data, step, known)
            if told is not None and told.sites:
                found.append((told, is_read))

    guessed = _guessed(chain)
    by_size = {step.origin.number for step in guessed}
    beyond: set[int] = set()  # id() of the steps on whose way to the start is one of those
    for step in chain.steps:  # nearest first
        if step.origin.number in by_size or id(step.after) in beyond:
            beyond.add(id(step))
    add([s for s in chain.cuts() if s.is_sure and id(s) not in beyond], is_read=False)
    # Of the rounds of a loop the nearest stands for all.
    starts: dict[int, tuple[Flow, Step | None]] = {}
    for step in guessed:
        if isinstance(step.origin, Flow):
            starts.setdefault(step.origin.stack, (step.origin, step))
    if merge.has(events.IS_NUMBER) and merge.has(events.TAINT_GUESS) and not merge.parents:
        starts.setdefault(merge.stack, (merge, None))
    exits = chains.exits_before(data, merge)[:_MOST_PAIRED] if starts else []
    for entry, after in [*starts.values()][:_MOST_PAIRED]:  # nearest first
        came = data.frames(entry.stack)
        for left in exits:
            if source.leads(data.frames(left.stack), came):
                add(chains.back_from(data, [left], after).cuts(), is_read=True)
                break
    return found


def _of_constants(
    data: Data,
    merge: Flow,
    chain: Chain,
    live: Sequence[Any],
    graph: Reached,
    leaves: LostLeaves,
    source: ValueFlow,
) -> _Told | None:
    """A number, an array or a decision that keeps something that is to be trained from it."""
    cuts = [
        (cut, is_read)
        for found, is_read in _cuts_behind(data, merge, chain, source)
        # no_grad says that a constant is meant
        if (cut := unless_meant(found)).kind in ("read", "copy", "detach", *_DECIDES)
    ]
    if not cuts:
        return None
    by_choice = None
    if merge.has(events.IS_NUMBER) and merge.source_node in graph.straight:
        # Added to the loss, it changes no gradient of anything.
        read = [
            (cut, is_read, leaves.behind(cut.step.origin))
            for cut, is_read in cuts
            if (cut.kind in ("read", "copy") or goes_to_python(data, cut) or is_of_data(cut))
            and not is_beside_itself(cut, graph.straight)
        ]
        read = [entry for entry in read if entry[2]]
        if read:
            cut, is_read, behind = min(read, key=lambda entry: entry[0].step.depth)
            line = sites.line_of(cut.sites[0])
            for other, _, more in read:
                behind |= more if sites.line_of(other.sites[0]) == line else {}
            term = _number_term(data, merge, cut, live, [*behind.values()], is_read)
            return _Told(line, term, copied=frozenset(behind)) if term is not None else None
        cuts = [(cut, is_read) for cut, is_read in cuts if cut.kind in _DECIDES]
        by_choice = _chosen_term(data, merge, cuts, live, leaves)
    lost = [
        (cut, is_read, missed)
        for cut, is_read in cuts
        if cut.kind != "detach"
        # A target that was computed from an input is none of the input's business.
        and (missed := leaves.lost(cut.step.origin, by_hand=cut.kind not in ("read", "copy")))
    ]
    if not lost:
        return by_choice
    cut, is_read, _ = min(lost, key=lambda entry: entry[0].step.depth)
    line = sites.line_of(cut.sites[0])
    missed = {}
    for other, _, more in lost:
        if sites.line_of(other.sites[0]) == line:
            missed.update(more)
    into = sites.site(data.frames(merge.stack), op=merge.op)
    backward = sites.site(stack_of(live), label="backward() ends at this constant")
    if into is None:
        return None
    decides = cut.kind in _DECIDES
    say = _decided if decides else _rebuilt_value
    mend, notes = fix(data, cut, into=merge.op), (_READ_IN_SOURCE,) if is_read else ()
    known = dataclasses.replace(
        cut, step=cast(Any, None)
    )  # what waits keeps no copy of the recording
    awaited = Awaited(missed, lambda names: say(known, into, backward, names, mend, notes))
    ids = frozenset(missed)
    return _Told(line, awaited, frozenset() if decides else ids, ids if decides else frozenset())


def _chosen_term(
    data: Data,
    merge: Flow,
    cuts: Sequence[tuple[Cut, bool]],
    live: Sequence[Any],
    leaves: LostLeaves,
) -> _Told | None:
    """A term of the loss that was computed from a choice alone (argmax, a comparison).

    What was drawn is no choice: the logarithm of its prior belongs to an estimate by scores.
    """
    chosen = [
        (cut, is_read, behind)
        for cut, is_read in cuts
        if cut.kind in ("integer", "op")
        and not is_support(cut)
        and (behind := leaves.behind(cut.step.origin))
    ]
    if not chosen or any(is_draw(cut) for cut, _ in cuts):
        return None
    cut, is_read, behind = min(chosen, key=lambda entry: entry[0].step.depth)
    term = _number_term(data, merge, cut, live, [*behind.values()], is_read)
    return _Told(sites.line_of(cut.sites[0]), term) if term is not None else None


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
    message = (
        f"A term of this loss was computed from the result of {cut.what}, at "
        f"{sites.where(cut.sites[0].frame)}: it is a constant for backward(), and changes no "
        "gradient."
    )
    return _term(data, merge, cut, live, "the term", message, names.trainable)


_READ_IN_SOURCE = (
    "what Python computes nobody sees: that the value came from there is read in the source"
)


def _number_term(
    data: Data,
    merge: Flow,
    cut: Cut,
    live: Sequence[Any],
    behind: Sequence[str],
    is_read: bool,
) -> Diagnosis | None:
    """A number that was computed from what is trained, as a term of the loss."""
    message = (
        f"A term of this loss is a number: {cut.what}, at {sites.where(cut.sites[0].frame)}, "
        f"{'has no derivative' if cut.kind in _DECIDES else 'took it out of the graph'}, so it "
        "changes no gradient."
    )
    more = (_READ_IN_SOURCE,) if is_read else ()
    return _term(data, merge, cut, live, "the number", message, behind, more)


def _term(
    data: Data,
    merge: Flow,
    cut: Cut,
    live: Sequence[Any],
    what: str,
    message: str,
    lost: Sequence[str],
    more: Sequence[str] = (),
) -> Diagnosis | None:
    """A term that is a constant: where it was added, and what gets no gradient from it."""
    into = sites.site(
        data.frames(merge.stack), op=merge.op, label=f"adds {what}, a constant, to the loss"
    )
    backward = sites.site(stack_of(live), label="backward() takes the term for a constant")
    if into is None:
        return None
    notes = list(more)
    if lost:
        several = "" if len(lost) > 1 else "s"
        notes.insert(0, f"{listed(lost)} get{several} no gradient from this term")
    return Diagnosis(
        code="GX304",
        message=message,
        culprits=cut.sites,
        victims=sites.distinct([into, backward]),
        fix=fix(data, cut),
        notes=(*notes, _SILENCE),
    )


def _rebuilt_value(
    cut: Cut,
    into: Site,
    backward: Site | None,
    lost: Sequence[str],
    mend: str,
    notes: Sequence[str],
) -> Diagnosis:
    """A value that went to Python and back on its way to the loss, and what is not trained."""
    several = "" if len(lost) > 1 else "s"
    into = dataclasses.replace(into, label="computes on with the rebuilt value, a constant")
    return Diagnosis(
        code="GX304",
        message=(
            f"A value that this loss is computed from was rebuilt from numbers: {cut.what}, at "
            f"{sites.where(cut.sites[0].frame)}, took it out of the graph, and the gradient of "
            "this backward() ends there."
        ),
        culprits=cut.sites,
        victims=sites.distinct([into, backward]),
        fix=mend,
        notes=(f"{listed(lost)} get{several} no gradient from any backward()", *notes, _SILENCE),
    )


def _decided(
    cut: Cut,
    into: Site,
    backward: Site | None,
    lost: Sequence[str],
    mend: str,
    notes: Sequence[str],
) -> Diagnosis:
    """A comparison, an index, a rank: the loss depends on it, and it has no derivative."""
    several = len(lost) > 1
    line = sites.where(cut.sites[0].frame)
    if cut.kind == "step":
        return Diagnosis(
            code="GX304",
            message=(
                f"{listed(lost)} get{'' if several else 's'} a gradient of zero: "
                f"{'their' if several else 'its'} only path to this loss goes through {cut.what}, "
                f"{line}, whose derivative is zero everywhere."
            ),
            culprits=cut.sites,
            victims=sites.distinct([backward]),
            fix=mend,
            notes=(*notes, _SILENCE),
        )
    into = dataclasses.replace(into, label="computes on with the result, a constant")
    if cut.kind == "off" and cut.mode is not None:
        entered = sites.where(cut.mode.site.frame)
        waits = cut.mode.how == "suspended"
        return Diagnosis(
            code="GX304",
            message=(
                f"{listed(lost)} get{'' if several else 's'} no gradient: grad mode was switched "
                f"off by {cut.what}, {entered}, {'which waits within its block' if waits else ''}"
                f"{'' if waits else 'and was still off'} when what this loss is made of was "
                "computed."
            ),
            culprits=cut.sites,
            victims=sites.distinct([into, backward]),
            fix=mend,
            notes=(*notes, _SILENCE),
        )
    return Diagnosis(
        code="GX304",
        message=(
            f"{listed(lost)} get{'' if several else 's'} no gradient: "
            f"{'their' if several else 'its'} only path to this loss ends at {cut.what}, "
            f"{line}, which has no derivative."
        ),
        culprits=cut.sites,
        victims=sites.distinct([into, backward]),
        fix=mend,
        notes=(*notes, _SILENCE),
    )


def _rebuilt_leaves(outputs: Any, data: Data, live: Sequence[Any]) -> list[Diagnosis]:
    """Leaves of this graph that came back from Python, where no parameter is among the leaves."""
    from gradext.rules import graph_copy

    rows, whole = graph_copy.rows_below(outputs)
    leaves = list(graph_rows.known_leaves(rows))
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
