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
from gradext.recording.events import WRITES
from gradext.rules.graph_copy import Node, Saved, forward_code, saved_of
from gradext.rules.rewrite import in_place, optimizer_step, shared_memory
from gradext.rules.wording import context_attributes, guarded_writes, saved_tensors
from gradext.source import sites

if TYPE_CHECKING:
    from gradext.objects.naming import Names
    from gradext.recording.events import Write
    from gradext.recording.tables import Data


def changed(facts: dict[str, Any], data: Data, names: Names) -> Diagnosis | None:
    """GX401 or GX402: a saved tensor's bytes are not those that were saved.

    None for a tensor on the ctx of a Function that writes it in its own backward: its scratch.
    """
    if facts["saved"]["kind"] == "context":
        return _kept_changed(facts, data, names)
    node, item = _node(facts), saved_of(facts["saved"], facts["attribute"])
    name, spoken = saved_tensors.tensor_text(item, names)
    if "filled" in facts:
        return _packed_too_early(facts, node, item, data, names)
    label = f"{op_names.of_node(node.name)} saves {f'`{name}`' if name else 'it'} for backward"
    victims = saved_tensors.victims_of(data, None, node, label)
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
    is_held = names.is_of_leaf(item.counter) or names.is_held(item.counter)
    notes = list(blame.notes)
    if not blame.culprits:
        window = _window(facts, data, victims)
    return Diagnosis(
        code="GX402" if hooked else "GX401",
        message=message,
        culprits=blame.culprits,
        victims=victims,
        fix=_fix(blame, victims, name, hooked, is_held),
        notes=tuple(notes),
        window=window,
    )


def _packed_too_early(
    facts: dict[str, Any], node: Node, item: Saved, data: Data, names: Names
) -> Diagnosis:
    """GX402: the op filled what it saves after a pack hook had taken a copy."""
    _, spoken = saved_tensors.tensor_text(item, names)
    writes = data.writes[data.writes[:, WRITES.order] == facts["filled"]]
    write = data.write(writes[0]) if len(writes) else None
    op = op_names.short(write.op) if write is not None else node.name.removesuffix("Backward0")
    victims = saved_tensors.victims_of(
        data, None, node, f"{op_names.of_node(node.name)} saves it for backward"
    )
    label = f"{op} fills what it has saved"
    culprit = sites.site(data.frames(write.stack), op=write.op, label=label) if write else None
    return Diagnosis(
        code="GX402",
        message=(
            f"{spoken} was saved for backward by {node.name} through saved-tensor hooks before "
            f"{op} had filled it: the pack hook took a copy of what was there before, backward "
            "computes with that, and the gradients are wrong without an error."
        ),
        culprits=sites.distinct([culprit]) if culprit else victims,
        victims=victims,
        fix=(
            f"call it at {saved_tensors.place(victims)} under hooks that copy nothing, `with "
            "torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):`; or use an op "
            "that saves only what is ready"
        ),
        notes=(
            f"{op} hands a new tensor to autograd and writes into it afterwards: without hooks, or "
            "with a pack hook that returns the tensor itself, backward reads what was written",
        ),
    )


def _kept_changed(facts: dict[str, Any], data: Data, names: Names) -> Diagnosis | None:
    """`ctx.weight = weight` in forward, and then somebody writes `weight`."""
    node, attribute = _node(facts), facts["attribute"]
    item = saved_of(facts["saved"], attribute)
    name, spoken = saved_tensors.tensor_text(item, names)
    blame = _blame(facts, item, data, name)
    own = context_attributes.backward_code(facts["node"])
    if own is not None and blame.writes:
        place = (own.co_filename, own.co_name, own.co_firstlineno)
        if all(_is_within(data.frames(write.stack), place) for write in blame.writes):
            return None
    made = saved_tensors.victims_of(data, None, node, f"{node.name} keeps it")
    kept = context_attributes.keeping(facts["node"], attribute)
    victims = sites.distinct([*made[:1], kept])
    how = _how(blame)
    if blame.writes and not blame.writes[0].declared_only:
        how = f"{op_names.short(blame.writes[0].op)} has written its memory since"
    fix = _kept_fix(blame, kept, attribute, name)
    return Diagnosis(
        code="GX401",
        message=(
            f"{spoken} is kept by {node.name} as `{attribute}`, and {how}: backward computes with "
            "the new values, and the gradients are wrong without an error."
        ),
        culprits=blame.culprits,
        victims=victims,
        fix=fix,
        notes=(
            "torch checks what goes through ctx.save_for_backward(), and not what is kept as an "
            "attribute of ctx",
        ),
        window=None if blame.culprits else _window(facts, data, victims),
    )


