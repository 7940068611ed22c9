"""GX404: a write through a view whose elements share memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradext.base import op_names
from gradext.diagnosis.model import Diagnosis
from gradext.source import sites

if TYPE_CHECKING:
    from gradext.recording.tables import Data


def overlapping(facts: dict[str, Any], data: Data) -> Diagnosis | None:
    """GX404: one write through expanded or self-overlapping memory.

    None for memory that a backward formula of torch's own made and wrote: the graph of such a write
    writes so again, and the program can change nothing there.
    """
    stacks = [data.frames(facts[which]) for which in ("line", "made")]
    if all(stack and stack[0].function == "_engine_run_backward" for stack in stacks):
        return None
    op = op_names.short(facts["op"])
    sizes, strides, written = facts["sizes"], facts["strides"], facts["written_sizes"]
    label = f"{op} writes a {written} part of it"
    culprits = sites.distinct([sites.site(data.frames(facts["line"]), op=facts["op"], label=label)])
    label = f"makes a {sizes} tensor with strides {strides}: several elements are one"
    victims = sites.distinct([sites.site(data.frames(facts["made"]), label=label)])
    there = sites.where(victims[0].frame) if victims else "where it is made"
    return Diagnosis(
        code="GX404",
        message=(
            f"{op} wrote a {written} part of a {sizes} tensor whose memory overlaps itself "
            f"(strides {strides}): elements that it does not name changed as well."
        ),
        culprits=culprits,
        victims=victims,
        fix=f"give it memory of its own at {there}: `.clone()` (or `.repeat()` for `.expand()`)",
        notes=("torch refuses this for the whole tensor, and not for a part of it",),
    )
