"""Timing that holds on a noisy machine: interleaved rounds, medians of ratios, honest intervals.

Owns how functions are timed against each other and what interval goes with a number. It knows
nothing of tensors, modes or devices (the caller passes contexts and ``synchronize``), prints
nothing, and imports no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# A block much shorter than a scheduler's time slice is usually not interrupted at all, so on a busy
# machine most blocks stay clean and the median does not see the others. It must also be long enough
# for the clock's own cost (below 0.1 us) not to show.
BLOCK_SECONDS = 2e-4
# More rounds than this narrow an interval that drift and caches have already made too narrow.
MAX_ROUNDS = 1000
# The smallest number of rounds for which a 95 % interval of the median exists (1 - 2 / 2**6).
MIN_ROUNDS = 6
# The interval of few rounds may be narrow by chance; before so many nobody is asked if it will do.
FIRST_QUESTION = 20


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A median and the interval [low, high] that covers the true one with ``confidence``."""

    value: float
    low: float
    high: float
    confidence: float
    samples: int

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies in the interval; a ratio that holds 1.0 shows no difference."""
        return self.low <= value <= self.high


@dataclasses.dataclass(frozen=True)
class Case:
    """One function to time and the context it runs in; entering the context is not timed.

    ``block`` takes the place of the clock where there is a better one (torch.utils.benchmark, CUDA
    events): called with a number, it makes so many calls of the function and returns the seconds.
    """

    function: Callable[[], object]
    context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    block: Callable[[int], float] | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `compare` measured: per case the seconds of one call, one number a round."""

    seconds: dict[str, tuple[float, ...]]
    calls: int

    @property
    def rounds(self) -> int:
        return len(next(iter(self.seconds.values())))

    def time(self, name: str, confidence: float = 0.95) -> Estimate:
        """Seconds of one call of ``name``."""
        return median_interval(self.seconds[name], confidence)

    def ratio(self, name: str, over: str, confidence: float = 0.95) -> Estimate:
        """Time of ``name`` over time of ``over``: the median of the rounds' own ratios.

        Both halves of such a ratio were measured within the same moments, so what slows the machine
        for longer than a round (another process, a lower clock) slows both and cancels.
        """
        pairs = zip(self.seconds[name], self.seconds[over], strict=True)
        return median_interval([above / below for above, below in pairs], confidence)


