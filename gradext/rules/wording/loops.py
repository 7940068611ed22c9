"""Lines that a loop runs again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradext.diagnosis.model import Site
from gradext.recording.events import SAVES
from gradext.source import sites

if TYPE_CHECKING:
    from gradext.recording.tables import Data


def runs_again(data: Data, thread: int, sequence: int, made: Site) -> bool:
    """Whether the line of `made`, called from the same lines, makes nodes from `sequence` on."""
    wanted = sites.path_of((made.frame, *made.callers))
    table = data.saves
    later = (table[:, SAVES.thread] == thread) & (table[:, SAVES.sequence] >= sequence)
    stacks = set(table[later, SAVES.stack].tolist())
    first, _ = data.node_stack(thread, sequence)  # a row covers all nodes up to the next one
    return any(sites.path_of(data.frames(stack)) == wanted for stack in {*stacks, first})
