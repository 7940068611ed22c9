"""Is it a good hash? Nearly equal contents, avalanche and birthday statistics of each half.

benchmarks/fingerprint_quality.py does the same on ten times as many inputs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy
import pytest
import torch
from contents import SIZES, random_bytes, random_of, rows

import gradext


def assert_all_differ(found: numpy.ndarray) -> None:
    for half in range(2):
        assert len(numpy.unique(found[:, half])) == len(found)


def flipped(data: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """One copy of `data` for each of `bits`, with that bit changed."""
    matrix = data.repeat(len(bits), 1)
    places = torch.arange(len(bits))
    matrix[places, bits // 8] ^= (1 << (bits % 8)).to(torch.uint8)
    return matrix


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fill", ["zeros", "ones", "random"])
def test_every_single_bit_counts(size: int, fill: str) -> None:
    data = {"zeros": torch.zeros, "ones": lambda n, dtype: torch.full((n,), 255, dtype=dtype)}
    t = random_bytes(size) if fill == "random" else data[fill](size, dtype=torch.uint8)
    original = rows(t[None])
    every = torch.arange(8 * size)
    if fill != "random":
        every = every[:: max(1, size // 128)]
    found = [original, *(rows(flipped(t, bits)) for bits in every.split(4096) if len(bits))]
    assert_all_differ(numpy.concatenate(found))


def test_every_pair_of_bits_counts() -> None:
    # 256 bytes are two words for each lane: a bit of the one must not cancel a bit of the other.
    bits = torch.tensor(list(itertools.combinations(range(0, 2048, 3), 2)))
    t = torch.zeros(256, dtype=torch.uint8)
    found = []
    for part in bits.split(20_000):
        matrix = flipped(t, part[:, 0])
        places = torch.arange(len(part))
        matrix[places, part[:, 1] // 8] ^= (1 << (part[:, 1] % 8)).to(torch.uint8)
        found.append(rows(matrix))
    assert_all_differ(numpy.concatenate(found))


def test_moves_of_elements_count() -> None:
    for dtype in (torch.uint8, torch.float32, torch.int64, torch.complex128):
        t = random_of(dtype, (1500,), seed=3)
        swaps = []
        for i, j in [(0, 1), (0, 1499), (7, 8), (15, 31), (16, 32), (511, 512), (3, 1027)]:
            other = t.clone()
            other[[i, j]] = other[[j, i]]
            swaps.append(other)
        others = [
            *swaps,
            *(t.roll(shift) for shift in (1, -1, 2, 16, 32, 128, 512, 1024)),
            t.flip(0),
            torch.cat([t[512:1024], t[:512], t[1024:]]),
            t.sort().values if not dtype.is_complex and dtype is not torch.uint8 else t.flip(0) * 1,
        ]
        values = [gradext.fingerprint(x) for x in (t, *others[:-1])]
        assert len(set(values)) == len(values)


def test_permuted_blocks_count() -> None:
    # Blocks of the definition, and pieces of every smaller power of two.
    t = random_bytes(4 * 4096)
    for size in (8, 16, 64, 128, 1024, 4096):
        pieces = t.view(-1, size)
        orders = [torch.arange(len(pieces))]
        for i, j in [(0, 1), (0, len(pieces) - 1), (1, 3)]:
            order = orders[0].clone()
            order[[i, j]] = order[[j, i]]
            orders.append(order)
        orders += [orders[0].flip(0), orders[0].roll(1)]
        values = {gradext.fingerprint(pieces[order].view(-1)) for order in orders}
        assert len(values) == len(orders)


def test_fills_and_lengths_count() -> None:
    values = set()
    cases = 0
    for size in (*range(200), 4095, 4096, 4097, 8192):
        for fill in (0, 1, 255):
            cases += size > 0 or fill == 0
            values.add(gradext.fingerprint(torch.full((size,), fill, dtype=torch.uint8)))
    assert len(values) == cases


def test_appended_zeros_prefixes_and_suffixes_count() -> None:
    t = random_bytes(4200)
    cuts = [t[:n] for n in (*range(300), *range(4000, 4200))]
    cuts += [t[n:] for n in (*range(1, 300), *range(4000, 4200))]
    padded = [torch.cat([t[:77], torch.zeros(n, dtype=torch.uint8)]) for n in range(1, 300)]
    padded += [torch.cat([torch.zeros(n, dtype=torch.uint8), t[:77]]) for n in range(1, 300)]
    values = {gradext.fingerprint(x) for x in (*cuts, *padded)}
    assert len(values) == len(cuts) + len(padded)


def test_pairs_of_signs_count() -> None:
    # torch.hash_tensor gives all of these one value.
    for dtype in (torch.float16, torch.float32, torch.float64):
        signs = torch.ones(200, dtype=dtype).repeat(200 * 199 // 2 + 1, 1)
        for row, (i, j) in enumerate(itertools.combinations(range(200), 2)):
            signs[row, [i, j]] = -1
        assert_all_differ(rows(signs))


def bits_of(n: numpy.ndarray) -> numpy.ndarray:
    return (n[:, None] >> numpy.arange(24)) & 1


def one_column(n: numpy.ndarray) -> numpy.ndarray:
    """Three words of one lane, a byte in each."""
    table = numpy.zeros((len(n), 3, 16), numpy.int64)
    table[:, :, 5] = n[:, None] >> (8 * numpy.arange(3)) & 0xFF
    return table


def bits_in_one_lane(n: numpy.ndarray) -> numpy.ndarray:
    table = numpy.zeros((len(n), 24, 128), numpy.int8)
    table[:, :, 24] = bits_of(n)
    return table


# What real tensors hold, not noise: from numbers below 2**24, as many different inputs.
STRUCTURED: dict[str, Callable[[numpy.ndarray], numpy.ndarray]] = {
    "counter": lambda n: n.astype(numpy.int64)[:, None],
    "last of 64": lambda n: numpy.pad(n.astype(numpy.float64)[:, None], ((0, 0), (63, 0))),
    "one column": one_column,
    "bits in words": lambda n: bits_of(n).astype(numpy.int64),
    "bits in one lane": bits_in_one_lane,
    "signs": lambda n: (1 - 2 * bits_of(n)).astype(numpy.float32),
    "high bits": lambda n: (bits_of(n).astype(numpy.int64) << 63) + 5,
    "steps": lambda n: numpy.arange(8)[None, :] * n.astype(numpy.float64)[:, None],
}


def structured_rows(count: int) -> numpy.ndarray:
    """The fingerprints of `count` inputs of each kind, all kinds in one pool."""
    found = []
    for make in STRUCTURED.values():
        for start in range(0, count, 12_500):
            inputs = make(numpy.arange(start, min(count, start + 12_500)))
            found.append(rows(torch.from_numpy(inputs.reshape(len(inputs), -1))))
    return numpy.concatenate(found)


def test_birthdays_are_those_of_a_random_function() -> None:
    count = 125_000  # of each kind: 10^6 in all
    halves = structured_rows(count)
    n = len(halves)
    assert n == 1_000_000
    for half in range(2):
        values = halves[:, half]
        assert len(numpy.unique(values)) == n
        # No two of 64 bits are expected; of any 32 of them, so many:
        expected = n * (n - 1) / 2 / 2**32
        for shift in (0, 8, 16, 24, 32):
            window = (values >> numpy.uint64(shift)).astype(numpy.uint32)
            pairs = n - len(numpy.unique(window))
            assert abs(pairs - expected) < 6 * math.sqrt(expected), (half, shift, pairs)
        for bit in range(64):
            ones = int(((values >> numpy.uint64(bit)) & numpy.uint64(1)).sum())
            assert abs(ones - n / 2) < 6 * math.sqrt(n) / 2, (half, bit, ones)


@pytest.mark.parametrize("size", [1, 8, 24, 128, 200, 4096, 5000])
def test_avalanche(size: int) -> None:
    """A flipped input bit flips each output bit half of the time."""
    trials = 40
    flips = numpy.zeros((2, 64))
    total = 0
    worst = 0.0
    for seed in range(trials):
        t = random_bytes(size, seed)
        bits = torch.randperm(8 * size)[:256]
        changed = rows(flipped(t, bits)) ^ rows(t[None])
        as_bits = (changed[:, :, None] >> numpy.arange(64, dtype=numpy.uint64)) & numpy.uint64(1)
        flips += as_bits.sum(0)
        total += len(bits)
        weight = as_bits.sum((1, 2)).astype(numpy.int64)
        worst = max(worst, abs(weight - 64).max())
    assert abs(flips - total / 2).max() < 6 * math.sqrt(total) / 2
    assert worst < 42  # 64 of 128 bits, deviation 5.7: 7.4 sigma
