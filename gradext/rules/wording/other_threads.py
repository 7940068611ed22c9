"""GX101 where the write was made by another thread, or another task of an event loop: which.

Told by the stacks: where a thread or a task began is their outermost line that is the user's. A
thread's name is read where it still runs. Touches no tensor, and runs no code of the program's.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gradext.base import raw
from gradext.base.text import clean
from gradext.source import sites
from gradext.source.frames import CUT

if TYPE_CHECKING:
    from gradext.diagnosis.model import Frame
    from gradext.recording.events import Write
    from gradext.recording.tables import Data
    from gradext.rules.graph_copy import Node


class Other(NamedTuple):
    """Who wrote.

    Attributes:
        said: 'thread "learner"', "the task of `learner`". note: a sentence. help: what to do.
    """

    said: str
    note: str
    help: str


def of(data: Data, node: Node, writes: Sequence[Write]) -> Other | None:
    """Who wrote what `node` had saved, where that is not who ran the forward."""
    if not writes or node.sequence is None:
        return None
    saved, _ = data.node_stack(node.thread, node.sequence)
    ran, wrote = data.frames(saved) if saved else (), data.frames(writes[0].stack)
    if writes[0].thread != node.thread:
        start = _outermost(wrote)
        if start is None:
            return None
        name = _name_of_thread(start)
        said = f'thread "{clean(name)}"' if name else f"the thread of `{start.function}`"
        if wrote[-1] != CUT and not wrote[-1].file.endswith("threading.py"):
            said = "the main thread"  # no Thread has started it
        note = f"the write runs in {said} ({sites.where(start)}), the forward in another"
        lock = "a threading.Lock"
    else:
        task, other = _task(wrote), _task(ran)
        if (
            task is None
            or other is None
            or (task.file, task.function) == (other.file, other.function)
        ):
            return None
        said = f"the task of `{task.function}`"
        note = (
            f"the write runs in {said} ({sites.where(task)}), while the task of "
            f"`{other.function}` waits between its forward and its backward"
        )
        lock = "an asyncio.Lock"
    return Other(said, note, f"or hold {lock} from forward to backward, and around that write")


def _outermost(frames: Sequence[Frame]) -> Frame | None:
    return next((frame for frame in reversed(frames) if frame.is_user), None)


def _task(frames: Sequence[Frame]) -> Frame | None:
    """The coroutine that the event loop ran: the user's line next within its callback."""
    for number, frame in enumerate(frames):
        if frame.file.endswith("events.py") and frame.function.rsplit(".", 1)[-1] == "_run":
            return _outermost(frames[:number])
    return None


def _name_of_thread(start: Frame) -> str | None:
    """Of the one other thread that runs the function in which the write's thread began."""
    found: list[str] = []
    for ident, running in sys._current_frames().items():
        frame: Any = running
        outermost = None
        while frame is not None:
            if frame.f_code.co_filename == start.file:
                outermost = frame.f_code
            frame = frame.f_back
        thread = getattr(threading, "_active", {}).get(ident)
        if outermost is None or thread is None or ident == threading.get_ident():
            continue
        name = raw.attribute(thread, "_name")
        same = outermost.co_name == start.function.rsplit(".", 1)[-1]
        if same and type(name) is str:
            found.append(name)
    return found[0] if len(found) == 1 else None
