"""The same op on two devices: do they count the same writes, and leave the same values?

Judges two recorded outcomes; runs nothing and needs no device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from gradext.opcheck import verdicts, witnesses
from gradext.opcheck.verdicts import DEVICES, ERROR, WARNING, Finding
from gradext.opcheck.witnesses import Given, Made, Outcome

# How far apart two kernels may round: (relative, absolute), as torch.testing.assert_close has it,
# with room for sums in another order.
_TOLERANCE = {
    torch.float16: (1e-2, 1e-2),
    torch.bfloat16: (3e-2, 3e-2),
    torch.float32: (1e-4, 1e-4),
    torch.complex64: (1e-4, 1e-4),
}
_EXACT = (1e-7, 1e-7)


def compare(one: Outcome, other: Outcome) -> list[Finding]:
    """Where `other` disagrees with `one`: version bumps, what is returned, values.

    A device that has no kernel is no disagreement; one that raises anything else is.
    """
    if not one.ran:
        return []
    found = list(_compare(one, other))
    return [dataclasses.replace(f, op=one.op, source=one.source) for f in found]


def _compare(one: Outcome, other: Outcome) -> Iterator[Finding]:
    a, b = one.runs[witnesses.GRAD], other.runs[witnesses.GRAD]
    if b.error:
        if not _is_missing(b.error):
            yield _found(
                "", WARNING, f"runs on {one.device} and raises on {other.device}: {b.error}"
            )
        return
    for mine, its in zip(a.given, b.given, strict=False):
        if mine.bumps != its.bumps:
            yield _found(
                mine.name,
                ERROR,
                f"the version of `{mine.name}` goes up by {mine.bumps} on {one.device} and by "
                f"{its.bumps} on {other.device}",
            )
        if mine.form[:1] != its.form[:1]:
            yield _shapes(mine, its, one, other)
        elif mine.declared or mine.changed or its.changed:
            yield from _values(mine, its, one, other)
    if len(a.made) != len(b.made):
        yield _found(
            "",
            ERROR,
            f"returns {len(a.made)} tensors on {one.device}, {len(b.made)} on {other.device}",
        )
        return
    for result, its_result in zip(a.made, b.made, strict=True):
        if result.form[:1] != its_result.form[:1]:
            yield _shapes(result, its_result, one, other)
            continue
        if bool(result.aliases) != bool(its_result.aliases):
            there, here = (one, other) if result.aliases else (other, one)
            yield _found(
                result.name,
                WARNING,
                f"{result.name} shares memory with an input on {there.device} and not on "
                f"{here.device}",
            )
        yield from _values(result, its_result, one, other)


def _shapes(mine: Given | Made, its: Given | Made, one: Outcome, other: Outcome) -> Finding:
    return _found(
        mine.name,
        ERROR,
        f"`{mine.name}` is {_shape(mine)} on {one.device} and {_shape(its)} on {other.device}",
    )


def _shape(each: Given | Made) -> str:
    return f"{list(each.form[0])}" if each.form else "?"


def _values(
    mine: Given | Made, its: Given | Made, one: Outcome, other: Outcome
) -> Iterator[Finding]:
    a, b = mine.value, its.value
    again = one.runs.get(witnesses.AGAIN)
    if a is None or b is None or a.shape != b.shape or again is None:
        return
    if not verdicts.steady(one) & verdicts.steady(other) & {mine.name}:
        return  # random, or whatever was in the memory: not two kernels' disagreement
    if a.dtype != b.dtype:
        reason = f"`{mine.name}` is {a.dtype} on {one.device}, {b.dtype} on {other.device}"
        yield _found(mine.name, ERROR, reason)
        return
    relative, absolute = _TOLERANCE.get(a.dtype, _EXACT)
    wide = torch.complex128 if a.dtype.is_complex else torch.float64
    x, y = a.to(wide), b.to(wide)
    if not torch.allclose(x, y, rtol=relative, atol=absolute, equal_nan=True):
        apart = (x - y).abs()
        most = float(apart[~apart.isnan()].max()) if (~apart.isnan()).any() else float("nan")
        yield _found(
            mine.name,
            ERROR,
            f"`{mine.name}` holds other values on {one.device} than on {other.device}: up to "
            f"{most:.3g} apart",
        )


def _is_missing(error: str) -> bool:
    return "NotImplementedError" in error or "not implemented for" in error


def _found(subject: str, severity: str, reason: str) -> Finding:
    return Finding(
        DEVICES,
        severity,
        "",
        subject,
        reason,
        "count and write in one place for all devices: an ADInplaceOrView kernel is asked before "
        "the backend's",
    )