def _is_within(frames: tuple[Frame, ...], function: tuple[str, str, int]) -> bool:
    file, name, first = function
    return any(
        frame.file == file and frame.function.rsplit(".", 1)[-1] == name and frame.line >= first
        for frame in frames
    )


def _kept_fix(blame: _Blame, kept: Site | None, attribute: str, name: str | None) -> str:
    """A copy is safe; save_for_backward lets torch raise where this happens again."""
    copied = context_attributes.copied(kept) if kept is not None and "[" not in attribute else None
    at = f" at {sites.where(kept.frame)}" if kept is not None else " in forward()"
    first = f"keep a copy{at}: `{copied}`" if copied else f"keep `.clone()`s in `{attribute}`{at}"
    if blame.culprits and not blame.exchanged:
        culprit = blame.culprits[0]
        better = in_place.out_of_place(culprit)
        if better is not None and not optimizer_step.is_optimizer_step(culprit):
            first += f"; or {better}"
    return f"{first}; with `ctx.save_for_backward(...)` torch itself refuses a later write"


@dataclasses.dataclass
class _Blame:
    """What changed the bytes: ops of the journal, an exchange of memory, or a line of Python."""

    culprits: tuple[Site, ...] = ()
    writes: tuple[Write, ...] = ()
    exchanged: bool = False
    notes: tuple[str, ...] = ()


def _blame(facts: dict[str, Any], item: Saved, data: Data, name: str | None) -> _Blame:
    from gradext.recording import overlap

    since = facts["order"]
    writes = [
        write
        for write in data.writes_of_storage(item.storage)
        if write.order > since
        and write.begin != write.end
        and (
            not item.is_strided
            or overlap.overlap(write, item.offset, item.itemsize, item.sizes, item.strides)
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
        found = [guarded_writes.line_of(data, facts["line"], label)]
        return _Blame(sites.distinct(found), (), False, (guarded_writes.UNDECLARED,))
    note = (
        "no op wrote there, and no one line of Python is known to have: another thread, a C "
        "extension, or a debugger that holds the trace function"
    )
    return _Blame((), (), False, (note,))


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
        forward_code=forward_code(facts["node"]),
    )


def _fix(
    blame: _Blame, victims: tuple[Site, ...], name: str | None, hooked: bool, is_held: bool
) -> str:
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
            f"at {place} exchange the memory after backward(), or run the forward ({there}), "
            "and its loss, again after it"
        )
    if blame.writes:
        return saved_tensors.without_data(culprit, victims, is_held=is_held)
    code = culprit.frame.code
    function = culprit.frame.function.rsplit(".", 1)[-1]
    if function in {"forward", "setup_context"}:
        return (
            f"at {place} write into a fresh tensor and return that; a Function that does write its "
            "input calls ctx.mark_dirty(input) and returns it, and writes with torch ops"
        )
    copied_once = shared_memory.own_copy(culprit)
    if copied_once is not None:
        other = in_place.out_of_place(culprit)
        return f"{copied_once}; or {other or 'write after backward()'}"
    if re.search(r"\bout=", code):
        return in_place.out_of_place(culprit) or (
            f"at {place} let the result go to an array of its own, without `out=`; or write after "
            "backward()"
        )
    if "numpy" in code or re.match(r"[\w.\[\]]+\[.*\]\s*[-+*/]?=", code):
        return (
            f"give torch a copy of its own (`torch.tensor(array)`, or {copied} before the memory "
            f"is handed out) instead of sharing what {place} writes, or write after backward()"
        )
    return f"write into {copied} at {place}, or after backward() has run"


# --- GX403 ------------------------------------------------------------------------------------


# --- GX404 ------------------------------------------------------------------------------------


# --- GX405 ------------------------------------------------------------------------------------
