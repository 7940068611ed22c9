"""Nothing is said of any op of torch's: each entry of op_db, forward and backward."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_leaves

import gradext
from gradext.recording import incidents

SAMPLES = 2
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def told(quick_op_db: None) -> Iterator[list[str]]:
    found: list[str] = []
    stop = incidents.subscribe(lambda incident: found.extend(map(str, incident.diagnoses)))
    yield found
    stop()


def differentiate(op: Any, dtype: torch.dtype) -> int:
    """How many samples of the op had a gradient."""
    count = 0
    samples = op.sample_inputs("cpu", dtype, requires_grad=True)
    for sample in itertools.islice(samples, SAMPLES):
        outputs = [
            out
            for out in tree_leaves(op(sample.input, *sample.args, **sample.kwargs))
            if isinstance(out, torch.Tensor) and out.requires_grad and out.layout == torch.strided
        ]
        if outputs:
            sum(out.abs().sum() for out in outputs).backward()
            count += 1
    return count


@pytest.mark.parametrize("guard", [False, True], ids=["plain", "guard"])
def test_nothing_is_said_of_any_op(told: list[str], guard: bool) -> None:
    ran, said = 0, {}
    with gradext.record(), gradext.guard() if guard else contextlib.nullcontext():
        for op in op_db:
            kinds = op.supported_backward_dtypes("cpu")
            dtype = next((d for d in (torch.float64, torch.float32) if d in kinds), None)
            if not op.supports_autograd or dtype is None:
                continue
            with contextlib.suppress(RuntimeError):  # no derivative for these arguments
                ran += differentiate(op, dtype)
            if told:
                said[f"{op.name}.{op.variant_test_name}"] = told[0]
                told.clear()
    assert said == {}
    assert ran > 900
