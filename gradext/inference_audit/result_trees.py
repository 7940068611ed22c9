"""Results of a call as flat lists of (path, value), and how two of them differ.

Owns no judgement: whether a difference matters is for gradext.inference_audit.checks to say.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from gradext.base import raw
from gradext.objects import naming, walk

Flat = list[tuple[str, Any]]  # tensors of their own, on the CPU, and numbers and texts
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_DEPTH = 10
# Relative tolerances as in torch.testing; what differs by less is rounding.
_RTOL = {torch.float16: 1e-3, torch.bfloat16: 1.6e-2, torch.float32: 1.3e-6, torch.float64: 1e-7}
_ATOL = {torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5, torch.float64: 1e-7}


@dataclasses.dataclass(frozen=True)
class Difference:
    """How two results differ.

    Attributes:
        kind: "structure", "values" (beyond rounding) or "rounding".
        path: where the difference is largest.
        text: in words, with the largest absolute and relative difference.
    """

    kind: str
    path: str
    text: str


def tensors_of(value: Any, name: str = "output") -> list[tuple[str, torch.Tensor]]:
    """The tensors in a result as far as walk.walk() reaches."""
    return list(walk.walk([(name, value)], depth=_DEPTH))


def is_inference(tensor: torch.Tensor) -> bool:
    """`tensor.is_inference()`, without the code that a subclass may have for it."""
    facts = naming.facts_of(tensor)
    return facts is not None and facts.is_inference


def flat(value: Any, name: str = "output") -> Flat:
    """Copies of the tensors in a result, then its numbers and texts."""
    found: Flat = [(path, own(tensor)) for path, tensor in tensors_of(value, name)]
    return found + _plain(value, name, _DEPTH)


def own(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that shares nothing with anybody and is no inference tensor."""
    with torch.inference_mode(False), torch.no_grad():
        return tensor.detach().cpu().clone()


def _plain(value: Any, path: str, depth: int) -> Flat:
    kind = type(value)
    if any(kind is plain for plain in _PLAIN):
        return [(path, value)]
    found: Flat = []
    if depth and issubclass(kind, (list, tuple)):
        for index, item in enumerate(raw.sequence_of(value) or ()):
            found += _plain(item, f"{path}[{index}]", depth - 1)
    elif depth and issubclass(kind, dict):
        for key, item in raw.items_of(value) or ():
            found += _plain(item, f"{path}[{raw.key_text(key)}]", depth - 1)
    return found


def compare(first: Flat, second: Flat) -> Difference | None:
    """None when the two are equal to the bit (any NaN equals any other)."""
    names, others = [path for path, _ in first], [path for path, _ in second]
    if names != others:
        odd = next(iter(sorted(set(names) ^ set(others))), names[0] if names else "output")
        which = "the first has" if odd in names else "the second has"
        return Difference("structure", odd, f"only {which} `{odd}`")
    worst: tuple[float, Difference] | None = None
    for (path, a), (_, b) in zip(first, second, strict=True):
        found = _one(path, a, b)
        if found is not None and (worst is None or found[0] > worst[0]):
            worst = found
    return worst[1] if worst else None


def _one(path: str, a: Any, b: Any) -> tuple[float, Difference] | None:
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        same = type(a) is type(b) and (a == b or (a != a and b != b))
        if same:
            return None
        return float("inf"), Difference("values", path, f"`{path}` is {a!r} and {b!r}"[:200])
    if a.shape != b.shape or a.dtype != b.dtype or a.layout != b.layout:
        text = f"`{path}` is {_describe(a)} and {_describe(b)}"
        return float("inf"), Difference("structure", path, text)
    if a.layout != torch.strided:
        a, b = a.to_dense(), b.to_dense()
    if a.is_quantized:
        a, b = a.dequantize(), b.dequantize()
    if bool(((a == b) | ((a != a) & (b != b))).all()):
        return None
    wide = torch.complex128 if a.dtype.is_complex else torch.float64
    gap = (a.to(wide) - b.to(wide)).abs()
    size = b.to(wide).abs()
    gap = torch.where(gap.isnan(), torch.inf, gap)
    at = int(gap.argmax())
    largest = float(gap.flatten()[at])
    relative = largest / max(float(size.flatten()[at]), 1e-30)
    rtol, atol = _RTOL.get(a.dtype, 0.0), _ATOL.get(a.dtype, 0.0)
    close = bool((gap <= atol + rtol * size).all())
    text = f"`{path}` differs by up to {largest:.3g} ({relative:.2g} of the value)"
    return (
        relative if close else relative + 1e6,
        Difference("rounding" if close else "values", path, text),
    )


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
