"""What a patch costs: bytes held when a backward pass begins, and processor time of a step.

The Meter runs in a child of `gradext fix`; `compare` holds two children's notes together.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradext.fix.trial import Ran

SHORTEST = 0.005  # seconds of processor time; less than this is noise
NOTHING = (0.0, 0)  # the key of a patch that no other can beat by much
_FEW = 20  # modules that a step may import; an optimizer's first step may import a thousand
_SAME_TIME = 2.0  # up to this ratio two times count as one: a busy machine alone can make 1.5


class Meter:
    """Reads the clock and the memory of this process, and leaves out what `gradext fix` spends."""

    def __init__(self) -> None:
        self._own = time.process_time()
        self._modules = len(sys.modules)

    def arm(self) -> None:
        """Begin, once torch is imported, and anew at the first call of a module.

        So the program's preparations are no part of its first step.
        """
        from torch.nn.modules import module

        def first_call(called: Any, given: Any) -> None:
            self._begin()
            hook.remove()

        hook = module.register_module_forward_pre_hook(first_call)
        self._begin()

    def _begin(self) -> None:
        self._own = time.process_time()
        self._modules = len(sys.modules)

    def imported(self) -> int:
        """How many modules were imported since this was last asked."""
        before, self._modules = self._modules, len(sys.modules)
        return self._modules - before

    def seconds(self) -> float:
        """Processor time of the program so far, of all its threads."""
        return time.process_time() - self._own

    def aside(self, work: Callable[[], Any]) -> Any:
        """Call `work` and return its result; its time and its imports are not counted."""
        begun, loaded = time.process_time(), len(sys.modules)
        try:
            return work()
        finally:
            self._own += time.process_time() - begun
            self._modules += len(sys.modules) - loaded

    def held(self, number: int, outputs: Any) -> int | None:
        """Bytes of the tensors that live now, before pass `number`; None where they are not read.

        Reading them takes a look at every object that Python's collector knows, so of a long
        program it is done now and then, before the same passes in each run.
        """
        if number > 3 and number & (number - 1):
            return None
        sizes: dict[int, int] = {}
        for tensor in _tensors():
            try:
                if tensor.device.type != "meta":
                    storage = tensor.untyped_storage()
                    sizes[storage._cdata] = storage.nbytes()
            except Exception:  # sparse tensors and some subclasses have none
                continue
        for storage_id, size in _saved(outputs):
            sizes.setdefault(storage_id, size)
        return sum(sizes.values())


def _tensors() -> list[Any]:
    import torch

    # By type: isinstance() would ask the `__class__` of the program's objects, which may be code.
    return [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]


def _saved(outputs: Any) -> list[tuple[int, int]]:
    """(storage, bytes) of what the graph keeps: mostly tensors that no Python object is of."""
    from gradext.rules import graph_copy

    found: dict[int, int] = {}
    for node in graph_copy.read(outputs).nodes:
        for saved in node.saved:
            size = math.prod(saved.sizes) * saved.itemsize
            found[saved.storage] = max(size, found.get(saved.storage, 0))
    return list(found.items())


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a patched program costs over the broken one.

    Attributes:
        bytes: more that is held when the backward pass begins that failed, or the last before it
            that was looked at; None where nobody could look.
        seconds, seconds_before: processor time of a step, patched and broken; None as above.
        of: what the seconds are of: a "step", from one backward pass to the next, or where the
            first one fails the "start", up to it: from the first call of a module, if there is one.
    """

    bytes: int | None = None
    seconds: float | None = None
    seconds_before: float | None = None
    of: str = "step"

    @property
    def ratio(self) -> float | None:
        """The times, patched over broken; None where they are too short to be compared."""
        if self.seconds is None or self.seconds_before is None or self.seconds_before < SHORTEST:
            return None
        return self.seconds / self.seconds_before

    @property
    def key(self) -> tuple[float, int]:
        """A sort key: smaller is cheaper. Times that are too close to tell apart count as equal."""
        ratio = self.ratio
        slower = int(math.log(ratio, _SAME_TIME)) if ratio is not None and ratio > 0 else 0
        return (float(slower), self.bytes or 0)

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "ratio": self.ratio}


UNKNOWN = Cost()


def compare(broken: Ran, tried: Ran) -> Cost:
    """What `tried` costs over `broken`, by the passes that both have begun."""
    count = min(len(broken.passes), len(tried.passes), broken.failed + 1)
    if not count:
        return UNKNOWN
    held = [
        (mine["held"], theirs["held"])
        for mine, theirs in zip(tried.passes[:count], broken.passes[:count], strict=True)
        if mine.get("held") is not None and theirs.get("held") is not None
    ]
    more = held[-1][0] - held[-1][1] if held else None
    # What a process does only once, it does in its first step: it counts for one of them only.
    warm = 0 if broken.forked == tried.forked else 1
    spent = [_spent(ran.passes[:count], warm) for ran in (tried, broken)]
    mine, before = (statistics.median(times) if times else None for times in spent)
    return Cost(more, mine, before, "start" if count == 1 else "step")


def _spent(passes: Sequence[dict[str, Any]], warm: int) -> list[float]:
    """The times of the steps in which no library was imported; of one pass, the time up to it.

    Args:
        warm: steps at the beginning that are left out.
    """
    begun = [0.0, *(note["begun"] for note in passes)]
    return [
        begun[k + 1] - begun[k]
        for k in range(warm + (len(passes) > 1), len(passes))
        if passes[k]["imported"] <= _FEW
    ]
