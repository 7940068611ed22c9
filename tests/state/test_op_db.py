"""Outside truth: torch's own database of operator samples, and what torch says of every tensor.

For each dtype and mode every in-place variant and every op that returns a view is run on samples;
before and after, each input and output must be reported as torch's own attributes report it.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from facts import MODES, NAMESPACE, by_torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_leaves

import gradext
from gradext import ops

DTYPES = [torch.float32, torch.complex64]
SAMPLES = 3  # per op; the first ones already differ in rank and arguments

# What torch 2.13 gives: 153 and 79 in-place variants, 79 and 68 ops that return views. The floors
# leave room for ops that come and go; an emptied test stays below them.
FLOORS = {
    torch.float32: {"in-place": 150, "view": 70},
    torch.complex64: {"in-place": 70, "view": 60},
}

# In-place variants that may write nothing on some sample, and then count nothing.
MAY_NOT_WRITE = ("resize", "dropout")

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: str(t).removeprefix("torch."))
# Where the inputs are made and where the op runs.
in_modes = pytest.mark.parametrize(
    ("made_in", "run_in"),
    [
        ("grad", "grad"),
        ("no_grad", "no_grad"),
        ("grad", "inference_mode"),
        ("inference_mode", "inference_mode"),
    ],
)

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick_op_db")]


def check(tensors: list[torch.Tensor]) -> None:
    """gradext agrees with torch on each of `tensors`, through every door."""
    array, columns = gradext.states(tensors)
    for t, values in zip(tensors, array.tolist(), strict=True):
        expected = by_torch(t)
        base = expected["base"]
        assert ops.version(t) == NAMESPACE.version(t) == expected["version"]
        assert ops.is_view(t) is NAMESPACE.is_view(t) is expected["is_view"]
        assert ops.base(t) is base
        assert NAMESPACE.base(t) is base
        assert ops.is_inference(t) is NAMESPACE.is_inference(t) is expected["is_inference"]
        assert ops.creation_meta(t) == NAMESPACE.creation_meta(t) == expected["creation_meta"]
        row = dict(zip(columns, values, strict=True))
        version = expected["version"]
        assert row["version"] == (-1 if version is None else version)
        assert row["is_view"] == expected["is_view"]
        assert row["is_inference"] == expected["is_inference"]
        state = gradext.inspect(t)
        assert (state.version, state.is_view, state.is_inference) == (
            version,
            expected["is_view"],
            expected["is_inference"],
        )
        assert state.base == (None if base is None else gradext.inspect(base).id)
        assert row["base"] == (state.base or 0)
        if base is not None:
            # A view counts with its base; torch has no attribute for it, but a bump shows on both.
            assert ops.shares_version_counter(t, base)
            assert ops.version(base) == version


def tensors_in(*values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def samples(op: Any, dtype: torch.dtype, requires_grad: bool = False) -> list[Any]:
    # `op.sample_inputs` is the same behind a tracker that reads the whole Python stack per sample,
    # which under pytest takes ten times as long as all the rest.
    made = op.sample_inputs_func(op, "cpu", dtype, requires_grad)
    return list(itertools.islice(made, SAMPLES))


def entries(dtype: torch.dtype) -> list[Any]:
    # Jiterator ops are CUDA's alone, whatever their entry says.
    return [
        op
        for op in op_db
        if op.supports_dtype(dtype, "cpu") and not op.name.startswith("jiterator")
    ]


def run_in_place(op: Any, sample: Any) -> bool:
    """Run the in-place variant on a clone of the input; False when torch refuses this sample."""
    if sample.broadcasts_input:
        return False
    target = sample.input.clone()
    involved = tensors_in(target, target.detach(), sample.args, sample.kwargs)
    check(involved)
    before = ops.version(target)
    try:
        result = op.get_inplace()(target, *sample.args, **sample.kwargs)
    except RuntimeError:
        check(involved)
        return False
    check([*involved, *tensors_in(result)])
    if before is not None and not any(word in op.name for word in MAY_NOT_WRITE):
        assert ops.version(target) > before, op.full_name
    return True


def run_for_views(op: Any, sample: Any) -> int:
    """Run the op; the number of its results that are views."""
    involved = tensors_in(sample.input, sample.args, sample.kwargs)
    check(involved)
    try:
        result = op(sample.input, *sample.args, **sample.kwargs)
    except RuntimeError:
        return 0
    results = tensors_in(result)
    check([*involved, *results])
    return sum(t._is_view() for t in results)


@functools.cache
def view_ops(dtype: torch.dtype) -> list[Any]:
    """The ops that return a view, by torch's word, on one of their first samples."""
    found = []
    for op in entries(dtype):
        for sample in samples(op, dtype):
            try:
                result = op(sample.input, *sample.args, **sample.kwargs)
            except RuntimeError:
                continue
            if any(t._is_view() for t in tensors_in(result)):
                found.append(op)
                break
    return found


@in_modes
@by_dtype
def test_in_place_variants(dtype: torch.dtype, made_in: str, run_in: str) -> None:
    ran: Counter[str] = Counter()
    for op in entries(dtype):
        if op.get_inplace() is None:
            continue
        grad = run_in == "grad" and op.supports_autograd
        with MODES[made_in]():
            made = samples(op, dtype, grad)
        with MODES[run_in]():
            ran[op.full_name] = sum(run_in_place(op, sample) for sample in made)
    exercised = [name for name, count in ran.items() if count]
    print(f"{len(exercised)} of {len(ran)} in-place variants, {ran.total()} runs")
    assert len(exercised) >= FLOORS[dtype]["in-place"]


@in_modes
@by_dtype
def test_view_ops(dtype: torch.dtype, made_in: str, run_in: str) -> None:
    views: Counter[str] = Counter()
    for op in view_ops(dtype):
        grad = run_in == "grad" and op.supports_autograd
        with MODES[made_in]():
            made = samples(op, dtype, grad)
        with MODES[run_in]():
            views[op.full_name] = sum(run_for_views(op, sample) for sample in made)
    returning = [name for name, count in views.items() if count]
    print(f"{len(views)} view ops, {len(returning)} returned {views.total()} views")
    assert len(views) >= FLOORS[dtype]["view"]
    if made_in == "inference_mode":
        # autograd tracks no view of an inference tensor, save of what an op made inside for itself
        assert views["transpose"] == views["view"] == views["unbind"] == 0
    elif run_in == "grad":
        assert len(returning) >= FLOORS[dtype]["view"]
    else:
        # inside some ops the view is of an intermediate, which under inference_mode is no view
        assert min(views["transpose"], views["view"], views["unbind"], views["select"]) > 0
        assert len(returning) >= FLOORS[dtype]["view"] // 2
