"""The two clocks that a device's work is timed by: torch.utils.benchmark, and CUDA events.

Owns one block of calls: so many calls of one function, and the seconds they took. Which blocks take
turns, and what is made of the seconds, is gradext.mode_costs.timing's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch.utils import benchmark


class HostClock(benchmark.Timer):
    """A torch.utils.benchmark Timer that times one block at a time.

    `Timer.timeit` makes two calls more, to warm up, before each block. Here blocks take turns and
    the function is warm; for one that takes a second two calls more would treble the time.
    """

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__(stmt="function()", globals={"function": function})

    def block(self, calls: int) -> float:
        """Seconds of ``calls`` calls, the device's part included."""
        seconds: float = self._timeit(calls)
        return seconds

    launch_seconds: float | None = None


class EventClock:
    """Times on the device's own clock, and beside it how long the CPU took to launch the work.

    Source: torch.cuda.Event, `elapsed_time` (milliseconds between two events of a stream).
    """

    def __init__(self, function: Callable[[], object], device: str = "cuda") -> None:
        self._function = function
        self._device = torch.device(device)
        self._launches: list[float] = []

    def block(self, calls: int) -> float:
        """Seconds that pass on the device from before the first call to after the last."""
        with torch.cuda.device(self._device):
            return self._block(calls)

    def _block(self, calls: int) -> float:
        function = self._function
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()
        begun = time.perf_counter()
        for _ in range(calls):
            function()
        self._launches.append((time.perf_counter() - begun) / calls)
        end.record()
        end.synchronize()
        milliseconds: float = start.elapsed_time(end)
        return milliseconds * 1e-3

    @property
    def launch_seconds(self) -> float | None:
        """The CPU's seconds a call, median; near the device's seconds, the CPU holds it up."""
        return statistics.median(self._launches) if self._launches else None


def clock_of(device: str, function: Callable[[], object]) -> HostClock | EventClock:
    if torch.device(device).type == "cuda":
        return EventClock(function, device)
    return HostClock(function)


def captured(function: Callable[[], object], device: str) -> Callable[[], object]:
    """A function that replays, as a CUDA graph, what one call of ``function`` launches on it.

    Captured under the modes that are on now. Raises what the capture raises.
    Source: the notes on CUDA graphs in torch's documentation (warm-up on a side stream).
    """
    with torch.cuda.device(torch.device(device)):
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                function()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = function()

    def replay() -> None:
        graph.replay()

    replay.result = result  # type: ignore[attr-defined]  # the graph writes there
    return replay
