"""GX405: a tensor that was to stay as it is has changed."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from gradext.diagnosis.model import Diagnosis
from gradext.rules.rewrite import optimizer_step
from gradext.rules.wording import guarded_writes, saved_tensors
from gradext.source import sites

if TYPE_CHECKING:
    from gradext.recording.tables import Data


_STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}


def together(found: list[tuple[str, Diagnosis]]) -> list[Diagnosis]:
    """One diagnosis for the tensors that the same lines changed, in their order."""
    groups: dict[object, list[tuple[str, Diagnosis]]] = {}
    for name, diagnosis in found:
        groups.setdefault(diagnosis.key(), []).append((name, diagnosis))
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
        found = [guarded_writes.line_of(data, facts["line"], f"changes the bytes of `{name}`")]
        notes.append(guarded_writes.UNDECLARED)
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
        message=f"`{name}` is guarded, and its bytes are not what they were.",
        culprits=culprits,
        fix=fix,
        notes=tuple(notes),
        window=window,
    )
