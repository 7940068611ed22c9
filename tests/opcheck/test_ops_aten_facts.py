"""What torch's own ops do, on inputs whose effect is known; exact, so that a change is seen."""

from __future__ import annotations

import pytest
import torch

from gradext.opcheck import schemas, verdicts, witnesses
from gradext.opcheck.examine import examine
from gradext.opcheck.inputs import by_hand

pytestmark = pytest.mark.skipif(
    not torch.__version__.startswith("2.13."), reason="facts of torch 2.13"
)


def lies(name, *args, **kwargs):
    """{(kind, argument)} of an overload on these inputs, or on those written down for it."""
    op = schemas.overload(name)
    if not args and not kwargs:
        _, make = next(by_hand.makers(name))
        args, kwargs = make()
    outcome = witnesses.observe(op, args, kwargs)
    assert outcome.ran, outcome.runs[witnesses.GRAD].error
    found = verdicts.merged(verdicts.judge(outcome))
    return {
        (finding.kind, finding.subject.partition("[")[0])
        for finding in found
        if finding.severity != verdicts.NOTE
    }


def versions(name, *args, **kwargs):
    outcome = witnesses.observe(schemas.overload(name), args, kwargs)
    return {given.name: given.bumps for given in outcome.runs[witnesses.GRAD].given}


@pytest.mark.parametrize("suffix", ["", ".tensor_lr"])
@pytest.mark.parametrize("name", ["_fused_adam_", "_fused_adamw_"])
def test_fused_adam_counts_nothing(name, suffix):
    arguments = ("self", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs")
    assert lies(f"aten::{name}{suffix}") == {(verdicts.NOT_BUMPED, each) for each in arguments}


def test_fused_sgd_and_adagrad_count_nothing():
    sgd = {"self", "grads", "momentum_buffer_list"}
    adagrad = {"self", "grads", "state_sums"}
    assert lies("aten::_fused_sgd_") == {(verdicts.NOT_BUMPED, each) for each in sgd}
    assert lies("aten::_fused_adagrad_") == {(verdicts.NOT_BUMPED, each) for each in adagrad}


def test_the_grad_scaler_counts_nothing():
    found = lies("aten::_amp_foreach_non_finite_check_and_unscale_")
    assert found == {(verdicts.NOT_BUMPED, "self"), (verdicts.NOT_BUMPED, "found_inf")}


def test_batch_norm_writes_its_running_stats_undeclared():
    expected = {(verdicts.UNDECLARED, "running_mean"), (verdicts.UNDECLARED, "running_var")}
    assert lies("aten::native_batch_norm") == expected
    assert lies("aten::batch_norm") == expected
    assert lies("aten::_native_batch_norm_legit") == {
        (verdicts.NOT_BUMPED, "running_mean"),
        (verdicts.NOT_BUMPED, "running_var"),
    }


def test_ops_that_count_more_than_once():
    x = torch.rand(2, 3)
    assert lies("aten::alpha_dropout_", x, 0.5, True) == {(verdicts.TWICE, "self")}
    assert versions("aten::alpha_dropout_", x, 0.5, True) == {"self": 2}
    out = {"U": torch.zeros(3, 3), "S": torch.zeros(3), "V": torch.zeros(3, 3)}
    found = versions("aten::svd.U", torch.rand(3, 3), **out)
    assert found == {"self": 0, "U": 1, "S": 1, "V": 3}


def test_kron_out_is_not_counted():
    a = torch.rand(2, 2)
    assert lies("aten::kron.out", a, a, out=torch.zeros(4, 4)) == {(verdicts.NOT_BUMPED, "out")}


def test_resize_counts_a_new_size_and_not_new_strides():
    x = torch.rand(2, 2, 4, 4)
    assert lies("aten::resize_", x, [4, 4]) == set()
    assert lies("aten::resize_", x, [2, 2, 4, 4], memory_format=torch.channels_last) == {
        (verdicts.NOT_BUMPED, "self")
    }


def test_undeclared_aliases():
    x = torch.rand(2, 3)
    alias = {(verdicts.ALIAS, "output 0")}
    assert lies("aten::dropout", x, 0.5, False) == alias
    assert lies("aten::_unsafe_view", x, [6]) == alias
    assert lies("aten::type_as", x, x) == alias
    assert lies("aten::dropout", x, 0.5, True) == set()


def test_memory_that_was_never_written_is_no_difference_under_inference_mode():
    """The padding of `log_alpha` is whatever was there."""
    _, make = next(by_hand.makers("aten::_ctc_loss"))
    for _ in range(5):
        _, found = examine(schemas.overload("aten::_ctc_loss"), *make())
        assert [finding for finding in found if finding.kind == verdicts.INFERENCE] == []


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("aten::add_.Tensor", (torch.rand(2), torch.rand(2))),
        ("aten::add.Tensor", (torch.rand(2), torch.rand(2))),
        ("aten::add.out", (torch.rand(2), torch.rand(2))),
        ("aten::t_", (torch.rand(2, 3),)),
        ("aten::reshape", (torch.rand(2, 3), [6])),
        ("aten::unbind.int", (torch.rand(2, 3),)),
        ("aten::_foreach_mul_.Scalar", ([torch.rand(2), torch.rand(3)], 2)),
        ("aten::normal_", (torch.rand(2),)),
        ("aten::index_put_", (torch.rand(3), [torch.tensor([1])], torch.tensor(5.0))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_honest_ops(name, args):
    kwargs = {"out": torch.zeros(2)} if name.endswith("out") else {}
    assert lies(name, *args, **kwargs) == set()


def test_each_written_down_input_runs():
    """An input that torch refuses is of no use."""
    refused = []
    for name in by_hand.INPUTS:
        try:
            op = schemas.overload(name)
        except AttributeError:
            continue  # written down for a packet, for its overloads' sake
        for make in by_hand.INPUTS[name]:
            args, kwargs = make()
            outcome = witnesses.observe(op, args, kwargs, modes=[witnesses.GRAD])
            if not outcome.ran:
                refused.append((name, outcome.runs[witnesses.GRAD].error))
    assert refused == []
