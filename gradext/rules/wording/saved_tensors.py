"""The words for a tensor that was saved for backward and of those who wrote it.

Shared by the rules that tell of one: stale (GX101), silent_writes (GX401) and guarded (GX401,
GX402). Works from a copy of the graph (evidence) and a recording's data; touches no tensor.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradext.base import package
from gradext.diagnosis.model import Diagnosis, Frame, Site
from gradext.rules.graph_copy import Graph, Node, Saved
from gradext.rules.rewrite import in_place, optimizer_step, shared_memory
from gradext.source import bindings, live_frames, sites, statements

if TYPE_CHECKING:
    from gradext.objects.naming import Names
    from gradext.recording.events import Write
    from gradext.recording.tables import Data

MOST_DIAGNOSES = 8
MOST_PAIRS = 256  # stale tensors that are looked at; a parameter may be saved 10,000 times


def victims_of(data: Data, graph: Graph | None, node: Node, label: str) -> tuple[Site, ...]:
    """The line that made `node`, then the lines that it stands for."""
    found: list[Site | None] = []
    at: Node = node
    if graph is not None and node.sequence is None and node.inner_of >= 0:
        at = graph.nodes[node.inner_of]
    if at.sequence is None:
        return ()
    stack, origin = data.node_stack(at.thread, at.sequence)
    found.append(sites.site(data.frames(stack), op=None, label=label))
    for line in _save_lines(node):
        found.append(Site(frame=line, label="saves it"))
    if origin is not None:
        stack, _ = data.node_stack(*origin)
        found.append(sites.site(data.frames(stack), label="the forward that was differentiated"))
    return sites.distinct(found)


def _save_lines(node: Node) -> list[Frame]:
    """The lines in a user's autograd.Function that call save_for_backward."""
    import dis

    from gradext.source import frames

    found = []
    for code in node.forward_code or ():
        if not package.is_user_file(code.co_filename):
            continue
        for instruction in dis.get_instructions(code):
            if instruction.argval == "save_for_backward":
                found.append(frames.frame_of(code, instruction.offset))
    return found


def tensor_text(saved: Saved, names: Names) -> tuple[str | None, str]:
    """(its name or None, how a sentence speaks of it)."""
    kind = str(saved.dtype).removeprefix("torch.")
    shape = f"{kind} {list(saved.sizes)}"
    name, exact = names.of_saved(saved)
    if name is None:
        article = "An" if kind.startswith("i") else "A"
        return None, f"{article} {shape} tensor"
    if exact:
        return name, f"`{name}` ({shape})"
    return name, f"A {shape} alias of `{name}`"


def called(saved: Saved, name: str, *, is_part: bool = False) -> str:
    """How a sentence speaks of a tensor that only a line of the program has a name for.

    Args:
        is_part: the line writes an item or a slice of what has the name.
    """
    kind = str(saved.dtype).removeprefix("torch.")
    if is_part:
        article = "An" if kind.startswith("i") else "A"
        return f"{article} {kind} {list(saved.sizes)} tensor in the memory of `{name}`"
    return f"Tensor `{name}` ({kind} {list(saved.sizes)})"


def result_name(maker: Site, op_name: str) -> str | None:
    """`a` where the line that made a node reads `a = torch.softmax(...)`, and that is its op.

    Args:
        op_name: of the node, "Softmax".
    """
    names, node = statements.assigned_names(maker), statements.statement(maker)
    value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
    frame = maker.frame
    if len(names) != 1 or value is None or frame.column is None:
        return None
    at = (value.lineno, value.end_lineno, value.col_offset, value.end_col_offset)
    if at != (frame.line, frame.end_line, frame.column, frame.end_column):
        return None  # the op is a part of what is assigned
    # A module that does several things has results within; one that is named as its op has one.
    wanted = op_name.lower()
    for inner in maker.stack:
        owner, _, name = inner.function.rpartition(".")
        said = owner if name == "forward" else name
        if name not in _CALLS and said.replace("_", "").lower() != wanted:
            return None
    return names[0]


_CALLS = {"_wrapped_call_impl", "_call_impl", "inner", "wrapped"}


def write_site(data: Data, write: Write, name: str | None, times: int = 1) -> Site | None:
    op = write.op
    if name is None:
        place = sites.site(data.frames(write.stack))
        name = bindings.written_name(place) if place and not place.stack else None
    label = f"{_verb(write)} {quoted(name)}"
    if write.version_after > write.version_before:
        label += f": version {write.version_before} -> {write.version_after}"
    if times > 1:
        label += f", the first of {times} writes on this line"
    return sites.site(
        data.frames(write.stack),
        op=op,
        version_before=write.version_before,
        version_after=write.version_after,
        label=label,
        times=times,
    )


