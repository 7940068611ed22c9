"""GX401 from the journal alone: declared writes without a bump, and writes through `.data`.

An error where the recorder has seen the values from before the first such write, and they are
others now; a warning where it has not (csrc/recorder/before_writes.h). What a guard finds by the
bytes is gradext.rules.codes.gx401_402_saved_bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradext.base import op_names
from gradext.diagnosis.model import Diagnosis
from gradext.native import _C
from gradext.recording.events import DECLARED_ONLY, SHARED_STORAGE, WRITES
from gradext.rules.graph_copy import Graph, Node, Saved
from gradext.rules.rewrite import optimizer_step
from gradext.rules.wording import saved_tensors

# Why a finding is a warning.
NOT_SEEN = (
    "whether the values changed was not seen: they are on another device, another thread wrote "
    "them, or looking would have taken too much of the run; `gradext run --guard` compares them"
)

if TYPE_CHECKING:
    from gradext.objects.naming import Names
    from gradext.recording.events import Write
    from gradext.recording.tables import Data


def _uncounted(data: Data) -> dict[int, list[Write]]:
    """By storage, the writes to memory of which some write did not move the counter."""
    table = data.writes
    uncounted = (table[:, WRITES.flags] & (DECLARED_ONLY | SHARED_STORAGE)) != 0
    storages = set(table[uncounted, WRITES.storage].tolist())
    found: dict[int, list[Write]] = {}
    for storage in storages:
        found[storage] = data.writes_of_storage(storage)
    return found


def _suspects(by_storage: dict[int, list[Write]], saved: Saved, node: Node) -> list[Write]:
    """Writes to the saved bytes, after they were saved, that moved another counter or none."""
    if not saved.is_strided or node.sequence is None or saved.is_unused:
        return []
    found = []
    for write in by_storage.get(saved.storage, ()):
        if write.begin == write.end or write.is_inference:
            continue
        counted = write.counter == saved.counter and not write.declared_only
        if counted:
            continue
        if write.thread == node.thread and write.sequence <= node.sequence:
            continue  # before the save, or by the op that saves
        found.append(write)
    return found


def any_silent(data: Data, graph: Graph) -> bool:
    """Whether silent() would find something; much cheaper than finding out what."""
    by_storage = _uncounted(data)
    return bool(by_storage) and any(
        saved.storage in by_storage and _suspects(by_storage, saved, node)
        for node in graph.saving(storages=by_storage)
        for saved in node.saved
    )


def silent(data: Data, graph: Graph, names: Names) -> list[Diagnosis]:
    """GX401 from the journal alone: declared writes without a bump, and writes through `.data`."""
    from gradext.recording import overlap

    by_storage = _uncounted(data)
    if not by_storage:
        return []
    diagnoses: dict[tuple[Any, ...], Diagnosis] = {}
    counts: dict[tuple[Any, ...], int] = {}
    left = saved_tensors.MOST_PAIRS
    for node in graph.saving(storages=by_storage):
        for saved in node.saved:
            writes = [
                write
                for write in _suspects(by_storage, saved, node)
                if overlap.overlap(write, saved.offset, saved.itemsize, saved.sizes, saved.strides)
            ]
            if not writes or saved.is_stale:
                continue  # a stale one raises by itself
            is_changed = _is_changed(saved, node, writes)
            if is_changed is False:
                continue  # put back before backward reads it
            if len(diagnoses) >= saved_tensors.MOST_DIAGNOSES or left == 0:
                break
            left -= 1
            diagnosis = _silent_one(graph, node, saved, writes, is_changed, data, names)
            key = diagnosis.key()
            diagnoses.setdefault(key, diagnosis)
            counts[key] = counts.get(key, 0) + 1
    return [saved_tensors.with_count(d, counts[key]) for key, d in diagnoses.items()]


def _is_changed(saved: Saved, node: Node, writes: list[Write]) -> bool | None:
    """Whether the values are others than those that were saved; None where that was not seen."""
    found = _C.is_changed(
        saved.storage,
        saved.offset,
        saved.itemsize,
        saved.sizes,
        saved.strides,
        [(write.order, write.begin, write.end) for write in writes],
    )
    if found and any(write.thread != node.thread for write in writes):
        return None  # which of the two was first is not known
    return found


def _silent_one(
    graph: Graph,
    node: Node,
    saved: Saved,
    writes: list[Write],
    is_changed: bool | None,
    data: Data,
    names: Names,
) -> Diagnosis:
    name, spoken = saved_tensors.tensor_text(saved, names)
    culprits = saved_tensors.culprits(data, writes, name)
    what = saved_tensors.quoted(name) if name else "it"
    label = f"{op_names.of_node(node.name)} saves {what} for backward"
    victims = saved_tensors.victims_of(data, graph, node, label)
    first = writes[0]
    op = op_names.short(first.op)
    how = f"{op} wrote its memory through a tensor with another version counter"
    if first.declared_only:
        how = f"{op} wrote it without moving its version counter"
    of_leaf = names.is_of_leaf(saved.counter)
    if culprits and optimizer_step.is_optimizer_step(culprits[0], of_leaf=of_leaf):
        fix = saved_tensors.later_step(culprits[0], victims, first)
    else:
        is_held = of_leaf or names.is_held(saved.counter)
        fix = ""
        if culprits:
            fix = saved_tensors.without_data(culprits[0], victims, is_held=is_held)
    message = f"{spoken} was saved for backward by {node.name}, and {how}"
    notes = [saved_tensors.why_unseen(first)]
    if is_changed:
        message += (
            ": backward computes with the new values, and the gradients are wrong without an error."
        )
    else:
        message += (
            ". If the values are others than before, which was not looked at, backward computes "
            "with the new ones, and the gradients are wrong without an error."
        )
        notes.append(NOT_SEEN)
    return Diagnosis(
        code="GX401",
        severity="error" if is_changed else "warning",
        message=message,
        culprits=culprits,
        victims=victims,
        fix=fix,
        notes=tuple(notes),
    )
