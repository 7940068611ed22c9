"""Many small jobs in forked processes: one that crashes, hangs or aborts costs only itself.

Owns the forks, the time limit and the way of results back; knows nothing of what a job does. A job
is tried in steps, so that a job whose third step kills its process goes on with the fourth.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import os
import pickle
import select
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from gradext.base import forks

SECONDS = 20.0  # for one step
CRASHES = 3  # of one job; then it is given up
HANGS = 2
CHUNK = 24  # jobs per process
# What a step may ask for beyond what the program has: an op given odd sizes asks for terabytes.
MEMORY = 6 << 30

# work(job, first step) yields (step, None) before each step and (step, result) after it.
Work = Callable[[Any, int], Iterator[tuple[int, Any]]]


@dataclasses.dataclass(frozen=True)
class Result:
    """What one step of a job gave. `fault`: "" or how the process ended in it."""

    job: int
    step: int
    value: Any
    fault: str = ""


def is_possible() -> bool:
    """Whether jobs can have processes of their own here."""
    return sys.platform == "linux" and not forks.uses_cuda()


def run(
    jobs: Sequence[Any],
    work: Work,
    *,
    processes: int = 2,
    seconds: float = SECONDS,
    memory: int | None = MEMORY,
    chunk: int = CHUNK,
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[Result]:
    """The results of all jobs as they come, in no order.

    Where there is no fork (or CUDA is in use) the jobs run in this process, without protection.

    Args:
        seconds: for one step. memory: bytes that a process may ask for beyond what is there; None
            for no limit. chunk: jobs per process. progress: is told how many jobs are done.
    """
    if not is_possible():
        for index, job in enumerate(jobs):
            for step, value in work(job, 0):
                if value is not None:
                    yield Result(index, step, value)
            progress(index + 1)
        return
    waiting = [(index, 0) for index in range(len(jobs))][::-1]
    crashes: dict[int, int] = {}
    living: dict[int, _Child] = {}
    done = 0
    # What was printed and is not flushed yet would be printed by every child too.
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        while waiting or living:
            while waiting and len(living) < processes:
                mine = [waiting.pop() for _ in range(min(chunk, len(waiting)))]
                child = _Child.start(jobs, work, mine, memory)
                living[child.pipe] = child
            nearest = min(child.heard + seconds for child in living.values())
            ready, _, _ = select.select(list(living), [], [], max(nearest - time.monotonic(), 0))
            for pipe in ready:
                child = living[pipe]
                for message in child.read():
                    if message[0] == "result":
                        yield Result(*message[1:])
                    elif message[0] == "done":
                        done += 1
                        progress(done)
            for pipe, child in list(living.items()):
                fault = child.fault(seconds)
                if fault is None:
                    continue
                del living[pipe]
                left = child.left
                if fault and child.at is not None:
                    job, step = child.at
                    yield Result(job, step, None, fault)
                    crashes[job] = crashes.get(job, 0) + 1
                    left = [entry for entry in left if entry[0] != job]
                    if crashes[job] < (HANGS if fault.startswith("ran longer") else CRASHES):
                        left.insert(0, (job, step + 1))
                    else:
                        done += 1
                        progress(done)
                elif fault and left:
                    # It died between two jobs: the next one is told, so that there is an end.
                    job, step = left.pop(0)
                    yield Result(job, step, None, fault)
                    done += 1
                waiting.extend(left[::-1])
    finally:
        for child in living.values():
            child.end()


class _Child:
    """One process: what it still has to do, and where it is."""

    def __init__(self, pid: int, pipe: int, left: list[tuple[int, int]]) -> None:
        self.pid, self.pipe, self.left = pid, pipe, left
        self.at: tuple[int, int] | None = None
        self.heard = time.monotonic()
        self._data = bytearray()
        self._closed = False
        self._broken = ""

    @classmethod
    def start(
        cls, jobs: Sequence[Any], work: Work, chunk: list[tuple[int, int]], memory: int | None
    ) -> _Child:
        pid, receiver = forks.start(lambda sender: _work(jobs, work, chunk, sender, memory))
        return cls(pid, receiver, list(chunk))

    def read(self) -> Iterator[Any]:
        chunk = os.read(self.pipe, 1 << 20)
        self._closed |= not chunk
        self.heard = time.monotonic()
        self._data += chunk
        while len(self._data) >= 8:
            (size,) = struct.unpack_from("<Q", self._data)
            if len(self._data) < 8 + size:
                break
            message = pickle.loads(self._data[8 : 8 + size])
            del self._data[: 8 + size]
            if message[0] == "step":
                self.at = message[1:]
            elif message[0] == "done":
                self.at = None
                self.left = [entry for entry in self.left if entry[0] != message[1]]
            elif message[0] == "broken":
                self._broken = f"gradext failed: {message[1]}"
            yield message

    def fault(self, seconds: float) -> str | None:
        """None while it works, "" after a good end, else how it ended."""
        if self._closed:
            status = self.end()
            if os.WIFSIGNALED(status):
                return f"killed its process ({signal.Signals(os.WTERMSIG(status)).name})"
            code = os.WEXITSTATUS(status)
            if self._broken or not (code or self.left):
                return self._broken
            return f"ended its process with exit code {code}"
        if time.monotonic() - self.heard > seconds:
            self.end()
            return f"ran longer than {seconds:g} s"
        return None

    def end(self) -> int:
        with contextlib.suppress(OSError):
            os.close(self.pipe)
        if not self._closed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            return os.waitpid(self.pid, 0)[1]
        return 0


def _work(
    jobs: Sequence[Any],
    work: Work,
    chunk: list[tuple[int, int]],
    sender: int,
    memory: int | None,
) -> NoReturn:
    """Does the chunk and never returns; nothing of the program's own exit is run."""
    code = 0
    try:
        faulthandler.disable()  # a crash here is a result, not a message
        forks.settle()
        _limits(memory)
        forks.silence()
        for job, first in chunk:
            for step, value in work(jobs[job], first):
                _send(
                    sender, ("step", job, step) if value is None else ("result", job, step, value)
                )
            _send(sender, ("done", job))
    except BaseException:
        code = 1
        with contextlib.suppress(OSError):
            _send(sender, ("broken", traceback.format_exc().strip().splitlines()[-1]))
    finally:
        os._exit(code)


def _limits(memory: int | None) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory is not None:
        with contextlib.suppress(OSError, ValueError):
            with open("/proc/self/statm") as statm:
                used = int(statm.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + memory, resource.RLIM_INFINITY))
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # no op writes files here
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def _send(sender: int, message: Any) -> None:
    data = pickle.dumps(message)
    forks.write_all(sender, struct.pack("<Q", len(data)) + data)
