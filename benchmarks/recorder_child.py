"""What the recorder benchmark must measure in a new process; prints JSON. recorder.py runs it.

    python benchmarks/recorder_child.py idle SUBJECT SAMPLES
    python benchmarks/recorder_child.py memory EVENT COUNT

`idle`: the time of a call with gradext imported, and after a recording has ended, over that without
gradext. A process can be in the first state only once, so three forks of one process that has
imported torch and nothing else take turns, on one processor; each three give one sample.

`memory`: how much the resident memory grows while COUNT events are recorded. Needs Linux (/proc).

It must not import gradext at its top, nor anything that does.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import statistics
import struct
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import peers
import torch

# A short block, so that what slows the machine slows all three forks; the first is not timed.
BLOCK_SECONDS = 1e-3
TURNS = 40
WARM_SECONDS = 2e-2
# More growth than this ends `memory` early, before the machine is full.
MOST_BYTES = 2 << 30
ALONE = "torch alone"
STATES = (ALONE, "gradext imported", "gradext imported, after a recording")

_x, _w = torch.zeros(1), torch.ones(1, requires_grad=True)
_lines = itertools.cycle((lambda: _w + 1, lambda: _w + 2))


def _save() -> None:
    # Two lines in turn: nodes that one line makes in a row are one event.
    next(_lines)()


@torch.no_grad()
def _view() -> None:
    _x[:]


# What makes one event, and which kind the recorder counts it as.
EVENTS: dict[str, tuple[str, peers.Step]] = {
    "write": ("write", lambda: _x.add_(1)),
    # The journal holds the storage and the counter of a tensor that is gone, so that their
    # addresses are not given to another.
    "write to a new tensor": ("write", lambda: torch.empty(1).add_(1)),
    # Memory that is free but lies between such remains, too small for the next tensor, is lost.
    "write to a new tensor of 400 kB": ("write", lambda: torch.empty(100_000).add_(1)),
    "save": ("save", _save),
    "view without grad mode": ("view", _view),
    "value without gradient": ("flow", lambda: _x + 1),
}


def idle(subject: str, samples: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        # Two processors are seldom equally fast while other programs run.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    step = peers.SUBJECTS[subject].build()
    calls = _calls(step)
    if "gradext" in sys.modules:
        raise SystemExit("recorder_child.py: gradext is imported already")
    gc.collect()
    gc.freeze()  # or each fork would copy the pages of all objects that a collection visits
    ratios: dict[str, list[float]] = {state: [] for state in STATES}
    seconds: dict[str, list[float]] = {state: [] for state in STATES}
    for _ in range(samples):
        turns = _turns(step, calls)
        for state in STATES:
            pairs = zip(turns[state], turns[ALONE], strict=True)
            ratios[state].append(statistics.median(ours / alone for ours, alone in pairs))
            seconds[state].append(statistics.median(turns[state]))
    return {"ratios": ratios, "seconds": seconds, "calls": calls}


def memory(event: str, count: int) -> dict[str, Any]:
    import gradext

    torch.set_num_threads(1)
    kind, call = EVENTS[event]
    # Room for all: what is measured is the size of an event, not the bound.
    # A new tensor is an event of its own, where values without gradient are followed.
    followed = kind == "flow"
    room = max(4096 * count >> 20, 1)  # MiB
    with gradext.record(births=followed, cuts=followed, memory=room) as recording:
        for _ in range(1000):
            call()
        before, resident, done = recording.memory[f"{kind}s"], _resident_bytes(), 0
        while done < count and _resident_bytes() - resident < MOST_BYTES:
            for _ in range(min(1000, count - done)):
                call()
                done += 1
        grown = _resident_bytes() - resident
        account = dict(recording.memory)
    if (recorded := account[f"{kind}s"] - before) != done:
        raise SystemExit(f"recorder_child.py: {event!r}: {recorded} events, not {done}")
    return {"bytes": grown, "events": done, "account": account[f"{kind}_bytes"]}


def _calls(step: peers.Step) -> int:
    """How many calls fill a block, by the quickest call of a warm-up."""
    quickest, deadline = BLOCK_SECONDS, time.perf_counter() + WARM_SECONDS
    while (start := time.perf_counter()) < deadline:
        step()
        quickest = min(quickest, time.perf_counter() - start)
    return max(1, round(BLOCK_SECONDS / quickest))


def _turns(step: peers.Step, calls: int) -> dict[str, list[float]]:
    """Seconds of a call in each state, from three forks that time a block each in turn."""
    forks = {state: Fork(state, step, calls) for state in STATES}
    try:
        turns: dict[str, list[float]] = {state: [] for state in STATES}
        for turn in range(TURNS):
            start = turn % len(STATES)
            for state in STATES[start:] + STATES[:start]:
                turns[state].append(forks[state].block())
        return turns
    finally:
        for fork in forks.values():
            fork.close()
        for fork in forks.values():
            os.waitpid(fork.pid, 0)


class Fork:
    """A fork of this process that is in `state` and times a block whenever it is asked."""

    def __init__(self, state: str, step: peers.Step, calls: int) -> None:
        self.state = state
        theirs_in, self.ask = os.pipe()
        self.answer, theirs_out = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                # While it holds the other end of its own pipe, it never sees that end closed.
                os.close(self.ask)
                os.close(self.answer)
                _enter(state, step)
                _answer(step, calls, theirs_in, theirs_out)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(theirs_in)
        os.close(theirs_out)

    def block(self) -> float:
        os.write(self.ask, b".")
        said = os.read(self.answer, 8)
        if len(said) != 8:
            raise SystemExit(f"recorder_child.py: the fork that measures {self.state!r} failed")
        seconds: float = struct.unpack("d", said)[0]
        return seconds

    def close(self) -> None:
        """The fork ends once this is called for it and for those made after it."""
        os.close(self.ask)
        os.close(self.answer)


def _enter(state: str, step: peers.Step) -> None:
    if state == ALONE:
        return
    import gradext

    if state == STATES[2]:
        with gradext.record():
            step()


def _answer(step: peers.Step, calls: int, asked: int, answer: int) -> None:
    gc.disable()
    _calls(step)
    while os.read(asked, 1):
        for _ in range(calls):
            step()
        start = time.perf_counter()
        for _ in range(calls):
            step()
        os.write(answer, struct.pack("d", (time.perf_counter() - start) / calls))


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    what, subject, number = sys.argv[1:]
    print(json.dumps({"idle": idle, "memory": memory}[what](subject, int(number))))
