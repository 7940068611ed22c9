"""What a line left a tensor in that a later graph leads back to, where no variable has it any more.

`states[i] = cell(x, states[i])`: when the backward fails, the entry holds the next tensor already.
So it is read in the source, of the line that made the newest part of the earlier graph that was
left, or of a line that called it. Keeps no tensor.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

from gradext.diagnosis.model import Frame, Site
from gradext.recording.events import NODES, SAVES
from gradext.source import sites, statements
from gradext.source.value_flow import ValueFlow

if TYPE_CHECKING:
    from gradext.recording.events import Backward
    from gradext.recording.tables import Data
    from gradext.rules.graph_copy import Graph, Node


class Kept(NamedTuple):
    """`node` made what the statement of `frame` gives to `target`, an attribute or an entry."""

    node: Node
    frame: Frame
    target: str


def kept_at(
    data: Data, graph: Graph, index: int, call: Backward, running: set[tuple[str, str]]
) -> Kept | None:
    """Where what was made of a node that `call` used up was put; None where no line says it.

    Args:
        running: (file, name) of the functions that have not returned. In these, a variable that a
            call's result was given to is looked at, too: `h = step(h, x)`.
    """
    start = graph.nodes[index]
    end = _end_of_round(data, start, call)
    above = graph.above()
    newest, pending, seen = start, [index], set[int]()
    while pending:
        number = pending.pop()
        node = graph.nodes[number]
        sequence = node.sequence or 0
        if number in seen or node.thread != start.thread or sequence >= end:
            continue
        seen.add(number)
        newest = node if sequence > (newest.sequence or 0) else newest
        pending += above[number]
    if newest.sequence is None:
        return None
    stack, _ = data.node_stack(start.thread, newest.sequence)
    made = sites.site(data.frames(stack))
    source = ValueFlow()
    for frame in (made.frame, *made.callers) if made is not None else ():
        for name in statements.assigned_names(Site(frame)):
            if "." in name or "[" in name:
                return Kept(newest, frame, name)
        if (
            made is not None
            and frame is not made.frame
            and (frame.file, frame.function.split(".")[-1]) in running
        ):
            carried = statements.names_read_again(Site(frame))
            if len(carried) == 1:
                return Kept(newest, frame, carried[0])
        if not source.returns(frame):
            return None
    return None


def _end_of_round(data: Data, start: Node, call: Backward) -> int:
    """The sequence number from which on nodes belong to the graph after the one that was used up.

    What an iteration leaves to the next may be made below its loss. So it ends where the line that
    made `start` makes a node again, after those that `call` went through.
    """
    own = call.nodes[call.nodes[:, NODES.thread] == start.thread]
    last = int(own[:, NODES.sequence].max()) if len(own) else -1
    stack, _ = data.node_stack(start.thread, start.sequence or 0)
    made = sites.path_of(data.frames(stack))
    rows = data.saves[data.saves[:, SAVES.thread] == start.thread]
    rows = rows[rows[:, SAVES.sequence] > last]
    paths: dict[int, bool] = {}
    for sequence, number in rows[:, [SAVES.sequence, SAVES.stack]].tolist():
        if number not in paths:
            paths[number] = sites.path_of(data.frames(number)) == made
        if paths[number]:
            return int(sequence)
    return last + 1


def moved_to(made: Site, frame: Frame) -> Site:
    """The site, moved out to a line that called it."""
    frames = (made.frame, *made.callers)
    index = frames.index(frame)
    if index == 0:
        return made
    inner = (*reversed(frames[1:index]), made.frame, *made.stack)
    return dataclasses.replace(made, frame=frame, stack=inner, callers=frames[index + 1 :])
