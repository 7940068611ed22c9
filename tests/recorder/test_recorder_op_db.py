"""Recording changes nothing: torch's own operator samples, with it and without it.

Every entry of op_db runs on its first float32 samples as a function with its backward, in place
where there is such a variant, and with `out=`. Results, versions and gradients must be bit for bit
what they are without a recording, errors must read the same, and every version that moved must
be explained by an event.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from events import same_bits
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_leaves, tree_map_only

import gradext
from gradext import _C
from gradext.recording import own_errors

SAMPLES = 2  # per op; 3 in place
# Their results are uninitialised memory: only shapes and versions can be compared.
UNINITIALISED = {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty",
                 "new_empty_strided"}  # fmt: skip

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick_op_db")]


def ops_by_name() -> dict[str, Any]:
    found = {}
    for op in op_db:
        name = f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name
        if torch.float32 in op.supported_dtypes("cpu"):
            found[name] = op
    return found


OPS = ops_by_name()


def seeded(program: Callable[[], Any]) -> Any:
    """What `program` gives from a fixed seed; an error is an answer, too."""
    torch.default_generator.manual_seed(0)
    numpy.random.seed(0)
    random.seed(0)
    try:
        return program()
    except Exception as error:
        return type(error).__name__, str(error)


def samples(op: Any, requires_grad: bool, count: int = SAMPLES) -> list[Any]:
    made = op.sample_inputs("cpu", torch.float32, requires_grad=requires_grad)
    return list(itertools.islice(made, count))


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def arguments(sample: Any) -> tuple[Any, Any, Any]:
    return sample.input, sample.args, sample.kwargs


def versions(tree: Any) -> list[int | None]:
    return [None if t.is_inference() else t._version for t in tensors(tree)]


def functional(op: Any) -> list[Any]:
    facts: list[Any] = []
    for sample in samples(op, op.supports_autograd):
        result = op(sample.input, *sample.args, **sample.kwargs)
        facts.append((result, versions(result), versions(arguments(sample))))
        if op.supports_autograd:
            facts.append(gradients(arguments(sample), result))
    return facts


def gradients(inputs: Any, result: Any) -> Any:
    leaves = [t for t in tensors(inputs) if t.requires_grad and t.is_leaf]
    outputs = [t for t in tensors(result) if t.requires_grad]
    if not leaves or not outputs:
        return None
    ones = [torch.ones_like(t) for t in outputs]
    grads = torch.autograd.grad(outputs, leaves, ones, allow_unused=True)
    return grads, versions(leaves), versions(outputs)


def in_place(op: Any) -> list[Any]:
    facts: list[Any] = []
    for sample in samples(op, op.supports_autograd, 3):
        if sample.broadcasts_input:
            continue
        leaf = sample.input
        # A leaf must not be written.
        x = leaf.clone() if isinstance(leaf, torch.Tensor) else [t.clone() for t in leaf]
        try:
            result = op.get_inplace()(x, *sample.args, **sample.kwargs)
        except Exception as error:
            facts.append((type(error).__name__, str(error), versions(x)))
            continue
        facts.append((x, versions(x), versions(arguments(sample))))
        if op.supports_inplace_autograd:
            facts.append(seeded(functools.partial(gradients, (leaf, sample.args), result)))
    return facts


def with_out(op: Any) -> list[Any]:
    facts: list[Any] = []
    for sample in samples(op, False):
        result = op(sample.input, *sample.args, **sample.kwargs)
        out = tree_map_only(torch.Tensor, torch.zeros_like, result)
        op(sample.input, *sample.args, **sample.kwargs, out=out)
        facts.append((out, versions(out), versions(arguments(sample))))
    return facts


def check(name: str, program: Callable[[Any], list[Any]], *modes: bool) -> None:
    op = OPS[name]

    def run() -> Any:
        facts = seeded(functools.partial(program, op))
        if name in UNINITIALISED:
            facts = tree_map_only(torch.Tensor, lambda t: (tuple(t.shape), t.dtype), facts)
        return facts

    plain = run()
    known = own_errors.lines()
    for saves in modes:
        with gradext.record(saves=saves):
            found = run()
            assert _C.recorder_active()
        assert same_bits(found, plain), f"saves={saves}"
    assert own_errors.lines() == known


@pytest.mark.parametrize("name", OPS)
def test_functional(name: str) -> None:
    check(name, functional, True)


IN_PLACE = [name for name, op in OPS.items() if op.get_inplace() is not None]


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place(name: str) -> None:
    check(name, in_place, True, False)


WITH_OUT = [name for name, op in OPS.items() if op.supports_out]


@pytest.mark.parametrize("name", WITH_OUT)
def test_out(name: str) -> None:
    check(name, with_out, False)


def test_op_db_is_there() -> None:
    """What torch 2.13 gives, with room for ops that come and go."""
    assert len(OPS) > 600
    assert len(IN_PLACE) > 140
    assert len(WITH_OUT) > 250


@pytest.mark.parametrize("name", IN_PLACE)
def test_events_explain_every_version(name: str) -> None:
    """The history of the written tensor goes from its first to its last version without a gap."""
    op = OPS[name]
    for sample in samples(op, False, 3):
        x = sample.input
        if sample.broadcasts_input or not isinstance(x, torch.Tensor):
            continue
        at = x._version

        def write(x: torch.Tensor = x, sample: Any = sample) -> None:
            op.get_inplace()(x, *sample.args, **sample.kwargs)

        with gradext.record() as recording:
            seeded(write)
        counter = gradext.inspect(x).version_counter
        for event in recording.writes:
            if event.counter == counter:
                assert event.version_before == at, event
                at = event.version_after
        assert at == x._version
