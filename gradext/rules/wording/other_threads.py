"""Which other thread, or task of an event loop, wrote (GX101) or had grad mode off (GX301).

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
from gradext.recording.events import Flow
from gradext.source import sites, statements
from gradext.source.frames import CUT

if TYPE_CHECKING:
    from gradext.diagnosis.model import Frame
    from gradext.recording.events import Write
    from gradext.recording.tables import Data
    from gradext.rules.graph_copy import Node
    from gradext.rules.wording.cuts import Cut


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
        said = _thread(start, wrote)
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


class OtherMode(NamedTuple):
    """Whose grad mode was off. `help` is what to do in place of switching it on again, or None."""

    note: str
    help: str | None


def of_mode(data: Data, cut: Cut) -> OtherMode | None:
    """Who had grad mode off, where that is not who asks for the gradient: the last backward()."""
    origin, mode = cut.step.origin, cut.mode
    if mode is None or not data.backwards or not isinstance(origin, Flow):
        return None
    entered, ran = data.frames(origin.mode), data.frames(origin.stack)
    start = _outermost(ran)
    asked = data.backwards[-1]
    if asked.order > origin.order and asked.thread != origin.thread:
        if start is None:
            return None
        said = _thread(start, ran)
        line, function = sites.where(mode.site.frame), start.function.rsplit(".", 1)[-1]
        note = (
            f"grad mode belongs to the thread: in {said} it was off since {line} when "
            f"{function}() computed this ({sites.where(start)}), and backward() runs in another"
        )
        if mode.how != "switch":
            return OtherMode(note, None)
        out = statements.text_of(mode.site)
        return OtherMode(
            note,
            f"take `{out}` out at {line}, and put `with torch.no_grad():` around what needs no "
            f"gradient; or put `@torch.enable_grad()` above `def {function}`",
        )
    task, other = _task(entered), _task(ran)
    if task is None or other is None or (task.file, task.function) == (other.file, other.function):
        return None
    inner, outer = (f.function.rsplit(".", 1)[-1] for f in (task, other))
    return OtherMode(
        f"the task of `{task.function}` ({sites.where(task)}) left grad mode off when it gave way "
        f"to the task of `{other.function}` ({sites.where(other)}): tasks of an event loop share "
        "a thread, and so its grad mode",
        f"let {inner}() leave the block that begins at {sites.where(mode.site.frame)} before it "
        f"yields or awaits; or let {outer}() compute the loss, from {sites.where(other)} on, "
        "within `with torch.enable_grad():`, and await nothing there",
    )


def _thread(start: Frame, frames: Sequence[Frame]) -> str:
    """'thread "learner"', "the thread of `learner`", "the main thread"."""
    if frames[-1] != CUT and not frames[-1].file.endswith("threading.py"):
        return "the main thread"  # no Thread has started it
    name = _name_of_thread(start)
    return f'thread "{clean(name)}"' if name else f"the thread of `{start.function}`"


def _outermost(frames: Sequence[Frame]) -> Frame | None:
    return next((frame for frame in reversed(frames) if frame.is_user), None)


def _task(frames: Sequence[Frame]) -> Frame | None:
    """The coroutine that the event loop ran: the user's line next within its callback."""
    for number, frame in enumerate(frames):
        if frame.file.endswith("events.py") and frame.function.rsplit(".", 1)[-1] == "_run":
            return _outermost(frames[:number])
    return None


def _name_of_thread(start: Frame) -> str | None:
    """The name of the only other thread that runs the function in which the writer's began."""
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
