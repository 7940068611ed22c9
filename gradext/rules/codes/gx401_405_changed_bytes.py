"""GX401 to GX405 as a guard finds them: from bytes that changed to the line that changed them.

The guard (csrc/guard) says which tensor, when it was saved and, for raw writes, between which
lines; the journal says which ops wrote to that memory. These rules put the two together.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

from gradext.base import op_names
from gradext.diagnosis.model import Diagnosis, Frame, Site
from gradext.rules.codes import gx401_silent_write
from gradext.rules.graph_copy import Graph, Node, Saved, saved_of
from gradext.rules.rewrite import in_place, optimizer_step
from gradext.rules.wording import saved_tensors
from gradext.source import sites, statements

if TYPE_CHECKING:
    from gradext.objects.naming import Names
    from gradext.recording.events import Data, Write

_ENGINE = "_engine_run_backward"
_UNDECLARED = (
    "no op declares a write there: it came from outside torch, or from an op that does not say "
    "what it writes (docs/ops-that-lie.md)"
)


def changed(facts: dict[str, Any], data: Data, names: Names) -> Diagnosis:
    """GX401 or GX402: a saved tensor's bytes are not those that were saved."""
    node, item = _node(facts), saved_of(facts["saved"], facts["attribute"])
    name, spoken = saved_tensors.tensor_text(item, names)
    graph = Graph((node,), True)
    label = f"{op_names.of_node(node.name)} saves {f'`{name}`' if name else 'it'} for backward"
    victims = saved_tensors.victims_of(data, graph, node, label)
    blame = _blame(facts, item, data, name)
    hooked = bool(facts["is_hooked"])
    how = _how(blame)
    if hooked:
        message = (
            f"{spoken} was saved for backward by {node.name} through saved-tensor hooks, which "
            f"switch torch's check off, and {how}: backward computes with the new values, and the "
            "gradients are wrong without an error."
        )
    else:
        message = (
            f"{spoken} was saved for backward by {node.name}, and {how}: backward computes with "
            "the new values, and the gradients are wrong without an error."
        )
    window = None
    notes = list(blame.notes)
    if not blame.culprits:
        window = _window(facts, data, victims)
    return Diagnosis(
        code="GX402" if hooked else "GX401",
        severity="error",
        message=message,
        culprits=blame.culprits,
        victims=victims,
        fix=_fix(blame, victims, name, hooked),
        notes=tuple(notes),
        window=window,
    )


@dataclasses.dataclass
class _Blame:
    """What changed the bytes: ops of the journal, an exchange of memory, or a line of Python."""

    culprits: tuple[Site, ...] = ()
    writes: tuple[Write, ...] = ()
    exchanged: bool = False
    notes: tuple[str, ...] = ()


def _blame(facts: dict[str, Any], item: Saved, data: Data, name: str | None) -> _Blame:
    from gradext.recording import events

    since = facts["order"]
    writes = [
        write
        for write in data.writes_of_storage(item.storage)
        if write.order > since
        and write.begin != write.end
        and (
            not item.is_strided
            or events.overlap(write, item.offset, item.itemsize, item.sizes, item.strides)
        )
    ]
    if writes:
        counted = facts["is_hooked"] and not writes[0].declared_only
        notes = () if counted else (saved_tensors.why_unseen(writes[0]),)
        return _Blame(saved_tensors.culprits(data, writes, name), tuple(writes), False, notes)
    exchanges = [write for write in data.exchanges(item.counter) if write.order > since]
    if exchanges:
        label = f"gives {f'`{name}`' if name else 'the tensor'} other memory"
        found = [sites.site(data.frames(w.stack), op=w.op, label=label) for w in exchanges]
        note = "assigning to `.data` exchanges the memory and leaves the version counter as it is"
        return _Blame(sites.distinct(found), tuple(exchanges), True, (note,))
    if facts["line"]:
        label = f"changes the bytes of {f'`{name}`' if name else 'the saved tensor'}"
        found = [_line(data, facts["line"], label)]
        return _Blame(sites.distinct(found), (), False, (_UNDECLARED,))
    note = (
        "no op wrote there, and no one line of Python is known to have: another thread, a C "
        "extension, or a debugger that holds the trace function"
    )
    return _Blame((), (), False, (note,))


def _line(data: Data, stack: int, label: str) -> Site | None:
    """A line that is known as a whole: the stack is of the moment when it began."""
    place = sites.site(data.frames(stack), label=label)
    if place is None:
        return None
    statement = statements.statement(place)
    columns: tuple[int | None, int | None] = (None, None)
    end = place.frame.line
    if (
        statement is not None
        and statement.lineno == end
        and not isinstance(statement, statements.BLOCKS)
    ):
        columns = (statement.col_offset, statement.end_col_offset)
        end = statement.end_lineno or end
    frame = dataclasses.replace(place.frame, column=columns[0], end_column=columns[1], end_line=end)
    return dataclasses.replace(place, frame=frame)