def _verb(write: Write) -> str:
    if write.is_note:
        return f"{write.op.rsplit('.', 1)[-1]}() counts a write of"
    return f"{write.op.rsplit('::', 1)[-1]} writes"


def quoted(name: str | None) -> str:
    return f"`{name}`" if name else "it in place"


def culprits(
    data: Data,
    writes: Sequence[Write],
    name: str | None,
    touched: Sequence[bool | None] | None = None,
    note: Write | None = None,
) -> tuple[Site, ...]:
    """Lines that wrote, those that touched saved bytes first, then in order of time.

    Args:
        touched: for each write, whether it reached what was saved; None: all did.
        note: a Python call that moves the counter without a write.
    """
    ranked = sorted(
        zip(writes, touched or [True] * len(writes), strict=True),
        key=lambda pair: (pair[1] is False, pair[0].order),
    )
    by_line: dict[tuple[str, int], list[Write]] = {}
    for write, _ in ranked:
        frame = sites.user_frame(data.frames(write.stack))
        if frame is not None:
            by_line.setdefault((frame.file, frame.line), []).append(write)
    found = [write_site(data, same[0], name, len(same)) for same in by_line.values()]
    if note is not None:
        found.append(write_site(data, note, name))
    return sites.distinct(found)


def place(victims: tuple[Site, ...]) -> str:
    return sites.where(victims[0].frame) if victims else "the line that saves it"


def with_count(
    diagnosis: Diagnosis, count: int, savers: Sequence[Site] = (), whole: bool = True
) -> Diagnosis:
    """With a note on how many saved tensors it is about, where the lines do not show that.

    Args:
        savers: where they were saved, one for each line; whole: all of them were counted.
    """
    shown = {sites.line_of(victim) for victim in diagnosis.victims}
    lines = {sites.line_of(saver): sites.where(saver.frame) for saver in savers}
    hidden = [where for line, where in lines.items() if line not in shown]
    if count <= max(len(lines), 1) and not hidden and whole:
        return diagnosis
    note = f"{count} saved tensor{'s are' if count > 1 else ' is'} stale by this write"
    note = note if whole else f"at least {note}"
    if hidden:
        more = f" and {len(hidden) - 4} more lines" if len(hidden) > 4 else ""
        note += f", some of them saved at {', '.join(hidden[:4])}{more}"
    return dataclasses.replace(diagnosis, notes=(*diagnosis.notes, note))


def why_unseen(write: Write) -> str:
    """Why torch's check does not see a write that changed a saved tensor."""
    if write.declared_only:
        return (
            f"{write.op} declares the write in its schema and does not count it, so torch's check "
            "cannot see it"
        )
    return (
        "`.data` (like numpy, DLPack and a storage) shares the memory and not the version counter, "
        "so torch's check cannot see the write"
    )


def later_step(culprit: Site, victims: tuple[Site, ...], write: Write | None) -> str:
    """The fix where an optimizer's step wrote what a graph still needs."""
    step, called = optimizer_step.step_call(culprit), optimizer_step.step_frame(culprit)
    again = f"run the forward ({place(victims)}), and its loss, again after it"
    if _is_within(called, victims):
        # Nothing can be moved out: what it wrote is used by a backward that it calls itself.
        wrote = f"`{statements.text_of(culprit)}` ({sites.where(culprit.frame)})"
        return f"{wrote} has changed what the graph needs: {again}"
    line = sites.where(called)
    fix = f"move `{step}` ({line}) below the last backward() that uses this graph, or {again}"
    if write is not None and write.declared_only:
        fix += "; without fused=True torch raises here"
    return fix


def _is_within(step: Frame, victims: tuple[Site, ...]) -> bool:
    """Whether the call of a step() runs now, or has run the forward that saved the tensor."""
    live = ((f.f_code.co_filename, f.f_lineno) for f in live_frames.frames_above())
    saved = ((f.file, f.line) for victim in victims[:1] for f in victim.callers)
    return (step.file, step.line) in {*live, *saved}


def without_data(culprit: Site, victims: tuple[Site, ...], *, is_held: bool) -> str:
    """The fix where an op wrote past the version counter of what was saved.

    Args:
        is_held: a module or an optimizer has the tensor: a new one would not take its place.
    """
    at = sites.where(culprit.frame)
    if ".data" in culprit.frame.code:
        text = shared_memory.without_data(culprit, is_held=is_held)
        if text is not None:
            return (
                f"{text}, instead of writing through `.data`, so that autograd knows of it; or "
                "write after backward()"
            )
        return (
            f"write at {at} after backward(), or run the forward ({place(victims)}), and its loss, "
            "again after it"
        )
    copied = shared_memory.own_copy(culprit)
    text = copied or in_place.out_of_place(culprit, is_held=is_held)
    return text or f"write into a `.clone()` at {at}, or after backward()"
