"""Any tensor, any view of it: the value is the reference's, whichever way it is computed."""

from __future__ import annotations

import torch
from contents import PLAIN_DTYPES, by_op, number, random_of, variant
from hypothesis import given, settings
from hypothesis import strategies as st

import gradext
from gradext import _C
from gradext.fingerprints import reference


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """A tensor of any dtype, then up to four views of it, one on the other."""
    dtype = draw(st.sampled_from(PLAIN_DTYPES))
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=4)))
    if draw(st.booleans()):
        shape = (*shape, draw(st.integers(0, 400)))
    t = random_of(dtype, shape, seed=draw(st.integers(0, 1000)))
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["permute", "step", "narrow", "expand", "conj", "select"]))
        if kind == "permute":
            t = t.permute(draw(st.permutations(range(t.dim()))))
        elif kind == "conj" and dtype in (torch.complex64, torch.complex128):
            t = t.conj()
        elif kind == "expand":
            t = t.unsqueeze(0).expand(draw(st.integers(0, 3)), *t.shape)
        elif t.dim() > 0:
            dim = draw(st.integers(0, t.dim() - 1))
            if kind == "step":
                index = [slice(None)] * t.dim()
                index[dim] = slice(draw(st.integers(0, 3)), None, draw(st.integers(1, 3)))
                t = t[tuple(index)]
            elif t.shape[dim] > 0:
                start = draw(st.integers(0, t.shape[dim] - 1))
                t = t.select(dim, start) if kind == "select" else t.narrow(dim, start, 1)
    return t


@settings(max_examples=150, deadline=None, derandomize=True)
@given(tensors(), st.sampled_from(_C.testing.fingerprint_variants()))
def test_one_tensor(t: torch.Tensor, name: str) -> None:
    want = reference.fingerprint(t)
    with variant(name):
        assert gradext.fingerprint(t) == want
        assert by_op(t) == want
        assert gradext.fingerprint(t.contiguous()) == want


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(tensors(), max_size=8), *(st.integers(1, most) for most in (50, 300, 33)))
def test_lists_on_any_grid(items: list[torch.Tensor], each: int, limit: int, size: int) -> None:
    want = [reference.fingerprint(t) for t in items]
    assert list(gradext.fingerprint(items).values()) == want
    assert [number(row) for row in _C.testing.fingerprint_emulate(items, each, limit, size)] == want
    assert [number(row) for row in torch.ops.gradext.fingerprint_list(items).tolist()] == want