def _how(blame: _Blame) -> str:
    if blame.exchanged:
        return "`.data = ...` has given it other memory since"
    if not blame.writes:
        return "its memory has been written since, past every version counter"
    first = blame.writes[0]
    op = op_names.short(first.op)
    if first.declared_only:
        return f"{op} wrote it without moving its version counter"
    return f"{op} has written its memory since"


def _window(
    facts: dict[str, Any], data: Data, victims: tuple[Site, ...]
) -> tuple[Frame, Frame] | None:
    after = sites.user_frame(data.frames(facts["after"])) if facts["after"] else None
    before = sites.user_frame(data.frames(facts["before"])) if facts["before"] else None
    if after is None and victims:
        after = victims[0].frame
    if before is None:
        before = sites.user_frame(data.frames(facts["now"]))
    if before is None and data.backwards:
        before = sites.user_frame(data.frames(data.backwards[-1].stack))
    return (after, before) if after and before else None


def _node(facts: dict[str, Any]) -> Node:
    from gradext.rules.graph_copy import _forward_code

    thread, sequence = facts["id"]
    return Node(
        name=facts["name"],
        thread=thread,
        sequence=None if sequence == (1 << 64) - 1 else sequence,
        next=(),
        inner_of=-1,
        saved=(),
        hooked=(),
        is_freed=False,
        is_readable=True,
        forward_code=_forward_code(facts["node"]),
    )


def _fix(blame: _Blame, victims: tuple[Site, ...], name: str | None, hooked: bool) -> str:
    copied = f"`{name}.clone()`" if name else "a `.clone()`"
    there = saved_tensors.place(victims)
    if not blame.culprits:
        return f"save {copied} at {there}, or keep the memory to torch until backward() has run"
    culprit = blame.culprits[0]
    place = sites.where(culprit.frame)
    if optimizer_step.is_optimizer_step(culprit):
        return saved_tensors.later_step(culprit, victims, blame.writes[0] if blame.writes else None)
    if hooked:
        better = in_place.out_of_place(culprit)
        copying = "or let the pack hook return a copy (`tensor.clone()`)"
        return f"{better}; {copying}" if better else f"write into a copy at {place}, {copying}"
    if blame.exchanged:
        return (
            f"at {place} exchange the memory after backward(), or run the forward ({there}) "
            "again after it"
        )
    if blame.writes:
        return gx401_silent_write.without_data(culprit)
    code = culprit.frame.code
    function = culprit.frame.function.rsplit(".", 1)[-1]
    if function in {"forward", "setup_context"}:
        return (
            f"at {place} write into a fresh tensor and return that; a Function that does write its "
            "input calls ctx.mark_dirty(input) and returns it, and writes with torch ops"
        )
    if "numpy" in code or re.match(r"[\w.\[\]]+\[.*\]\s*[-+*/]?=", code):
        return (
            f"give torch a copy of its own (`torch.tensor(array)`, or {copied} before the memory "
            f"is handed out) instead of sharing what {place} writes, or write after backward()"
        )
    return f"write into {copied} at {place}, or after backward() has run"


# --- GX403 ------------------------------------------------------------------------------------


def gradient_written(facts: dict[str, Any], data: Data) -> Diagnosis:
    """GX403: a node wrote in a gradient that another one was still to use."""
    writes = [
        write
        for write in data.writes_of_storage(facts["storage"])
        if facts["since"] < write.order <= facts["until"] and _in_the_engine(data, write)
    ]
    label = "writes a gradient in place that others still use"
    culprits = sites.distinct(
        sites.site(data.frames(write.stack), op=write.op, label=label) for write in writes
    )
    producer, writer = op_names.short(facts["producer"]), op_names.short(facts["writer"])
    stack, _ = data.node_stack(*facts["producer_id"])
    shares = f"{producer}'s backward hands one gradient to several nodes"
    victims = sites.distinct([sites.site(data.frames(stack), label=shares)] if stack else [])
    who = "a hook, or the backward formula, of" if culprits else "the backward of"
    fix = ""
    window = None
    if culprits:
        fix = in_place.out_of_place(culprits[0]) or ""
        fix = fix or f"return a new tensor at {sites.where(culprits[0].frame)}"
        fix += "; never write into the gradient that autograd passes in"
    else:
        stack, _ = data.node_stack(*facts["writer_id"])
        made = sites.user_frame(data.frames(stack))
        last = data.backwards[-1].stack if data.backwards else 0
        end = sites.user_frame(data.frames(last))
        window = (made, end) if made and end else None
        fix = f"let the backward of {writer} return a new tensor instead of writing into its input"
    return Diagnosis(
        code="GX403",
        severity="error",
        message=(
            f"The gradient that {producer} hands to several nodes was written in place by {who} "
            f"{writer} before {op_names.short(facts['consumer'])} had used it: the other gradients are "
            "wrong without an error."
        ),
        culprits=culprits,
        victims=victims,
        fix=fix,
        notes=(
            "autograd passes one tensor to all who get the same gradient; it copies none of them",
        ),
        window=window,
    )