def median_ranks(samples: int, confidence: float = 0.95) -> tuple[int, int, float]:
    """Ranks (from 1) of the two order statistics that bound the median, and what they cover.

    For independent samples x(1) <= ... <= x(n) of any continuous distribution the number of
    samples below the median is binomial(n, 1/2), hence P(x(j) <= median <= x(n+1-j)) is the sum
    of C(n, i) / 2**n for i from j to n-j. The largest j that still covers ``confidence`` is taken.
    With fewer than 6 samples no j covers 95 %; the extremes are returned, with what they do cover.

    Source: H. A. David, H. N. Nagaraja, Order Statistics, 3rd ed., Wiley 2003, chapter 7
    (distribution-free confidence intervals for quantiles).
    """
    if samples < 1:
        raise ValueError(f"an interval needs at least 1 sample, got {samples}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    total = 2**samples
    rank, covered = 1, total - 2
    ways = samples  # C(samples, rank)
    while rank + 1 <= (samples + 1) // 2 and (covered - 2 * ways) / total >= confidence:
        covered -= 2 * ways
        rank += 1
        ways = ways * (samples - rank + 1) // rank
    return rank, samples + 1 - rank, max(covered, 0) / total


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """The median of ``values`` and its distribution-free interval (see `median_ranks`)."""
    low, high, covered = median_ranks(len(values), confidence)
    ordered = sorted(values)
    return Estimate(
        value=statistics.median(ordered),
        low=ordered[low - 1],
        high=ordered[high - 1],
        confidence=covered,
        samples=len(ordered),
    )


def pool(estimates: Sequence[Estimate]) -> Estimate:
    """One estimate from those of several processes, each with its own memory layout and moment.

    The value is the median of theirs; the interval reaches from the lowest low to the highest high.
    What differs from process to process is not in the interval of any one of them, and three values
    are too few to estimate it, so nothing narrower than what they span is claimed.
    """
    if not estimates:
        raise ValueError("nothing to pool: no estimates")
    return Estimate(
        value=statistics.median(estimate.value for estimate in estimates),
        low=min(estimate.low for estimate in estimates),
        high=max(estimate.high for estimate in estimates),
        confidence=min(estimate.confidence for estimate in estimates),
        samples=sum(estimate.samples for estimate in estimates),
    )


def compare(
    cases: Mapping[str, Case | Callable[[], object]],
    *,
    budget_seconds: float = 1.0,
    rounds: int = MAX_ROUNDS,
    block_seconds: float = BLOCK_SECONDS,
    synchronize: Callable[[], object] | None = None,
    timer: Callable[[], float] = time.perf_counter,
    enough: Callable[[Comparison], bool] | None = None,
    progress: Callable[[float], object] | None = None,
    least_rounds: int = MIN_ROUNDS,
) -> Comparison:
    """Time ``cases`` against each other and return one number per case and round.

    Every round times one block of each case, a block being as many calls as fill ``block_seconds``
    (the same number for all cases). The order changes from round to round, so that no case always
    runs after the same other one. It stops after ``rounds`` rounds or when ``budget_seconds``, from
    the start and warm-up included, are used up, but not before ``least_rounds`` rounds (or
    ``rounds``, if fewer). ``enough`` is asked now and then, when the number of rounds has grown by
    half since it was last asked, whether what was measured will do. ``progress`` is told after each
    round how much of the budget is used, 0 to 1.

    ``synchronize`` waits for the device; it is called before each block's clock starts and before
    it stops. The garbage collector is off meanwhile, as in `timeit`: a collection would hit one
    case. Raises ValueError for no cases or no rounds; what a case raises passes through.
    """
    if not cases:
        raise ValueError("nothing to compare: cases is empty")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    wait = synchronize if synchronize is not None else _nothing
    todo = [(name, case if isinstance(case, Case) else Case(case)) for name, case in cases.items()]
    seconds: dict[str, list[float]] = {name: [] for name, _ in todo}
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = timer()
        for _, case in todo:
            _time_block(case, 1, wait, timer)
        calls = _calls_per_block(todo[0][1], block_seconds, wait, timer)
        done, ask_again = 0, FIRST_QUESTION
        while done < rounds and (done < least_rounds or timer() - start < budget_seconds):
            for name, case in _order(todo, done):
                seconds[name].append(_time_block(case, calls, wait, timer) / calls)
            done += 1
            if progress is not None:
                spent = (timer() - start) / budget_seconds if budget_seconds > 0 else 1.0
                progress(min(1.0, max(done / rounds, spent)))
            if enough is not None and done >= max(least_rounds, ask_again):
                ask_again = done + done // 2
                if enough(_comparison(seconds, calls)):
                    break
        if progress is not None:
            progress(1.0)
    finally:
        if collecting:
            gc.enable()
    return _comparison(seconds, calls)


def _comparison(seconds: Mapping[str, Sequence[float]], calls: int) -> Comparison:
    return Comparison({name: tuple(values) for name, values in seconds.items()}, calls)


def _nothing() -> None:
    """Stands in where no device needs waiting for."""


def _order(todo: list[tuple[str, Case]], done: int) -> list[tuple[str, Case]]:
    """Each case in each place equally often, and after each neighbour equally often."""
    start = (done // 2) % len(todo)
    turned = todo[start:] + todo[:start]
    return turned[::-1] if done % 2 else turned


def _time_block(
    case: Case, calls: int, wait: Callable[[], object], timer: Callable[[], float]
) -> float:
    function = case.function
    if case.block is not None:
        with case.context():
            return case.block(calls)
    with case.context():
        wait()
        start = timer()
        for _ in range(calls):
            function()
        wait()
        return timer() - start


def _calls_per_block(
    case: Case, block_seconds: float, wait: Callable[[], object], timer: Callable[[], float]
) -> int:
    """How many calls fill a block; the quickest of three tries counts, so a hiccup does not."""
    calls = 1
    while min(_time_block(case, calls, wait, timer) for _ in range(3)) < block_seconds:
        calls *= 2
        if calls >= 1 << 20:  # an empty function, or a clock that stands still
            break
    return calls
