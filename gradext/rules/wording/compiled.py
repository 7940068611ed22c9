"""GX101 within torch.compile: the lines inside the compiled function, where its graphs know them.

While AOTAutograd traces a function, its backward runs on tensors that have no values and that no
report names; what the program wrote, and where, the graph that is traced tells.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from gradext.diagnosis.model import Diagnosis, Site
from gradext.rules.graph_copy import Node, Saved
from gradext.rules.rewrite import in_place
from gradext.rules.wording import saved_tensors
from gradext.source import bindings, live_frames, sites, traced_lines


def inside(calls: tuple[Site, ...], traces: Sequence[str], label: str) -> tuple[Site, ...]:
    """The lines that a compiled function saved a tensor for, then the call of the function."""
    call = calls[0] if calls else None
    found = [_site(trace, call, label) for trace in traces]
    told = [place for place in found if place is not None and place.frame.is_user]
    if not told:
        return calls
    shown = dataclasses.replace(call, label="runs the compiled function") if call else None
    return sites.distinct([*told[:2], shown, *calls[1:]])


def written_while_tracing(
    node: Node, saved: Saved, calls: tuple[Site, ...], op_name: str
) -> tuple[Diagnosis, Callable[[Sequence[Site]], str]] | None:
    """The diagnosis and its fix; None where the graph that is traced is not to be found."""
    graph = traced_lines.graph_of(live_frames.frames_above())
    if graph is None:
        return None
    saver, writers = traced_lines.writes_within(graph, node.trace, saved.is_output)
    call = calls[0] if calls else None
    victim = _site(saver, call, f"{op_name} saves it for backward") if saver else None
    found = [_site(trace, call, "") for trace in writers]
    culprits = sites.distinct(_written(place) for place in found if place is not None)
    name = bindings.written_name(culprits[0]) if culprits else None
    result = saved_tensors.result_name(victim, op_name) if victim and saved.is_output else None
    if victim is not None and result is not None:
        victim = dataclasses.replace(victim, label=f"{op_name} saves `{result}` for backward")
    called = result or name
    spoken = f"`{called}`" if called else "a tensor"
    message = (
        f"Within the compiled function {spoken} is saved for backward by {node.name}, and written "
        "in place afterwards."
    )
    notes: list[str] = []
    if saved.is_output:
        notes.append(f"{node.name} keeps its own result for its derivative")
    if not culprits:
        notes.append("which line inside the compiled function writes it is not known")
    victims = (victim,) if victim is not None else calls[:1]
    if victim is None and call is not None:
        victims = (dataclasses.replace(call, label="runs the compiled function"),)
    diagnosis = Diagnosis(
        code="GX101", message=message, culprits=culprits, victims=victims, notes=tuple(notes)
    )

    def fix(_: Sequence[Site]) -> str:
        first = in_place.out_of_place(culprits[0]) if culprits else None
        if first is not None:
            return first
        line = sites.where(victims[0].frame) if victims else "the line that saves it"
        copied = f"save a copy: use a `.clone()` at {line}, or write out of place"
        return copied if culprits else f"{copied}; run it uncompiled once to see which line writes"

    return diagnosis, fix


def _written(place: Site) -> Site:
    name = bindings.written_name(place)
    return dataclasses.replace(place, label=f"writes `{name}` in place" if name else "writes it")


def _site(trace: str, call: Site | None, label: str) -> Site | None:
    """A line inside, with the call of the compiled function among its callers."""
    place = sites.site(traced_lines.frames_of(trace), label=label)
    if place is None or call is None:
        return place
    return dataclasses.replace(place, callers=(*place.callers, call.frame, *call.callers))