def _in_the_engine(data: Data, write: Write) -> bool:
    """Whether Python code that the engine called did it, and not the engine itself."""
    for frame in data.frames(write.stack):
        if frame.function.rsplit(".", 1)[-1] == _ENGINE:
            return False
        if frame.is_user:
            return True
    return False


# --- GX404 ------------------------------------------------------------------------------------


def overlapping(facts: dict[str, Any], data: Data) -> Diagnosis:
    """GX404: one write through expanded or self-overlapping memory."""
    op = op_names.short(facts["op"])
    sizes, strides, written = facts["sizes"], facts["strides"], facts["written_sizes"]
    label = f"{op} writes a {written} part of it"
    culprits = sites.distinct([sites.site(data.frames(facts["line"]), op=facts["op"], label=label)])
    label = f"makes a {sizes} tensor with strides {strides}: several elements are one"
    victims = sites.distinct([sites.site(data.frames(facts["made"]), label=label)])
    there = sites.where(victims[0].frame) if victims else "where it is made"
    return Diagnosis(
        code="GX404",
        severity="warning",
        message=(
            f"{op} wrote a {written} part of a {sizes} tensor whose memory overlaps itself "
            f"(strides {strides}): elements that it does not name changed as well."
        ),
        culprits=culprits,
        victims=victims,
        fix=f"give it memory of its own at {there}: `.clone()` (or `.repeat()` for `.expand()`)",
        notes=("torch refuses this for the whole tensor, and not for a part of it",),
    )


# --- GX405 ------------------------------------------------------------------------------------


_STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}


def together(found: list[tuple[str, Diagnosis]]) -> list[Diagnosis]:
    """One diagnosis for the tensors that the same lines changed, in their order."""
    groups: dict[object, list[tuple[str, Diagnosis]]] = {}
    for name, diagnosis in found:
        places = tuple(sites.line_of(site) for site in diagnosis.culprits)
        groups.setdefault((places, diagnosis.window), []).append((name, diagnosis))
    told = []
    for group in groups.values():
        first = group[0][1]
        if len(group) > 1:
            listed = ", ".join(f"`{name}`" for name, _ in group[:4])
            more = len(group) - 4
            listed += f" and {more} more" if more > 0 else ""
            message = f"{listed} are guarded, and their bytes are not what they were."
            first = dataclasses.replace(first, message=message)
        told.append(first)
    return told


def watched(facts: dict[str, Any], name: str, data: Data) -> Diagnosis:
    """GX405: a tensor that a guard watches is not what it was."""
    writes = [
        write
        for write in data.writes_of_storage(facts["storage"])
        if write.order > facts["order"] and write.begin != write.end
    ]
    writes += [w for w in data.exchanges(facts["counter"]) if w.order > facts["order"]]
    writes.sort(key=lambda write: write.order)
    found = [saved_tensors.write_site(data, write, name) for write in writes]
    notes: list[str] = []
    if not found and facts["line"]:
        found = [_line(data, facts["line"], f"changes the bytes of `{name}`")]
        notes.append(_UNDECLARED)
    culprits = sites.distinct(found)
    window = None
    if not culprits:
        after = sites.user_frame(data.frames(facts["after"] or facts["entered"]))
        before = sites.user_frame(data.frames(facts["before"] or facts["now"]))
        window = (after, before) if after and before else None
        notes.append("no op wrote there, and no one line of Python is known to have")
    fix = "leave it out of what is trained: optimizer, in-place updates, buffers in training mode"
    if culprits and optimizer_step.is_optimizer_step(culprits[0]):
        fix = f"take `{name}` out of the optimizer at {sites.where(culprits[0].frame)}"
    elif name.rsplit(".", 1)[-1] in _STATISTICS:
        fix = "call .eval() on the module: in training mode it updates its running statistics"
    elif culprits:
        fix = f"write into `{name}.clone()` at {sites.where(culprits[0].frame)}"
    return Diagnosis(
        code="GX405",
        severity="error",
        message=f"`{name}` is guarded, and its bytes are not what they were.",
        culprits=culprits,
        fix=fix,
        notes=tuple(notes),
        window=window,
    )
