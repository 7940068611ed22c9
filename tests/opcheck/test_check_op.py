"""check_op on ops that lie in one way each, on honest ones, and on what is no op."""

from __future__ import annotations

import numpy
import pytest
import torch
from liars import NAMESPACE, custom_honest_, custom_undeclared

from gradext.testing import OpCheckError, OpReport, check_op

OPS = getattr(torch.ops, NAMESPACE)
X = torch.tensor([1.0, 2.0, 3.0])


def reasons(op, *args, **kwargs):
    """(kind, severity, subject) of what check_op finds; its message has one line for each."""
    with pytest.raises(OpCheckError) as caught:
        check_op(op, *args, **kwargs)
    error = caught.value
    lines = str(error).splitlines()
    assert len(lines) == len(error.findings)
    for line, finding in zip(lines, error.findings, strict=True):
        assert line.startswith(f"{error.op}: {finding.kind}: ")
        assert f"; fix: {finding.fix}" in line
        assert finding.fix
    return [(f.kind, f.severity, f.subject) for f in error.findings]


def message(op, *args):
    with pytest.raises(OpCheckError) as caught:
        check_op(op, *args)
    return str(caught.value)


@pytest.mark.parametrize(
    "op", [OPS.honest_, OPS.honest_.default, custom_honest_], ids=["packet", "overload", "custom"]
)
def test_an_honest_write_passes_in_every_form_of_the_op(op):
    report = check_op(op, X, 2.0)
    name = op._qualname if op is custom_honest_ else f"{NAMESPACE}::honest_"
    assert report == OpReport(name, ("x",), ())
    assert X.tolist() == [1, 2, 3]
    assert X._version == 0


def test_keyword_arguments_and_pure_ops():
    assert check_op(OPS.honest_, x=X, by=2.0).written == ("x",)
    assert check_op(OPS.pure, X) == OpReport(f"{NAMESPACE}::pure", (), ())


@pytest.mark.parametrize("by", [1.0, 2.0])
def test_a_write_that_leaves_the_same_bytes_is_a_remark(by):
    remarks = check_op(OPS.honest_, X, by).remarks
    assert remarks == (() if by == 2 else ("`x` held the same bytes after, its version went up",))


def test_random_results_and_memory_are_no_difference():
    assert check_op(OPS.random, X).remarks == ()
    assert check_op(torch.ops.aten.empty.memory_format, [1000]).remarks == ()


def test_declared_but_not_bumped():
    assert reasons(OPS.uncounted_, X) == [("declared but not bumped", "error", "x")]
    assert message(OPS.uncounted_, X) == (
        f"{NAMESPACE}::uncounted_: declared but not bumped: the schema declares that `x` is "
        "written and its bytes changed, but its version stayed the same: a backward that saved it "
        "computes with the new values and raises nothing; fix: count the write: "
        "torch.autograd.graph.increment_version(x) after it (Python), an ADInplaceOrView kernel "
        "that calls torch::autograd::increment_version (C++), or define the op with "
        "torch.library.custom_op(mutates_args=('x',)); in an autograd.Function ctx.mark_dirty(x)"
    )


def test_a_list_is_one_reason_with_its_first_element():
    found = reasons(OPS.uncounted_list_, [X, X + 1], X)
    assert found == [("declared but not bumped", "error", "xs[0]")]


def test_bumped_twice():
    assert reasons(OPS.twice_, X) == [("bumped twice", "warning", "x")]
    assert "one call moved the version of `x` by 2:" in message(OPS.twice_, X)


def test_written_but_not_declared():
    stats = torch.zeros(2)
    assert reasons(OPS.undeclared, X, stats) == [("written but not declared", "error", "stats")]
    text = message(OPS.undeclared, X, stats)
    assert "the schema declares no write of `stats`, but its bytes changed, and its version" in text
    assert "fix: declare it: `Tensor(a!) stats` in the schema, or mutates_args=('stats',)" in text
    assert stats.tolist() == [0, 0]


def test_a_counted_write_that_is_not_declared_is_a_warning():
    found = reasons(OPS.undeclared_counted, X)
    assert found == [("written but not declared", "warning", "x")]
    assert "its version went up by 1: autograd knows" in message(OPS.undeclared_counted, X)


