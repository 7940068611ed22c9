"""GX302 and GX303: a graph that was used up, and an input that the graph does not contain.

Work from a copy of the graph (evidence) and a recording's data.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradext.base import op_names, raw
from gradext.diagnosis.model import Diagnosis, Site
from gradext.recording.events import NODES
from gradext.rules.graph_copy import Graph, Node
from gradext.rules.rewrite import carried, detach, exchanged, leaf_flag
from gradext.rules.wording import holders, node_sites, weight_caches
from gradext.rules.wording.cached_results import kept_by_decorator
from gradext.rules.wording.held_by_modules import module_with, named_modules
from gradext.rules.wording.loops import goes_over_made, runs_again
from gradext.rules.wording.lost_events import lost
from gradext.source import live_frames, sites, statements

if TYPE_CHECKING:
    from gradext.objects.naming import Names
    from gradext.recording.events import Backward
    from gradext.recording.tables import Data

FREED = re.compile(r"Trying to backward through the graph a second time")


def second_backward(
    error: BaseException,
    data: Data | None,
    graph: Graph | None = None,
    names: Names | None = None,
) -> list[Diagnosis]:
    """GX302: which forward made the freed graph, which backward freed it, what leads back to it."""
    if not FREED.search(raw.message(error)):
        return []
    if data is None or graph is None or names is None:
        return [_without_graph(error)]
    failed = _failed_call(data, graph)
    earlier = data.backwards if failed is None else data.backwards[:failed]
    here = None if failed is None else _site_of_call(data, data.backwards[failed])
    return freed(data, graph, names, earlier, here) or [_without_graph(error)]


def _failed_call(data: Data, graph: Graph) -> int | None:
    """Index of the backward call that failed: the last one that began at the root of `graph`.

    Not simply the last: a reentrant checkpoint calls the engine within a call of the engine.
    """
    root = next((node for node in graph.nodes if node.sequence is not None), None)
    if root is None:
        return None
    for index in range(len(data.backwards) - 1, -1, -1):
        if _contains(data.backwards[index], root):
            return index
    return None


def _contains(backward: Backward, node: Node) -> bool:
    nodes = backward.nodes
    return bool(
        (
            (nodes[:, NODES.thread] == node.thread) & (nodes[:, NODES.sequence] == node.sequence)
        ).any()
    )


def _site_of_call(data: Data, backward: Backward) -> Site | None:
    return sites.site(data.frames(backward.stack), label="this backward() needs it again")


def freed(
    data: Data,
    graph: Graph,
    names: Names,
    earlier: Sequence[Backward] | None = None,
    again: Site | None = None,
) -> list[Diagnosis]:
    """GX302 for a graph of which `earlier` backward calls have used up a part; else empty.

    `again` is the call that needs it a second time, if there was one already.
    """
    if not any(graph.freed()):
        return []
    earlier = data.backwards if earlier is None else earlier
    freeing = _freeing(graph, earlier)
    entries = _entries(graph, freeing)
    if not entries:
        return []
    outer, index = entries[0]
    node = graph.nodes[index]
    call = earlier[freeing[index]] if index in freeing else None
    first = None
    if call is not None:
        first = sites.site(data.frames(call.stack), label="this backward() freed the graph")
    name = names.of_node(node.id)
    named = node
    if name is None and call is not None and outer is not None:
        # `h` of `h, state = rnn(x, state)` was used up, and `state` itself, made beside it, not.
        named = _named_above(graph, index, call, names) or node
        name = names.of_node(named.id)
    kept = None
    if name is None and call is not None and outer is not None:
        kept = holders.kept_at(data, graph, index, call, _running())
    if kept is not None:
        named, name = kept.node, kept.target
    what = f"`{name}`" if name else "this result"
    made = node_sites.site_of(data, named, f"{what} leads back into the graph that was freed")
    if kept is not None and made is not None:
        # A variable's line says no more than that of what it was given.
        is_variable = kept.target.isidentifier()
        made = made if is_variable else holders.moved_to(made, kept.frame)
    elif made is not None:
        made = detach.assigning(made, name, _running())
    linking = (
        node_sites.site_of(data, outer, f"{op_names.of_node(outer.name)} uses it again")
        if outer
        else None
    )
    maker = node_sites.site_of(
        data, node, f"{op_names.of_node(node.name)} made a part of the graph that was freed"
    )
    whole = outer is None
    block = None
    if not whole and maker is not None:
        stack, _ = data.node_stack(node.thread, node.sequence or 0)
        block = weight_caches.block_around(data.frames(stack), live_frames.frames_above())
    several = (
        None if whole or block is not None else _several(data, graph, node, maker, (first, again))
    )
    twice = call is not None and _adds_twice(node, call, whole, first, again)
    # `loss += task(x)` after the first call: the sum is to start anew, and both calls are meant.
    twice = twice and not (linking is not None and _is_carried_on(linking))
    taken, other = (first, again) if twice and _has_more(graph, index) else (again, first)
    if twice:
        culprits = sites.distinct([taken])
        message = (
            f"backward() ran twice on {what if name else 'the same loss'}: the first call has "
            f"freed {node.name} and what lies below it, and each call adds the same gradients."
        )
    elif whole:
        culprits = sites.distinct([detach.assigning(maker, name) if maker else None, first, again])
        message = (
            f"backward() ran a second time through the same graph: {node.name}, and what lies "
            "below it, was freed by the first one."
        )
    elif block is not None:
        culprits = sites.distinct([block[0], made, first])
        message = (
            f"The graph of this backward() reaches {node.name} of an earlier one that has already "
            "been freed: a weight that `parametrize.cached()` keeps was used again with its "
            "history."
        )
    elif several is not None:
        culprits = sites.distinct([first, made, linking])
        message = (
            f"The graph of this backward() reaches {node.name} of an earlier one that has already "
            "been freed: the losses of this loop, which were computed before it, share it."
        )
    else:
        culprits = sites.distinct([made, linking, first])
        carried = _held(made, linking, name)
        message = (
            f"The graph of this backward() reaches {node.name} of an earlier one that has already "
            f"been freed: {carried} was used again with its history."
        )
    below = _freed_below(graph, index)
    apart = None
    if outer is not None and call is not None and made is not None:
        used_at = outer if named is not node else _first_user(graph, index, freeing, call)
        use = node_sites.site_of(data, used_at, "") if used_at is not None else None
        target = name or detach.carried_name(made, linking)
        apart = _apart(target, use) if target is not None and use is not None else None
    victims = sites.distinct(
        [
            other if twice else None,
            maker,
            *(node_sites.site_of(data, graph.nodes[other], "") for _, other in entries[1:8]),
            *(
                node_sites.site_of(
                    data, other, f"{op_names.of_node(other.name)} has lost what it saved"
                )
                for other in below
            ),
        ]
    )
    shown = {sites.line_of(place) for place in (*culprits, *victims)}
    if maker is not None and any(maker.frame == place.frame for place in culprits):
        # The culprit's own label says that its line made a part of it.
        victims = tuple(
            dataclasses.replace(place, label=culprit.label)
            if (culprit := next((c for c in culprits if c.frame == place.frame), None)) is not None
            else place
            for place in victims
        )
    notes = []
    if first is not None and not twice:
        if sites.line_of(first) not in shown:
            notes.append(f"the graph was freed by the backward at {sites.where(first.frame)}")
    elif not len(data.saves):
        notes.append("the light mode records no nodes, so the lines of the graph are not known")
    elif missing := lost(data, "backwards", "saves"):
        notes.append(f"which backward freed it is not known: {missing}")
    elif not culprits:
        notes.append("the graph was made before the recording began")
    if not culprits and again is not None:
        culprits = (again,)
    if twice and taken is not None and other is not None and first is not None:
        mend = _one_too_many(taken, other, first)
    elif block is not None:
        mend = block[1]
    else:
        leaf = _leaf_instead(graph, index, (made, maker))
        lines = (made, maker, linking, first, again)
        mend = several or _fix(data, node, name, whole, apart, leaf, lines)
    return [
        Diagnosis(
            code="GX302",
            message=message,
            culprits=culprits,
            victims=victims,
            fix=mend,
            notes=tuple(notes),
        )
    ]


def _several(
    data: Data,
    graph: Graph,
    node: Node,
    maker: Site | None,
    calls: tuple[Site | None, Site | None],
) -> str | None:
    """What to do where one line calls backward() on several losses that are there already."""
    first, again = calls
    root = next((one for one in graph.nodes if one.sequence is not None), None)
    if root is None or first is None or again is None or maker is None:
        return None
    if sites.line_of(first) != sites.line_of(again):
        return None
    if not goes_over_made(node_sites.site_of(data, root, ""), maker, again):
        return None
    if runs_again(data, node.thread, 1 + (node.sequence or 0), maker):
        return None
    kept = carried.keeping_graph(again) or "`retain_graph=True`"
    more = "" if _is_grad_call(again) else "; or call backward() once, on their sum"
    return f"keep the graph for the next loss, {kept} at {sites.where(again.frame)}{more}"


def _adds_twice(
    node: Node, call: Backward, whole: bool, first: Site | None, again: Site | None
) -> bool:
    """Whether two lines call `.backward()` on the same loss, one of them perhaps on more.

    `autograd.grad()` and `backward(inputs=...)` hand out gradients for a purpose of their own, so
    two such calls are meant.
    """
    if first is None or again is None or sites.line_of(first) == sites.line_of(again):
        return False
    own = call.nodes[call.nodes[:, NODES.thread] == node.thread]
    is_root = len(own) > 0 and node.sequence == int(own[:, NODES.sequence].max())
    return (whole or is_root) and all(
        not _is_grad_call(site) and "inputs=" not in statements.text_of(site)
        for site in (first, again)
    )


def _is_grad_call(site: Site) -> bool:
    """Whether a call of the engine is one of torch.autograd.grad()."""
    return any(frame.function == "grad" for frame in site.stack)


def _is_carried_on(linking: Site) -> bool:
    return any(detach.is_running_sum(linking, n) for n in statements.assigned_names(linking))


def _has_more(graph: Graph, index: int) -> bool:
    """Whether the graph leads to leaves that do not lie below one of its nodes."""
    pending, seen = [0] if index else [], {index}
    next_ones = graph.following()
    while pending:
        number = pending.pop()
        if number in seen:
            continue
        seen.add(number)
        if not next_ones[number]:
            return True
        pending += [following for following in next_ones[number] if following >= 0]
    return False


def _one_too_many(taken: Site, kept: Site, first: Site) -> str:
    does = "has computed" if kept is first else "computes"
    return (
        f"take `{statements.text_of(taken)}` out at {sites.where(taken.frame)}: the call at "
        f"{sites.where(kept.frame)} {does} these gradients too; or, to add them twice on purpose, "
        f"`retain_graph=True` at {sites.where(first.frame)}"
    )


def _held(made: Site | None, linking: Site | None, name: str | None) -> str:
    """What links the two graphs, and what holds it: "`net.lif.v`, a buffer,"."""
    target = name
    if made is not None:
        target = target or detach.carried_name(made, linking)
    if made is None or target is None:
        return "a tensor made there"
    function = made.frame.function.split(".<locals>.")[-1]
    spoken, how = target, ""
    owner, _, attribute = target.partition(".")
    whole = attribute.split("[")[0]
    if owner == "self" and "." not in whole and "." in function:
        kind = function.rsplit(".", 2)[-2]
        how = f"an attribute of {kind}"
        found = module_with(kind, whole)
        if found is not None:
            path, is_buffer = found
            spoken = f"{path}.{attribute}"
            how = f"a buffer of {kind}" if is_buffer else how
    elif detach.is_running_sum(made, target):
        how = "a running sum"
    elif "[" in target:
        how = f"an entry of `{target.rpartition('[')[0]}`"
    elif not attribute:
        inner = function.rsplit(".", 1)[-1]
        how = "a global variable" if inner == "<module>" else f"a local of {inner}()"
    elif _buffer_at(target):
        how = "a buffer"
    else:
        how = f"an attribute of `{target.rpartition('.')[0]}`"
    return f"`{spoken}`, {how},"


def _buffer_at(path: str) -> bool:
    from gradext.objects import naming

    owner, _, attribute = path.rpartition(".")
    return any(
        name == owner and attribute in dict(naming.group_of(module, "_buffers"))
        for name, module in named_modules()
    )


def _entries(graph: Graph, freeing: dict[int, int]) -> list[tuple[Node | None, int]]:
    """(live node or None for a root, index of the used node below it), the newest first."""
    sequences, count = graph.sequences(), len(graph.nodes)
    # Without a recording that reaches back, what has lost its saved tensors is what was used.
    gone = [i in freeing for i in range(count)] if freeing else graph.freed()
    above: dict[int, int] = {}
    has_parent = set()
    for index, next_ones in enumerate(graph.following()):
        for following in next_ones:
            has_parent.add(following)
            if following >= 0 and gone[following] and not gone[index]:
                above.setdefault(following, index)
    lost = _leads_to_freed(graph)
    found: list[tuple[Node | None, int]] = []
    for index in range(count):
        if not gone[index] or sequences[index] is None or not lost[index]:
            continue
        if index in above:
            found.append((graph.nodes[above[index]], index))
        elif index not in has_parent:
            found.append((None, index))
    return sorted(found, key=lambda pair: -(sequences[pair[1]] or 0))


def _running() -> set[tuple[str, str]]:
    """(file, name) of the functions that are being run."""
    from gradext.source import live_frames

    return {(f.f_code.co_filename, f.f_code.co_name) for f in live_frames.frames_above()}


def _named_above(graph: Graph, index: int, call: Backward, names: Names) -> Node | None:
    """The nearest node above that a variable holds and that was made before the call freed any."""
    start = graph.nodes[index]
    own = call.nodes[call.nodes[:, NODES.thread] == start.thread]
    last = int(own[:, NODES.sequence].max()) if len(own) else -1
    above = graph.above()
    pending, seen = list(above[index]), {index}
    while pending:
        number = pending.pop(0)
        node: Node = graph.nodes[number]
        if number in seen or node.thread != start.thread or (node.sequence or 0) > last:
            continue
        seen.add(number)
        if node.sequence is not None and names.of_node(node.id):
            return node
        pending += above[number]
    return None


def _leads_to_freed(graph: Graph) -> list[bool]:
    """Whether a node at or below each one has lost its saved tensors; the others may run again."""
    before, found = graph.above(), graph.freed()
    pending = [index for index, lost in enumerate(found) if lost]
    while pending:
        for index in before[pending.pop()]:
            if not found[index]:
                found[index] = True
                pending.append(index)
    return found


def _freed_below(graph: Graph, start: int, most: int = 64) -> list[Node]:
    """Nodes at or below `start` that have lost what they saved, the newest first."""
    freed = graph.freed()
    found = (graph.nodes[k] for k in _below(graph, start) if freed[k])
    return sorted(found, key=graph.order, reverse=True)[:most]


def _freeing(graph: Graph, earlier: Sequence[Backward]) -> dict[int, int]:
    """For the nodes that were used up: which call, the first without retain_graph, did it."""
    place = {made: k for k, made in enumerate(zip(graph.threads(), graph.sequences(), strict=True))}
    found: dict[int, int] = {}
    for number, backward in enumerate(earlier):
        if backward.keeps_graph:
            continue
        for thread, sequence in backward.nodes.tolist():
            index = place.get((thread, sequence))
            if index is not None:
                found.setdefault(index, number)
    return found


def _fix(
    data: Data,
    node: Node,
    name: str | None,
    whole: bool,
    apart: str | None,
    leaf: str | None,
    lines: tuple[Site | None, Site | None, Site | None, Site | None, Site | None],
) -> str:
    made, maker, linking, first, again = lines
    place = f" at {sites.where(first.frame)}" if first else ""
    if whole:
        return _fix_of_whole(made, first, again, place)
    if made is None or maker is None:
        return "detach the tensor that is carried over from the earlier iteration"
    target = name or detach.carried_name(made, linking)
    spoken = f"`{target}`" if target else "the tensor"
    detached = detach.detached(target, made)
    line = sites.where(made.frame)
    use = f" before {sites.where(linking.frame)} uses it" if linking else ""
    loops = first is not None and again is not None and sites.line_of(first) == sites.line_of(again)
    if again is not None and first is not None and not loops:
        fresh = carried.running_sum(target, made, first) if target else None
        if fresh is not None:
            return (
                f"{spoken} still holds the sum that the backward(){place} went through: let it "
                f"begin anew, {fresh} (`{target} = 0` where its value is not needed); or call "
                "backward() once, for the whole sum"
            )
        if any(_is_grad_call(call) for call in (first, again)):
            # It hands out gradients for a purpose of its own: the two are no sum.
            apart = None if _is_grad_call(again) else apart
            return (
                f"keep the graph{place}, for {sites.where(again.frame)}, which goes through "
                f"{spoken} (made at {line}) again: `retain_graph=True`"
                f"{'' if apart is None else f'; or, if that is not to train what made it, {apart}'}"
            )
        once = carried.once(first, again) or "add them and call backward() once"
        if apart is None:
            return (
                f"{spoken}, made at {line}, is used by two losses: {once}; or, where they cannot "
                f"be added, keep the graph: `retain_graph=True`{place}"
            )
        return (
            f"{spoken}, made at {line}, is used by two losses: {once}; if the second is not to "
            f"train what made it, {apart}; if it is, and cannot be added, keep the graph: "
            f"`retain_graph=True`{place}"
        )
    if loops and not runs_again(data, node.thread, 1 + (node.sequence or 0), maker):
        if leaf is not None:
            return f"{spoken} is made once, and is no leaf that could be trained: {leaf}"
        there = detach.detached_where_made(target, made)
        there = there or (detached if "every" in detached else "`.detach()` it")
        anew = kept_by_decorator(made)
        anew = f" ({anew})" if anew is not None else ""
        return (
            f"{spoken} is made once, at {line}, and used by every backward(): compute it again in "
            f"each iteration{anew}; or, if nothing below it is to be trained, {there} there"
        )
    path = carried.path_of(made, target) if target else ""
    live = live_frames.frames_above()
    cut = carried.cut(path, live) or carried.cut_entries(path, live)
    spoken = f"`{path}`" if cut is not None else spoken
    emptied = carried.cleared(path, made, linking, live)
    if emptied is not None:
        kept = f"; or, where the earlier ones are to count, {cut}" if cut is not None else ""
        return (
            f"`{path.rpartition('[')[0]}` still has the entries that the backward(){place} went "
            f"through: let it begin anew, {emptied}{kept}"
        )
    cut = cut or f"{detached}{use}"
    return f"cut the history of {spoken}, made at {line}, between the iterations: {cut}"


def _leaf_instead(graph: Graph, index: int, lines: Sequence[Site | None]) -> str | None:
    """For what was computed from one tensor that a line asks to require grad: who is to ask."""
    for place in lines:
        told = leaf_flag.asked_for_last(statements.statement(place)) if place is not None else None
        if told is not None and place is not None:
            below = (graph.nodes[k] for k in _below(graph, index))
            if sum(node.name.endswith("AccumulateGrad") for node in below) != 1:
                return None
            return f"{told} ({sites.where(place.frame)})"
    return None


def _below(graph: Graph, start: int) -> set[int]:
    seen, pending = {start}, [start]
    next_ones = graph.following()
    while pending:
        for following in next_ones[pending.pop()]:
            if following >= 0 and following not in seen:
                seen.add(following)
                pending.append(following)
    return seen


def _first_user(graph: Graph, index: int, freeing: dict[int, int], call: Backward) -> Node | None:
    """The first node that uses again what was used up; None where a cut before it is not enough.

    That is so where something else leads there, or was made of it before the first loss was.
    """
    lost, node = _leads_to_freed(graph), graph.nodes[index]
    own = call.nodes[call.nodes[:, NODES.thread] == node.thread]
    last = int(own[:, NODES.sequence].max()) if len(own) else -1
    users: list[Node] = []
    for number, following in enumerate(graph.following()):
        reached = {f for f in following if f in freeing and lost[f]}
        if reached and number not in freeing:
            user = graph.nodes[number]
            if reached != {index} or user.thread != node.thread or (user.sequence or -1) <= last:
                return None
            users.append(user)
    return min(users, key=graph.order, default=None)


def _apart(target: str, use: Site) -> str | None:
    """What to type before the second loss uses a tensor, and before which line."""
    root = re.split(r"[.\[]", target)[0]
    live = live_frames.frames_above()
    for place in (use.frame, *use.callers):
        name = place.function.rsplit(".", 1)[-1]
        for frame in live:
            code = frame.f_code
            if (code.co_filename, code.co_name) != (place.file, name):
                continue
            if exchanged.knows(frame, root):
                told = exchanged.detached_in(frame, target)
                return f"`{told}` before {sites.where(place)} uses it" if told else None
    return None


def _fix_of_whole(made: Site | None, first: Site | None, again: Site | None, place: str) -> str:
    """All of the second graph has been gone through already."""
    line = f" at {sites.where(made.frame)}" if made else ""
    if first is not None and again is not None and sites.line_of(first) != sites.line_of(again):
        return (
            f"keep the graph for the backward at {sites.where(again.frame)}: `retain_graph=True`"
            f"{place}; or compute the loss{line} again in between"
        )
    return (
        f"compute the loss{line} again before each backward(); or, where the same gradients are to "
        f"be added once more, keep the graph for the next pass: `retain_graph=True`{place}"
    )


def _without_graph(error: BaseException) -> Diagnosis:
    from gradext.source import frames

    failed = sites.site(
        frames.frames_of_traceback(error.__traceback__), label="the backward that failed"
    )
    return Diagnosis(
        code="GX302",
        message="backward() reached a graph, or saved tensors, that an earlier one has freed.",
        culprits=(failed,) if failed else (),
        fix="add the losses and call backward() once, detach what is carried over between "
        "iterations, or pass retain_graph=True to the first backward()",
        notes=("run it with `gradext run` to see which forward made the freed graph",),
    )
