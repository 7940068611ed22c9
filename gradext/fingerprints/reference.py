"""The fingerprint in plain Python integers: its definition as a program, and slow.

The kernels are held against it (tests/fingerprint), and anybody who wants to compute a fingerprint
elsewhere can read it as the specification; docs/fingerprint.md has the same in words. Shares no
code with csrc/fingerprint.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

BLOCK = 4096  # bytes
ROW = 128  # bytes: 16 lanes of one 64-bit word
LANES = ROW // 8

_WORD = (1 << 64) - 1
_HALF = (1 << 32) - 1
_FOLD_LOW, _FOLD_HIGH = 0xED5AD4BB, 0xF1357AEB
_MIX1, _MIX2, _MIX3 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93
_GOLDEN = 0x9E3779B97F4A7C15

# The dtypes' codes are torch's own numbers of them (c10/core/ScalarType.h), which do not change.
_DTYPES = """
    uint8 int8 int16 int32 int64 float16 float32 float64 complex32 complex64 complex128 bool
    qint8 quint8 qint32 bfloat16 quint4x2 quint2x4 bits1x8 bits2x4 bits4x2 bits8 bits16
    float8_e5m2 float8_e4m3fn float8_e5m2fnuz float8_e4m3fnuz uint16 uint32 uint64
    uint1 uint2 uint3 uint4 uint5 uint6 uint7 int1 int2 int3 int4 int5 int6 int7
    float8_e8m0fnu float4_e2m1fn_x2
"""
CODES: dict[str, int] = {name: code for code, name in enumerate(_DTYPES.split())}


def mix64(x: int) -> int:
    x = (x ^ (x >> 30)) * _MIX1 & _WORD
    x = (x ^ (x >> 27)) * _MIX2 & _WORD
    return x ^ (x >> 31)


def fold(lane: int, word: int) -> int:
    x = lane ^ word
    return ((x & _HALF) * _FOLD_LOW + (x >> 32) * _FOLD_HIGH) & _WORD


def block_terms(data: bytes, block: int) -> tuple[int, int]:
    """What the block number `block`, 1 to 4,096 bytes, adds to the two sums."""
    data = data + bytes(-len(data) % ROW)
    low = high = 0
    for lane in range(LANES):
        x = mix64(_GOLDEN * (lane + 1) & _WORD) ^ mix64(_GOLDEN ^ (block + 1))
        for start in range(8 * lane, len(data), ROW):
            x = fold(x, int.from_bytes(data[start : start + 8], "little"))
        x = (x ^ (x >> 30)) * _MIX1 & _WORD
        x ^= x >> 27
        a, b = x * _MIX2 & _WORD, x * _MIX3 & _WORD
        low += a ^ (a >> 31)
        high += b ^ (b >> 32)
    return low & _WORD, high & _WORD


def of_bytes(data: bytes, code: int, shape: Sequence[int]) -> int:
    """The fingerprint of `data`, the elements in logical order, with a dtype's code and a shape."""
    low = high = 0
    for block in range(-(-len(data) // BLOCK)):
        terms = block_terms(data[block * BLOCK : (block + 1) * BLOCK], block)
        low, high = (low + terms[0]) & _WORD, (high + terms[1]) & _WORD
    facts = _GOLDEN
    for value in (code, len(shape), *shape, len(data)):
        facts = (mix64(facts ^ value) + _GOLDEN) & _WORD
    low = mix64((low + facts) & _WORD)
    high = mix64((high + mix64(facts)) & _WORD)
    return high << 64 | low


def fingerprint(tensor: torch.Tensor) -> int:
    """The fingerprint of a tensor, by way of a contiguous copy of it on the CPU."""
    with torch.no_grad():
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        if plain.is_quantized:
            plain = plain.int_repr()
        # A copy: a dimension of size 1 may keep a stride that the change of dtype refuses.
        flat = plain.reshape(-1).clone(memory_format=torch.contiguous_format)
        data = bytes(flat.view(torch.uint8).tolist()) if flat.numel() else b""
    return of_bytes(data, CODES[str(plain.dtype).removeprefix("torch.")], tensor.shape)