def test_custom_op_that_forgot_mutates_args():
    assert reasons(custom_undeclared, X) == [("written but not declared", "error", "x")]


def test_undeclared_alias_with_and_without_a_shared_counter():
    found = reasons(OPS.hidden_alias, X)
    assert ("returns an undeclared alias", "error", "output 0") in found
    assert "output 0 shares memory with `x`" in message(OPS.hidden_alias, X)
    assert reasons(OPS.same, X) == [("returns an undeclared alias", "warning", "output 0")]
    assert "output 0 is `x` itself" in message(OPS.same, X)


@pytest.mark.parametrize(
    ("name", "severity", "subject", "words"),
    [
        ("inside_is_other", "error", "output 0", "output 0 holds other values with normal"),
        ("inside_raises", "error", "", "raises with normal tensors only there: ValueError: not he"),
        ("inside_is_uncounted_", "error", "x", "writes the normal tensor `x` there without count"),
        ("inside_is_normal", "warning", "output 0", "output 0 is new memory and yet no inference"),
    ],
)
def test_wrong_under_inference_mode(name, severity, subject, words):
    op = getattr(OPS, name)
    assert reasons(op, X) == [("wrong under inference_mode", severity, subject)]
    assert words in message(op, X)


def test_a_write_beyond_the_view_is_seen():
    row = torch.zeros(3, 2)[1]
    assert reasons(OPS.outside_, row) == [("written outside the tensor", "error", "x")]
    assert check_op(OPS.outside_, torch.zeros(2)).written == ("x",)


def test_returning_a_copy_of_the_written_argument():
    found = reasons(OPS.copy_instead_, X)
    assert found == [("returns other memory than declared", "error", "output 0")]


def test_arguments_that_share_memory_are_one_write():
    base = torch.arange(1.0, 5.0)
    assert check_op(OPS.honest_beside_, base[:3], base[3:]).written == ("x",)
    # `other` changes with `x`: that is the declared write, seen from elsewhere.
    report = check_op(OPS.honest_beside_, base[:3], base[1:])
    assert report == OpReport(f"{NAMESPACE}::honest_beside_", ("x", "other"), ())


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.tensor([float("nan"), 1.0]),
        lambda: torch.rand(2, dtype=torch.complex64).conj(),
        lambda: torch.rand(3, 2).t(),
        lambda: torch.rand(2, requires_grad=True),
        lambda: torch.nn.Parameter(torch.rand(2)),
        lambda: torch.rand(2).to(torch.bfloat16),
        lambda: torch.rand(2, 2).to_sparse(),
    ],
    ids=["nan", "conj", "strided", "requires_grad", "parameter", "bfloat16", "sparse"],
)
def test_kinds_of_tensors(make):
    t = make()
    assert check_op(torch.ops.aten.mul_.Scalar, t, 3).written == ("self",)
    assert t._version == 0


def test_the_callers_modes_and_random_numbers_are_put_back():
    state = torch.get_rng_state()
    with torch.inference_mode():
        t = torch.ones(2)
        assert check_op(torch.ops.aten.add_.Scalar, t, 1).written == ("self",)
        assert torch.is_inference_mode_enabled()
    with torch.no_grad():
        check_op(torch.ops.aten.dropout_, torch.ones(8), 0.5, True)
        assert not torch.is_grad_enabled()
    assert torch.equal(state, torch.get_rng_state())


def test_what_does_not_run_is_a_failure_with_its_error():
    with pytest.raises(OpCheckError, match=r"aten::mm did not run on these arguments: Runtime"):
        check_op(torch.ops.aten.mm, X, X)


@pytest.mark.parametrize("thing", [torch.add, lambda x: x, numpy.add, "aten::add"])
def test_no_op_is_a_type_error(thing):
    with pytest.raises(TypeError, match=r"^gradext\.testing\.check_op: expected an op \("):
        check_op(thing, X)


def test_no_overload_fits():
    with pytest.raises(TypeError, match=r"no overload of aten::mul takes these arguments"):
        check_op(torch.ops.aten.mul, "x", "y")
