"""What to type instead of a write to a tensor that is saved for backward."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

from gradext.diagnosis.model import Site
from gradext.rules.graph_copy import Graph, Node, Saved
from gradext.rules.rewrite import detach, in_place, optimizer_step
from gradext.rules.wording import saved_tensors
from gradext.rules.wording.loops import runs_again
from gradext.source import sites, statements

if TYPE_CHECKING:
    from gradext.objects.naming import Names
    from gradext.recording.events import Backward, Write
    from gradext.recording.tables import Data


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
) -> str:
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
    if optimizer_step.is_optimizer_step(culprit):
        return _fix_step(graph, data, culprit, write, victims, names, call)
    inside = [frame.file.replace("\\", "/") for frame in culprit.stack]
    op = (write.op if write else culprit.op) or ""
    if "embedding_renorm_" in op:
        return (
            f"nn.Embedding(max_norm=...) rescales its weight in place when it is called: use "
            f"`{name or 'weight'}.clone()` at {saved_tensors.place(victims)}, or do the lookup "
            "before that line"
        )
    if any("/nn/parallel/" in path or "/torch/distributed/" in path for path in inside):
        return (
            "DistributedDataParallel copies buffers in place before each forward: construct it "
            "with broadcast_buffers=False, or run one backward per forward"
        )
    if re.search(r"zero_grad", culprit.frame.code):
        return "let zero_grad() drop the gradients: `zero_grad(set_to_none=True)`"
    if "copy_buffers" in culprit.frame.code or _is_buffer_copy(culprit):
        return (
            f"give the forward a copy of the buffer: `{name or 'buffer'}.clone()` at "
            f"{saved_tensors.place(victims)}, or write the buffer after backward()"
        )
    is_leaf = names.is_of_leaf(saved.counter) or (saved.is_leaf and name is None)
    if is_leaf and write is not None and not write.grad_mode:
        # An update of a parameter or a buffer: a new tensor in its place would not be the same.
        below = f"the backward() at {sites.where(last)}" if last else "the last backward()"
        line = f"`{statements.text_of(culprit)}` ({sites.where(culprit.frame)})"
        copied = f"`{name or 'the tensor'}.clone()` at {saved_tensors.place(victims)}"
        return f"move {line} below {below}, or let the forward use a copy: {copied}"
    copied = f"`{name}`" if name else "the tensor"
    return (
        in_place.module_inplace(culprit, op)
        or in_place.out_of_place(culprit)
        or f"write into a copy: `.clone()` {copied} before {sites.where(culprit.frame)}, or use "
        f"`.clone()` of it at {saved_tensors.place(victims)}"
    )


def _fix_step(
    graph: Graph,
    data: Data,
    culprit: Site,
    write: Write | None,
    victims: tuple[Site, ...],
    names: Names,
    call: Backward | None,
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
    last = sites.user_frame(backward)
    loops = call is not None and any(
        earlier.stack == call.stack and earlier is not call for earlier in data.backwards
    )
    carried = _carried(graph, data, write)
    if carried is not None:
        node, made = carried
        again = write is not None and runs_again(data, node.thread, write.sequence, made)
        target = names.of_node(node.id) or detach.carried_name(made, made)
        what = detach.detached(target, made)
        made = detach.assigning(made, target)
        if again:
            return (
                f"the graph goes back beyond `{step}`, into an earlier iteration, through what is "
                f"made at {sites.where(made.frame)}: cut it between the iterations, {what}; or sum "
                "the losses and call backward() once"
            )
        if loops:
            spoken = f"`{target}`" if target else "the tensor"
            return (
                f"{spoken} is made once, at {sites.where(made.frame)}, before `{step}` ({line}), "
                "and used in every iteration: compute it again in each one; or, if nothing below "
                f"it is to be trained, {what} there"
            )
    below = f"the backward() at {sites.where(last)}" if last else "the last backward()"
    return (
        f"move `{step}` ({line}) below {below} that uses this graph, or run the forward "
        f"({saved_tensors.place(victims)}) again after it"
    )


def _is_buffer_copy(culprit: Site) -> bool:
    return "copy_(" in culprit.frame.code and "buffer" in culprit.frame.code


def _carried(graph: Graph, data: Data, write: Write | None) -> tuple[Node, Site] | None:
    """Where a graph made after `write` still reaches nodes made before it: the carried tensor."""
    if write is None:
        return None
    new = [
        n.sequence is not None and n.thread == write.thread and n.sequence >= write.sequence
        for n in graph.nodes
    ]
    if not any(new):
        return None
    best: Node | None = None
    for index, node in enumerate(graph.nodes):
        if not new[index]:
            continue
        for following in node.next:
            if following < 0 or new[following]:
                continue
            old = graph.nodes[following]
            if old.sequence is not None and (
                best is None or best.sequence is None or old.sequence > best.sequence
            ):
                best = old
    if best is None or best.sequence is None:
        return None
    stack, _ = data.node_stack(best.thread, best.sequence)
    made = sites.site(data.frames(stack))
    return (best, made) if made is not None else None
