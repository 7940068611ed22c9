"""What to type instead of a write to a tensor that is saved for backward."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradext.base import op_names
from gradext.diagnosis.model import Frame, Site
from gradext.rules.graph_copy import Graph, Node, Saved
from gradext.rules.rewrite import (
    carried,
    detach,
    in_place,
    optimizer_step,
    order_of_calls,
    read_copy,
    saver_copy,
)
from gradext.rules.wording import saved_tensors
from gradext.rules.wording.loops import runs_again
from gradext.source import bindings, live_frames, sites, statements, syntax

if TYPE_CHECKING:
    from gradext.objects.naming import Names
    from gradext.recording.events import Backward, Write
    from gradext.recording.tables import Data


_MOST_CARRIED = 3


@dataclasses.dataclass
class Blame:
    """The writes between the saved version and the current one of one saved tensor."""

    writes: list[Write]
    touched: list[bool | None]  # whether each write's bytes overlap what was saved
    gap: tuple[int, int] | None  # versions that no recorded write explains
    before: Write | None  # the last recorded write before the gap
    after: Write | None  # the first one after it
    note: Write | None  # a Python call that explains the gap


def fix(
    graph: Graph,
    saved: Saved,
    data: Data,
    blame: Blame,
    culprits: tuple[Site, ...],
    victims: tuple[Site, ...],
    names: Names,
    failed: bool,
    savers: Sequence[Site] = (),
) -> str:
    """What mends a stale saved tensor.

    Args:
        savers: all lines that saved what the same write has spoilt.
    """
    name, _ = names.of_saved(saved)
    if not culprits:
        place = f" at {sites.where(victims[0].frame)}" if victims else ""
        return f"save a copy: use {f'`{name}.clone()`' if name else 'a clone()'}{place}"
    culprit = culprits[0]
    write = next(
        (
            w
            for w in blame.writes
            if (f := sites.user_frame(data.frames(w.stack)))
            and (f.file, f.line) == sites.line_of(culprit)
        ),
        None,
    )
    # The backward that raised, which the write has to come after.
    call = data.backwards[-1] if failed and data.backwards else None
    stack = data.frames(call.stack) if call is not None else ()
    last = sites.user_frame(stack)
    of_leaf = names.is_of_leaf(saved.counter) and write is not None and not write.grad_mode
    if optimizer_step.is_optimizer_step(culprit, of_leaf=of_leaf):
        return _fix_step(graph, data, culprit, write, victims, names, call, savers)
    inside = [frame.file.replace("\\", "/") for frame in culprit.stack]
    op = (write.op if write else culprit.op) or ""
    is_leaf = names.is_of_leaf(saved.counter) or (saved.is_leaf and name is None)
    kept = saver_copy.saver_copy(victims, culprits, saved, name, of_leaf=is_leaf)
    if "embedding_renorm_" in op:
        return (
            "nn.Embedding(max_norm=...) rescales its weight in place when it is called: "
            + (kept or f"use `{name or 'weight'}.clone()` at {saved_tensors.place(victims)}")
            + "; or do the lookup before that line"
        )
    if any("/nn/parallel/" in path or "/torch/distributed/" in path for path in inside):
        return (
            "DistributedDataParallel copies buffers in place before each forward: construct it "
            "with broadcast_buffers=False, or run one backward per forward"
        )
    if re.search(r"zero_grad", culprit.frame.code):
        return "let zero_grad() drop the gradients: `zero_grad(set_to_none=True)`"
    if "copy_buffers" in culprit.frame.code or _is_buffer_copy(culprit):
        kept = kept or (
            f"give the forward a copy of the buffer: `{name or 'buffer'}.clone()` at "
            f"{saved_tensors.place(victims)}"
        )
        return f"{kept}; or write the buffer after backward()"
    if is_leaf and write is not None and not write.grad_mode:
        # An update of a parameter or a buffer: a new tensor in its place would not be the same.
        kept = kept or (
            f"let the forward use a copy: `{name or 'the tensor'}.clone()` at "
            f"{saved_tensors.place(victims)}"
        )
        moved = order_of_calls.may_move_below(culprit, last) if last is not None else None
        if moved is not None and last is not None:
            return f"move {moved} below the backward() at {sites.where(last)}; or {kept}"
        return f"{kept}; or call backward() before {order_of_calls.spoken(culprit.frame)} runs"
    if write is not None and _is_hook(data.frames(write.stack), culprit):
        returned = in_place.returned(culprit)
        if returned is not None:
            return returned
    is_held = names.is_held(saved.counter)
    own = read_copy.within(culprit, savers or victims)
    reading = read_copy.read_copy(culprit, own)
    instead = _mended(data, blame, culprits, reading, is_held=is_held)
    if reading is not None:
        is_copied = (instead or "").startswith(in_place.COPY_BEFORE)
        alone = not reading.is_aliased and all(saver in own for saver in savers)
        if is_copied and (reading.statement is None or alone):
            instead = None  # the statement would save the copy, which it writes as well
        if instead is None and victims and victims[0] in own:
            what = f"`{name}`" if name else "it"
            kept = reading.help or kept
            kept = kept or f"read a `.clone()` of {what} at {read_copy.place_of(own)}"
    if is_held and kept:
        return kept
    return (
        in_place.module_inplace(culprit, op)
        or instead
        or kept
        or f"write into a copy: `.clone()` {f'`{name}`' if name else 'the tensor'} before "
        f"{sites.where(culprit.frame)}, or use `.clone()` of it at {saved_tensors.place(victims)}"
    )


def _is_hook(stack: Sequence[Frame], culprit: Site) -> bool:
    """Whether a function of the user's that torch called by itself made the write."""
    at = next((k for k, frame in enumerate(stack) if frame == culprit.frame), -1)
    caller = stack[at + 1] if 0 <= at < len(stack) - 1 else None
    if caller is None or caller.is_user:
        return False
    name = culprit.frame.function.rsplit(".", 1)[-1]
    return "/torch/" in caller.file.replace("\\", "/") and name not in ("forward", "backward")


