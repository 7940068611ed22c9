"""The value: the kernels against the reference, on every view, dtype, variant and grid."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from contents import PLAIN_DTYPES, SIZES, by_op, number, random_bytes, random_of, variant, views

import gradext
from gradext import _C
from gradext.fingerprints import reference

VARIANTS = _C.testing.fingerprint_variants()


def test_the_definition_has_not_moved() -> None:
    # Values of the definition itself: a change here breaks every fingerprint that anybody stored.
    known = {
        "empty": torch.empty(0, dtype=torch.uint8),
        "zero": torch.zeros((), dtype=torch.int64),
        "range": torch.arange(1000, dtype=torch.float32).view(10, 100),
        "two blocks": torch.arange(5000, dtype=torch.int64).to(torch.uint8),
    }
    found = {name: f"{reference.fingerprint(t):032x}" for name, t in known.items()}
    assert found == {
        "empty": "98e6ceb22417de64f19264ec81b77bd5",
        "zero": "c2a77e6089cbb14341b325912630ffcb",
        "range": "bf0849297d31109c3a68d8f438e1e4ac",
        "two blocks": "a9fcad413d159fb8a7690bccd6b33db1",
    }
    assert found == {name: str(gradext.fingerprint(t)) for name, t in known.items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_size_in_every_variant(name: str) -> None:
    with variant(name):
        assert _C.testing.fingerprint_variant() == name
        for size in [*SIZES, 4096 + 128, 8191, 8192, 8193, 3 * 4096 + 77]:
            data = random_bytes(size + 1)
            for t in (data[:size], data[1:]):  # the second is misaligned
                assert gradext.fingerprint(t) == reference.fingerprint(t), size


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_agree_where_carries_are_many(name: str) -> None:
    for fill in (0, 1, 0x7F, 0x80, 0xFF):
        t = torch.full((9000,), fill, dtype=torch.uint8)
        with variant(name):
            assert gradext.fingerprint(t) == reference.fingerprint(t)


def test_a_variant_can_be_chosen_from_outside() -> None:
    program = "from gradext import _C; print(_C.testing.fingerprint_variant())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"GRADEXT_FINGERPRINT_VARIANT": "plain"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "plain"
    assert not _C.testing.fingerprint_force_variant("none such")


@pytest.mark.parametrize("dtype", PLAIN_DTYPES, ids=str)
def test_every_dtype(dtype: torch.dtype, device: str) -> None:
    for shape in [(), (0,), (3,), (5, 0, 2), (7, 9), (40, 60)]:
        t = random_of(dtype, shape).to(device)
        want = reference.fingerprint(t)
        assert gradext.fingerprint(t) == want
        assert by_op(t) == want


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float32, torch.float64])
def test_a_view_has_the_value_of_its_contiguous_copy(dtype: torch.dtype, device: str) -> None:
    for name, t in views(dtype).items():
        t = t if device == "cpu" else t.to(device)
        copy = t.contiguous()
        want = reference.fingerprint(copy)
        assert gradext.fingerprint(copy) == want, name
        assert gradext.fingerprint(t) == want, name
        assert by_op(t) == want, name


@pytest.mark.parametrize("dtype", [torch.complex32, torch.complex64, torch.complex128])
def test_conjugate_and_negative_views(dtype: torch.dtype, device: str) -> None:
    z = random_of(dtype, (6, 50)).to(device)
    # torch's own copy may change the bits of a NaN, and the sign of a zero in a negative complex.
    z[z != z] = 1 + 1j
    for view in (z.conj(), z.conj().t(), z.conj()[1:, ::3], torch._neg_view(z)):
        for t in (view, torch._neg_view(view), view.contiguous()):
            if dtype is torch.complex32 and t.is_neg():
                continue  # torch cannot make the copy
            want = reference.fingerprint(t)
            assert gradext.fingerprint(t) == want
            assert by_op(t) == want
    imaginary = z.conj().imag
    assert imaginary.is_neg()
    assert gradext.fingerprint(imaginary) == reference.fingerprint(imaginary)
    assert gradext.fingerprint(z.conj()) != gradext.fingerprint(z)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_negative_views_of_integers(dtype: torch.dtype) -> None:
    t = torch._neg_view(random_of(dtype, (300,)))
    assert gradext.fingerprint(t) == reference.fingerprint(t)
    assert gradext.fingerprint(t[::3]) == reference.fingerprint(t[::3])


def test_quantized_tensors_count_as_what_they_are_stored_as() -> None:
    t = torch.randn(5, 8)
    for dtype in (torch.quint8, torch.qint8, torch.qint32):
        q = torch.quantize_per_tensor(t, 0.1, 3, dtype)
        assert gradext.fingerprint(q) == gradext.fingerprint(q.int_repr())
        assert gradext.fingerprint(q.t()) == gradext.fingerprint(q.int_repr().t())
        assert by_op(q) == by_op(q.int_repr())


def test_dtype_and_shape_are_part_of_the_value() -> None:
    zeros = torch.zeros(24, dtype=torch.uint8)
    same_bytes = [
        *(zeros, zeros.view(2, 12), zeros.view(12, 2), zeros.view(1, 24), zeros.view(24, 1)),
        *(zeros.view(dtype) for dtype in (torch.int8, torch.float32, torch.int32, torch.complex64)),
        *(torch.empty(shape) for shape in [(0,), (0, 1), (1, 0), (0, 0), (2, 0), (0, 2)]),
        *(torch.empty(0, dtype=dtype) for dtype in (torch.int32, torch.uint8)),
    ]
    assert len({gradext.fingerprint(t) for t in same_bytes}) == len(same_bytes)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_the_number_of_threads_does_not_matter(threads: int) -> None:
    tensors = [random_bytes(size, size) for size in (0, 700_001, 5, 4096 * 300, 0, 1, 900_000)]
    tensors += [t.view(-1, 4)[:, 1:3] for t in tensors if t.numel() > 4 and t.numel() % 4 == 0]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        want = gradext.fingerprint(tensors)
        torch.set_num_threads(threads)
        assert gradext.fingerprint(tensors) == want
    finally:
        torch.set_num_threads(before)
    assert [want[path] for path in want] == [gradext.fingerprint(t) for t in tensors]


GRIDS = [1, 2, 3, 7, 32, 1000]


@pytest.mark.parametrize("each", GRIDS)
@pytest.mark.parametrize("limit", [1, 40, 496])
@pytest.mark.parametrize("size", [1, 5, 32])
def test_any_grid_of_the_kernel_s_work_list(each: int, limit: int, size: int) -> None:
    tensors = [*views().values(), torch.empty(0), random_bytes(50_000), torch.empty(0)]
    tensors += [t.conj() for t in views(torch.complex64).values()]
    tensors += [torch.empty(3, 0), *(random_bytes(size) for size in SIZES), random_bytes(9000)[1:]]
    found = _C.testing.fingerprint_emulate(tensors, each, limit, size)
    want = [gradext.fingerprint(t) for t in tensors]
    assert [number(row) for row in found] == want


@pytest.mark.parametrize("teams", GRIDS)
@pytest.mark.parametrize("size", [1, 5, 32])
def test_the_kernel_of_one_plain_tensor(teams: int, size: int) -> None:
    plain = [*(random_bytes(n) for n in SIZES), torch.empty(0), torch.ones(100_000)]
    for t in plain:
        assert number(_C.testing.fingerprint_emulate_plain(t, teams, size)) == gradext.fingerprint(
            t
        )
    for t in (
        random_bytes(9000)[1:],
        torch.ones(4, 4).t(),
        torch.ones(9, dtype=torch.cfloat).conj(),
    ):
        assert _C.testing.fingerprint_emulate_plain(t, teams, size) is None


@pytest.mark.parametrize("dtype", PLAIN_DTYPES, ids=str)
def test_the_kernel_s_reads_of_every_dtype(dtype: torch.dtype) -> None:
    tensors = list(views(dtype).values())
    found = _C.testing.fingerprint_emulate(tensors, 13, size=3)
    assert [number(row) for row in found] == [gradext.fingerprint(t) for t in tensors]


def test_empty_tensors_anywhere_in_a_list(device: str) -> None:
    full, empty = torch.arange(10.0, device=device), torch.empty(0, device=device)
    for pattern in ("e", "ee", "ef", "fe", "efe", "fef", "eeffee", "f" * 200 + "e", "e" * 200):
        tensors = [full if kind == "f" else empty for kind in pattern]
        rows = torch.ops.gradext.fingerprint_list(tensors)
        assert rows.shape == (len(pattern), 2)
        want = [reference.fingerprint(t) for t in (full, empty)]
        assert [number(row) for row in rows.tolist()] == [
            want[0] if kind == "f" else want[1] for kind in pattern
        ]
        assert list(gradext.fingerprint(tensors).values()) == [number(r) for r in rows.tolist()]


def test_many_tensors_at_once(device: str) -> None:
    # More than the arguments of one launch can name.
    block = random_bytes(4 * 3000).view(torch.float32).to(device)
    tensors = list(block.unbind()) + [block[i:] for i in range(0, 3000, 100)]
    rows = torch.ops.gradext.fingerprint_list(tensors)
    assert [number(row) for row in rows[::97].tolist()] == [
        reference.fingerprint(t) for t in tensors[::97]
    ]
    assert rows.unique(dim=0).shape[0] == len({t.cpu().numpy().tobytes() for t in block}) + 30
