"""Interleaved ratios against an injected clock: no test here reads real time."""

from __future__ import annotations

import contextlib
import gc
import math
import random
import statistics
from collections import Counter

import pytest

from gradext.mode_costs import timing


class Clock:
    """A clock that only moves when a timed function says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def costs(self, seconds, log=None):
        """A function that takes ``seconds()`` on this clock."""

        def function():
            self.now += seconds()
            if log is not None:
                log.append(function)

        return function


# n, the two ranks and the confidence level in percent, as textbooks print them ("Confidence
# intervals for the population median"), for the narrowest interval of at least 95 %.
TABLE = [
    (6, 1, 6, 96.9),
    (7, 1, 7, 98.4),
    (8, 1, 8, 99.2),
    (9, 2, 8, 96.1),
    (10, 2, 9, 97.9),
    (11, 2, 10, 98.8),
    (12, 3, 10, 96.1),
    (13, 3, 11, 97.8),
    (14, 3, 12, 98.7),
    (15, 4, 12, 96.5),
    (16, 4, 13, 97.9),
    (17, 5, 13, 95.1),
    (18, 5, 14, 96.9),
    (19, 5, 15, 98.1),
    (20, 6, 15, 95.9),
]


@pytest.mark.parametrize(("samples", "low", "high", "percent"), TABLE)
def test_ranks_equal_the_printed_table(samples, low, high, percent):
    found_low, found_high, covered = timing.median_ranks(samples)
    assert (found_low, found_high, round(100 * covered, 1)) == (low, high, percent)


@pytest.mark.parametrize("samples", [5, 21, 100, 999, 1000])
def test_ranks_are_the_narrowest_that_cover(samples):
    def covers(rank):
        inside = range(rank, samples + 1 - rank)
        return sum(math.comb(samples, below) for below in inside) / 2**samples

    low, high, covered = timing.median_ranks(samples)
    assert low + high == samples + 1
    assert covered == covers(low)
    assert covered >= 0.95 or low == 1
    assert covers(low + 1) < 0.95


def test_too_few_samples_give_the_extremes_and_say_what_they_cover():
    estimate = timing.median_interval([3.0, 1.0, 2.0])
    assert (estimate.low, estimate.value, estimate.high) == (1.0, 2.0, 3.0)
    assert estimate.confidence == 0.75
    assert estimate.samples == 3


@pytest.mark.parametrize("samples", [11, 40])
def test_the_interval_covers_the_true_median_as_often_as_it_says(samples):
    generator = random.Random(0)
    tries = 4000
    # A skewed distribution with a known median: the normal interval of the mean would miss it.
    hits = 0
    for _ in range(tries):
        estimate = timing.median_interval(
            [generator.lognormvariate(0.0, 1.5) for _ in range(samples)]
        )
        hits += estimate.holds(1.0)
    promised = timing.median_ranks(samples)[2]
    assert promised >= 0.95
    assert hits / tries == pytest.approx(promised, abs=0.015)


def test_a_wider_confidence_gives_a_wider_interval():
    values = [float(value) for value in range(101)]
    narrow, wide = timing.median_interval(values, 0.5), timing.median_interval(values, 0.999)
    assert wide.low < narrow.low < narrow.value == 50.0 < narrow.high < wide.high


def test_the_ratio_is_known_although_the_machine_slows_down_for_most_of_the_time():
    clock, generator = Clock(), random.Random(1)
    speed = 1.0

    def noisy(seconds):
        # Now and then a call is interrupted for far longer than it takes.
        hiccup = 50 * seconds if generator.random() < 0.1 else 0.0
        return seconds * speed * generator.uniform(0.98, 1.02) + hiccup

    def fast():
        nonlocal speed
        speed = 1.0 if clock.now < 0.02 else 7.0
        return noisy(1.0e-4)

    cases = {"fast": clock.costs(fast), "slow": clock.costs(lambda: noisy(1.3e-4))}
    comparison = timing.compare(
        cases, rounds=200, budget_seconds=1e9, block_seconds=0.0, timer=clock
    )
    ratio = comparison.ratio("slow", over="fast")
    assert comparison.rounds == 200
    assert ratio.value == pytest.approx(1.3, abs=0.02)
    assert ratio.holds(1.3)
    assert not ratio.holds(1.0)
    means = {name: statistics.mean(values) for name, values in comparison.seconds.items()}
    assert means["slow"] / means["fast"] != pytest.approx(1.3, abs=0.02)


def test_no_difference_holds_one():
    clock, generator = Clock(), random.Random(2)
    same = {name: clock.costs(lambda: generator.uniform(0.9e-4, 1.1e-4)) for name in "ab"}
    comparison = timing.compare(
        same, rounds=100, budget_seconds=1e9, block_seconds=0.0, timer=clock
    )
    assert comparison.ratio("a", over="b").holds(1.0)


def test_exact_times_come_back_per_call():
    clock = Clock()
    cases = {"a": clock.costs(lambda: 2.0**-16), "b": clock.costs(lambda: 2.0**-14)}
    comparison = timing.compare(
        cases, rounds=9, budget_seconds=1e9, block_seconds=2.0**-12, timer=clock
    )
    assert comparison.calls == 16
    assert comparison.seconds == {"a": (2.0**-16,) * 9, "b": (2.0**-14,) * 9}
    assert comparison.time("b").value == 2.0**-14
    assert comparison.ratio("b", over="a") == timing.Estimate(4.0, 4.0, 4.0, 1 - 20 / 512, 9)


def test_rounds_alternate_and_no_case_keeps_its_place():
    clock, log = Clock(), []
    cases = {name: clock.costs(lambda: 1.0, log) for name in "abc"}
    names = {function: name for name, function in cases.items()}
    timing.compare(cases, rounds=6, budget_seconds=1e9, block_seconds=0.0, timer=clock)
    played = [names[function] for function in log][-18:]
    rounds = [tuple(played[index : index + 3]) for index in range(0, 18, 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) == 6
    for place in range(3):
        assert Counter(order[place] for order in rounds) == {"a": 2, "b": 2, "c": 2}


def test_the_budget_ends_it_but_not_before_an_interval_exists():
    clock = Clock()
    case = {"a": clock.costs(lambda: 1.0)}
    assert timing.compare(case, budget_seconds=24.0, timer=clock).rounds == 20  # warm-up takes 4
    clock = Clock()
    case = {"a": clock.costs(lambda: 1.0)}
    few = timing.compare(case, budget_seconds=0.0, timer=clock)
    assert few.rounds == timing.MIN_ROUNDS
    assert few.time("a").confidence >= 0.95


def test_one_slow_warm_up_does_not_make_blocks_too_short():
    clock = Clock()
    costs = iter([10.0, 10.0])  # the first call, and the first try of the block
    case = {"a": clock.costs(lambda: next(costs, 2.0**-14))}
    comparison = timing.compare(
        case, rounds=6, budget_seconds=1e9, block_seconds=2.0**-12, timer=clock
    )
    assert comparison.calls == 4


def test_a_clock_that_stands_still_does_not_hang():
    comparison = timing.compare({"a": int}, rounds=1, budget_seconds=0.0, timer=lambda: 0.0)
    assert comparison.calls == 1 << 20


def test_the_context_is_entered_for_each_block_and_not_timed():
    clock, inside = Clock(), []
    entered = 0

    @contextlib.contextmanager
    def context():
        nonlocal entered
        clock.now += 100.0
        entered += 1
        inside.append(True)
        yield
        inside.pop()
        clock.now += 100.0

    seen = []
    work = clock.costs(lambda: seen.append(bool(inside)) or 1.0)
    comparison = timing.compare(
        {"a": timing.Case(work, context)}, rounds=7, budget_seconds=1e9, timer=clock
    )
    assert all(seen)
    assert entered == len(seen)
    assert comparison.seconds == {"a": (1.0,) * 7}


def test_the_device_is_waited_for_on_both_sides_of_the_clock():
    clock, queued = Clock(), 0.0

    def launch():
        nonlocal queued
        clock.now += 1.0
        queued += 5.0

    def synchronize():
        nonlocal queued
        clock.now += queued
        queued = 0.0

    launch()
    comparison = timing.compare(
        {"a": launch}, rounds=6, budget_seconds=1e9, synchronize=synchronize, timer=clock
    )
    assert comparison.seconds == {"a": (6.0,) * 6}


def test_the_garbage_collector_is_off_meanwhile_and_then_as_it_was():
    seen = set()
    clock = Clock()
    work = clock.costs(lambda: seen.add(gc.isenabled()) or 1.0)
    timing.compare({"a": work}, rounds=1, budget_seconds=0.0, timer=clock)
    assert seen == {False}
    assert gc.isenabled()

    def fails():
        raise RuntimeError("from the function")

    with pytest.raises(RuntimeError, match="from the function"):
        timing.compare({"a": fails}, timer=clock)
    assert gc.isenabled()
    gc.disable()
    try:
        timing.compare({"a": work}, rounds=1, budget_seconds=0.0, timer=clock)
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: timing.compare({}), "cases is empty"),
        (lambda: timing.compare({"a": int}, rounds=0), "rounds must be at least 1, got 0"),
        (lambda: timing.median_interval([]), "at least 1 sample, got 0"),
        (lambda: timing.median_ranks(5, 95), "between 0 and 1, got 95"),
    ],
)
def test_bad_input_is_one_clear_line(call, text):
    with pytest.raises(ValueError, match=text):
        call()