def _mended(
    data: Data,
    blame: Blame,
    culprits: tuple[Site, ...],
    reading: read_copy.ReadCopy | None,
    *,
    is_held: bool,
) -> str | None:
    """What the lines that wrote read without their writes: all of them, or None."""
    found: list[str] = []
    for index, culprit in enumerate(culprits):
        ops = [
            op_names.short(write.op)
            for write in blame.writes
            if (f := sites.user_frame(data.frames(write.stack)))
            and (f.file, f.line) == sites.line_of(culprit)
        ]
        if index and _is_of_new(culprits[0], culprit):
            continue
        own = reading.statement if reading is not None and not index else None
        text = in_place.out_of_place(culprit, ops, is_held=is_held, below_copy=own)
        if text is None:
            return None
        found.append(text)
    return ", and ".join(found) or None


# Their result is what they save for backward: a later write of it would be refused like this one.
_SAVE_RESULT = re.compile(
    r"(sigmoid|tanh|exp|exp2|expm1|sqrt|rsqrt|relu|softmax|log_softmax|reciprocal|tan|elu|selu"
    r"|celu|leaky_relu|rrelu|threshold|hardtanh|dropout)_"
)


def _is_of_new(first: Site, later: Site) -> bool:
    """Whether a later line writes the new tensor, once the first line makes one."""
    name = bindings.written_name(first)
    return (
        name is not None
        and name == bindings.written_name(later)
        and first.frame.file == later.frame.file
        and first.frame.function == later.frame.function
        and first.frame.line < later.frame.line
        and not _SAVE_RESULT.fullmatch(op_names.short(first.op or ""))
    )


def _fix_step(
    graph: Graph,
    data: Data,
    culprit: Site,
    write: Write | None,
    victims: tuple[Site, ...],
    names: Names,
    call: Backward | None,
    savers: Sequence[Site],
) -> str:
    """An optimizer updated what the graph still needs; `call` is the backward that failed."""
    backward = data.frames(call.stack) if call is not None else ()
    step = optimizer_step.step_call(culprit)
    place = optimizer_step.step_frame(culprit)
    line = sites.where(place)
    if any(
        (f.file, f.line, f.function) == (place.file, place.line, place.function) for f in backward
    ):
        return (
            f"`{step}` ({line}) calls its closure more than once and updates in between: run the "
            f"forward ({saved_tensors.place(victims)}) inside the closure, so that each call has "
            "a new graph"
        )
    loops = call is not None and any(
        earlier.stack == call.stack and earlier is not call for earlier in data.backwards
    )
    links = _carried(graph, data, write)
    if links:
        node, made = links[0]
        again = write is not None and runs_again(data, node.thread, write.sequence, made)
        target = names.of_node(node.id) or detach.carried_name(made, made)
        what = detach.detached(target, made)
        made = detach.assigning(made, target)
        if again:
            lines = " and ".join(dict.fromkeys(sites.where(site.frame) for _, site in links))
            cuts = " and ".join(dict.fromkeys(_cut(names.of_node(n.id), s) for n, s in links))
            return (
                f"the graph goes back beyond `{step}`, into an earlier iteration, through what is "
                f"made at {lines}: cut it between the iterations, {cuts}; or "
                "sum the losses and call backward() once"
            )
        if loops:
            spoken = f"`{target}`" if target else "the tensor"
            return (
                f"{spoken} is made once, at {sites.where(made.frame)}, before `{step}` ({line}), "
                "and used in every iteration: compute it again in each one; or, if nothing below "
                f"it is to be trained, {what} there"
            )
    return _reordered(culprit, place, backward, victims, savers)


