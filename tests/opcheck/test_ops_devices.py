"""Two devices compared: on outcomes written down by hand, on meta, and on CUDA if it is there."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from liars import NAMESPACE, library

from gradext.opcheck import devices, schemas, survey, verdicts, witnesses
from gradext.opcheck.witnesses import Given, Made, Outcome, Run

FORM = ((2,), ((1,), 0), "torch.float32", "torch.strided", False, False)


def given(bumps=1, value=(1.0, 2.0), form=FORM):
    value = torch.tensor(value)
    return Given("out", "out", True, True, False, False, bumps, ("out",), form, str(value), value)


def made(aliases=(), value=(1.0, 2.0)):
    value = torch.tensor(value)
    return Made("output 0", (), False, aliases, None, False, False, FORM, str(value), value)


def outcome(device, argument, result=None, error="", again=None):
    results = () if result is None else (result,)
    first = Run(witnesses.GRAD, error, (argument,), results)
    runs = {witnesses.GRAD: first}
    if not error:
        second = argument if again is None else again
        runs[witnesses.AGAIN] = Run(witnesses.AGAIN, "", (second,), results)
        runs[witnesses.NO_GRAD] = Run(witnesses.NO_GRAD, "", (argument,), results)
    return Outcome("mylib::f", device, "by hand", runs)


def reasons(one, other):
    found = devices.compare(one, other)
    assert all(f.kind == verdicts.DEVICES and f.op == "mylib::f" for f in found)
    return [(f.severity, f.subject, f.reason) for f in found]


def test_agreement_within_rounding():
    one = outcome("cpu", given(), made())
    other = outcome("cuda", given(value=(1.00001, 2.0)), made(value=(1.0, 2.00002)))
    assert reasons(one, other) == []


def test_a_count_on_one_device_only():
    assert reasons(outcome("cpu", given(1)), outcome("cuda", given(0))) == [
        ("error", "out", "the version of `out` goes up by 1 on cpu and by 0 on cuda")
    ]


def test_other_written_values():
    found = reasons(outcome("cpu", given()), outcome("cuda", given(value=(1.0, 2.5))))
    assert found == [
        ("error", "out", "`out` holds other values on cpu than on cuda: up to 0.5 apart")
    ]


def test_other_results_shapes_and_aliases():
    one = outcome("cpu", given(), made(("x",)))
    assert reasons(one, outcome("cuda", given(), made())) == [
        ("warning", "output 0", "output 0 shares memory with an input on cpu and not on cuda")
    ]
    narrow = dataclasses.replace(given(), form=((3,), *FORM[1:]))
    assert reasons(outcome("cpu", given()), outcome("cuda", narrow)) == [
        ("error", "out", "`out` is [2] on cpu and [3] on cuda")
    ]
    assert reasons(one, outcome("cuda", given())) == [
        ("error", "", "returns 1 tensors on cpu, 0 on cuda")
    ]


def test_what_is_random_anyway_is_not_compared():
    one = outcome("cpu", given(), again=given(value=(3.0, 4.0)))
    assert reasons(one, outcome("cuda", given(value=(5.0, 6.0)))) == []


def test_an_error_on_one_device_is_told_and_a_missing_kernel_is_not():
    one = outcome("cpu", given())
    broken = outcome("cuda", given(), error="RuntimeError: out of luck")
    assert reasons(one, broken) == [
        ("warning", "", "runs on cpu and raises on cuda: RuntimeError: out of luck")
    ]
    missing = outcome("cuda", given(), error="NotImplementedError: Could not run 'mylib::f'")
    assert reasons(one, missing) == []
    assert devices.compare(broken, one) == []


@pytest.fixture(scope="module")
def meta_liar():
    """An op whose meta kernel says another shape and counts nothing."""
    name = library.define("meta_lies_(Tensor(a!) x) -> Tensor")

    def on_cpu(x):
        x.detach().numpy()[...] += 1
        torch.autograd.graph.increment_version(x)
        return x.clone()

    library.impl(name, on_cpu, "CPU")
    library.impl(name, lambda x: x.new_empty(5), "Meta")
    return f"{NAMESPACE}::{name}" if "::" not in name else name


def test_meta_as_the_second_device(meta_liar):
    op = schemas.overload(meta_liar)
    one, other = (
        witnesses.observe(op, (torch.ones(2),), {}, device=device, keep=True)
        for device in ("cpu", "meta")
    )
    assert [f.reason for f in devices.compare(one, other)] == [
        "the version of `x` goes up by 1 on cpu and by 0 on meta",
        "`output 0` is [2] on cpu and [5] on meta",
    ]


def test_a_survey_of_two_devices():
    found = survey.run("aten", devices=("cpu", "meta"), only=["add_", "mul.out"], processes=1)
    assert found.devices == ("cpu", "meta")
    assert found.counts()["writable exercised"] == len(found.rows) == 3
    assert found.findings == []


@pytest.mark.cuda
def test_cuda_agrees_on_ordinary_ops():
    for name, args in {
        "aten::add_.Tensor": (torch.rand(8), torch.rand(8)),
        "aten::_foreach_mul_.Scalar": ([torch.rand(8)], 2),
        "aten::mm": (torch.rand(8, 8), torch.rand(8, 8)),
    }.items():
        op = schemas.overload(name)
        one, other = (
            witnesses.observe(op, args, {}, device=device, keep=True) for device in ("cpu", "cuda")
        )
        assert one.ran
        assert other.ran
        assert devices.compare(one, other) == []


@pytest.mark.cuda
def test_cuda_does_not_count_split_with_sizes_copy_out():
    op = torch.ops.aten.split_with_sizes_copy.out
    out = [torch.zeros(1, 2), torch.zeros(2, 2)]
    one, other = (
        witnesses.observe(op, (torch.rand(3, 2), [1, 2]), {"out": out}, device=device, keep=True)
        for device in ("cpu", "cuda")
    )
    assert {f.subject for f in devices.compare(one, other)} == {"out[0]", "out[1]"}
