"""GX401 from the journal alone: declared writes without a bump, and writes through `.data`.

What a guard finds by the bytes is gradext.rules.codes.gx401_402_saved_bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradext.base import op_names
from gradext.diagnosis.model import Diagnosis
from gradext.recording.columns import WRITES
from gradext.recording.events import DECLARED_ONLY, SHARED_STORAGE
from gradext.rules.graph_copy import Graph, Node, Saved
from gradext.rules.rewrite import optimizer_step
from gradext.rules.wording import saved_tensors

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
    if not saved.is_strided or node.sequence is None:
        return []
    found = []
    for write in by_storage.get(saved.storage, ()):
        if write.begin == write.end or write.is_inference:
            continue
        counted = write.counter == saved.counter and not write.declared_only
        if counted:
            continue
        if write.thread == node.thread and write.sequence <= node.sequence:
            continue  # before the save
        found.append(write)
    return found


def any_silent(data: Data, graph: Graph) -> bool:
    """Whether silent() would find something; much cheaper than finding out what."""
    by_storage = _uncounted(data)
    return bool(by_storage) and any(
        saved.storage in by_storage and _suspects(by_storage, saved, node)
        for node in graph.nodes
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
    for node in sorted(graph.nodes, key=graph.order, reverse=True):
        for saved in node.saved:
            writes = [
                write
                for write in _suspects(by_storage, saved, node)
                if overlap.overlap(write, saved.offset, saved.itemsize, saved.sizes, saved.strides)
            ]
            if not writes or saved.is_stale:
                continue  # a stale one raises by itself
            if len(diagnoses) >= saved_tensors.MOST_DIAGNOSES or left == 0:
                break
            left -= 1
            diagnosis = _silent_one(graph, node, saved, writes, data, names)
            key = diagnosis.key()
            diagnoses.setdefault(key, diagnosis)
            counts[key] = counts.get(key, 0) + 1
    return [saved_tensors.with_count(d, counts[key]) for key, d in diagnoses.items()]


def _silent_one(
    graph: Graph, node: Node, saved: Saved, writes: list[Write], data: Data, names: Names
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
        fix = saved_tensors.without_data(culprits[0]) if culprits else ""
    return Diagnosis(
        code="GX401",
        message=(
            f"{spoken} was saved for backward by {node.name}, and {how}: backward computes with "
            "the new values, and the gradients are wrong without an error."
        ),
        culprits=culprits,
        victims=victims,
        fix=fix,
        notes=(saved_tensors.why_unseen(first),),
    )