def _reordered(
    culprit: Site,
    place: Frame,
    backward: Sequence[Frame],
    victims: tuple[Site, ...],
    savers: Sequence[Site],
) -> str:
    """The step after the backward that needs the old values, or the forward again after it."""
    step, line = optimizer_step.step_call(culprit), sites.where(place)
    last = sites.user_frame(backward)
    steps = (culprit.frame, *culprit.callers)
    met = order_of_calls.meeting(steps, backward)
    again = f"run the forward ({saved_tensors.place(victims)}), and its loss, again after it"
    if met is None or last is None:
        below = f"the backward() at {sites.where(last)}" if last else "the last backward()"
        return f"move `{step}` ({line}) below {below} that uses this graph, or {again}"
    first, second = met
    lines = [order_of_calls.line_in(victim, first) for victim in (*victims[:1], *savers)]
    forward = min((f for f in lines if f is not None), key=lambda f: f.line, default=None)
    if forward is not None:
        again = f"run {_again(forward, first, second)} again after it"
        again += ", for a graph of the new values"
    cleared = step.rpartition(".step(")[0] + ".zero_grad"
    if order_of_calls.calls_between(first, second, cleared):
        # What it steps along would be gone.
        return f"`{step}` ({line}) has changed what the graph needs: {again}"
    if (first.file, first.line) == (place.file, place.line) and second.line > first.line:
        moved = Site(frame=first)
        if order_of_calls.may_move_below(moved, second):
            own = _only_its_own(second, step)
            below = f"the backward() at {sites.where(second)}{own}"
            return f"move `{step}` ({line}) below {below}; or {again}"
    if second.line > first.line:
        upper = order_of_calls.above(second, first)
        if upper is not None:
            return (
                f"move {order_of_calls.spoken(second)}, which runs backward through this graph, "
                f"above {sites.where(upper)}, where `{step}` ({line}) is called first; or {again}"
            )
        return (
            f"`{step}` ({line}) runs within {order_of_calls.spoken(first)}, before "
            f"{order_of_calls.spoken(second)} runs backward through this graph: {again}"
        )
    return f"{again}: `{step}` ({line}) has changed what the graph needs"


def _again(forward: Frame, step: Frame, backward: Frame) -> str:
    """The lines to run a second time: from the first one that saved a parameter to the loss."""
    found = order_of_calls.between(forward, step, backward)
    frames = [
        dataclasses.replace(forward, line=node.lineno, column=node.col_offset) for node in found
    ]
    plain = [frame for frame, node in zip(frames, found, strict=True) if _is_plain(node)]
    if not found or frames[0].line > forward.line:
        return f"{order_of_calls.spoken(forward)}, and what is made of it for the loss,"
    if len(plain) == len(found) and len(found) <= 3:
        told = [order_of_calls.spoken(frame) for frame in frames]
        return told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}"
    last = found[-1].end_lineno or found[-1].lineno
    upto = sites.where(dataclasses.replace(forward, line=last))
    return f"all that leads from {order_of_calls.spoken(frames[0])} to {upto}"


def _is_plain(node: ast.stmt) -> bool:
    return not isinstance(node, statements.BLOCKS)


def _only_its_own(backward: Frame, step: str) -> str:
    """How the later backward keeps out of the gradients that the earlier optimizer steps along."""
    function = bindings.function_of(Site(frame=backward)) or syntax.around(
        backward.file, backward.line
    )
    call = statements.statement(Site(frame=backward))
    if not (isinstance(call, ast.Expr) and isinstance(call.value, ast.Call)):
        return ""
    called = call.value.func
    plain = isinstance(called, ast.Attribute) and called.attr == "backward"
    if function is None or not plain or call.value.args or call.value.keywords:
        return ""
    owner = step.rpartition(".step(")[0]
    for node in ast.walk(function):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        name = ast.unparse(node.func.value)
        if node.func.attr == "step" and node.lineno > backward.line and name != owner:
            own = f"inputs=[p for g in {name}.param_groups for p in g['params']]"
            return (
                f", as `{ast.unparse(called)}({own})`, so that it adds nothing to the gradients "
                f"that `{owner}` steps along"
            )
    return ""


def _is_buffer_copy(culprit: Site) -> bool:
    return "copy_(" in culprit.frame.code and "buffer" in culprit.frame.code


def _cut(name: str | None, made: Site) -> str:
    target = name or detach.carried_name(made, made)
    path = carried.path_of(made, target) if target else ""
    return carried.cut(path, live_frames.frames_above()) or detach.detached(target, made)


def _carried(graph: Graph, data: Data, write: Write | None) -> list[tuple[Node, Site]]:
    """Where a graph made after `write` still reaches nodes made before it: the carried tensors."""
    if write is None:
        return []
    sequences = graph.sequences()
    new = [
        sequence is not None and thread == write.thread and sequence >= write.sequence
        for thread, sequence in zip(graph.threads(), sequences, strict=True)
    ]
    old: dict[int, int] = {}
    for index, next_ones in enumerate(graph.following()):
        for following in next_ones if new[index] else ():
            sequence = sequences[following] if following >= 0 else None
            if sequence is not None and not new[following]:
                old[following] = sequence
    found: dict[tuple[str, int], tuple[Node, Site]] = {}
    for index in sorted(old, key=lambda index: -old[index]):
        node = graph.nodes[index]
        stack, _ = data.node_stack(node.thread, old[index])
        made = sites.site(data.frames(stack))
        if made is not None and len(found) < _MOST_CARRIED:
            found.setdefault(sites.line_of(made), (node, made))
    return list(found.values())
