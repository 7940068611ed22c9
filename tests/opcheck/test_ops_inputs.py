"""Where inputs come from, and the witness of the bytes by itself."""

from __future__ import annotations

import pytest
import torch

from gradext.opcheck import content, schemas
from gradext.opcheck.inputs import from_op_db, from_schema


def entry(name):
    return next(entry for entry in from_op_db.op_db() if entry.name == name)


def recorded(name):
    return [call for _, calls in from_op_db.record(entry(name), "aten") for call in calls]


def test_samples_are_recorded_as_overloads_above_and_below_autograd():
    names = [name for name, _ in recorded("nn.functional.max_pool2d")]
    # The second is what the composite first one is made of, the third its backward formula.
    assert {
        *("aten::max_pool2d_with_indices", "aten::max_pool2d_with_indices_backward"),
    } <= set(names)
    names = [name for name, _ in recorded("reshape")]
    assert "aten::reshape" in names
    assert "aten::view" in names
    assert "aten::mul_.Tensor" in [name for name, _ in recorded("mul")]


def test_a_recorded_call_holds_the_arguments_as_they_were_before():
    _, data = next(call for call in recorded("mul") if call[0] == "aten::mul_.Tensor")
    args, _ = from_op_db.unpack(data)
    functional = next(call for call in recorded("mul") if call[0] == "aten::mul.Tensor")
    before, _ = from_op_db.unpack(functional[1])
    assert torch.equal(args[0], before[0])


def test_packing_keeps_shared_memory():
    base = torch.arange(4.0)
    args, kwargs = from_op_db.unpack(from_op_db.pack([base[:3], base[1:]], {"alpha": 2}))
    args[0][1] = 9
    assert args[1][0] == 9
    assert kwargs == {"alpha": 2}


@pytest.mark.parametrize(
    ("target", "source", "args", "expected"),
    [
        ("add_.Tensor", "add.Tensor", [torch.ones(2), torch.ones(2)], {"self", "other"}),
        ("add.out", "add.Tensor", [torch.ones(2), torch.ones(2)], {"self", "other", "out"}),
        ("topk.values", "topk", [torch.rand(4), 2], {"self", "k", "values", "indices"}),
        ("split_copy.Tensor_out", "split_copy.Tensor", [torch.rand(4), 2], None),
    ],
)
def test_siblings_get_the_same_arguments_by_name(target, source, args, expected):
    op, origin = (schemas.overload(f"aten::{name}") for name in (target, source))
    derived = from_op_db.derive(op, origin, (args, {}))
    assert derived is not None
    assert set(derived[1]) == (expected or {"self", "split_size", "out"})
    op(**derived[1])


def test_derive_refuses_what_does_not_fit():
    op, origin = schemas.overload("aten::addmm.out"), schemas.overload("aten::mm")
    assert from_op_db.derive(op, origin, ([torch.ones(2, 2)] * 2, {})) is None


@pytest.mark.parametrize(
    "t",
    [
        torch.tensor([93.0, 1.0, float("nan")]),
        torch.tensor([True, False]),
        torch.tensor([93, 57], dtype=torch.uint8),
        torch.rand(2, dtype=torch.complex64).conj(),
        torch.rand(3).to(torch.bfloat16),
        torch.tensor(93),
    ],
)
def test_out_is_filled_with_something_else_everywhere(t):
    other = from_op_db.unlike(t)
    assert (other.dtype, other.shape) == (t.dtype, t.shape)
    assert not (other == t).any()


def test_recipes_reach_ops_that_have_no_samples():
    op = schemas.overload("aten::_foreach_add_.List")
    _, (args, kwargs) = next(from_schema.calls(op))
    op(*args, **kwargs)
    op = schemas.overload("aten::arange.start_out")
    _, call = next(from_schema.calls(op))
    fitted = from_schema.fitted(op, call)
    assert fitted is not None
    out = fitted[1]["out"]
    before = out.clone()
    op(*fitted[0], **fitted[1])
    assert not (out == before).any()
    assert schemas.names("aten", ["_foreach_add_.L*"]) == ["aten::_foreach_add_.List"]


def test_bytes_tell_nan_from_nan_and_minus_zero_from_zero():
    zero, minus = torch.tensor([0.0]), torch.tensor([-0.0])
    assert content.read(zero).values != content.read(minus).values
    quiet = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert content.read(quiet[:1]).values != content.read(quiet[1:]).values
    assert content.read(quiet[:1]).digest() == content.read(quiet[:1].clone()).digest()


def test_what_changes_beside_a_view_is_outside_of_it():
    base = torch.zeros(4, 3)
    column = base[:, 1]
    before = content.read(column)
    base[2, 1] = 1
    inside = content.read(column)
    assert inside.values != before.values
    assert not before.changed_outside(inside)
    base[2, 2] = 1
    assert content.read(column).values == inside.values
    assert inside.changed_outside(content.read(column))


def test_memory_shared_through_two_storages():
    t = torch.zeros(3)
    assert content.shares_memory(t, torch.from_numpy(t.numpy()))
    assert not content.shares_memory(t, t.clone())
    sparse = torch.sparse_coo_tensor(torch.tensor([[0, 1]]), t[:2], (3,))
    assert content.shares_memory(sparse, t)


def test_reading_changes_nothing():
    t = torch.rand(2, 3, requires_grad=True) * 1
    content.read(t.t())
    assert t._version == 0
    with torch.inference_mode():
        inference = torch.rand(2)
    assert content.read(inference).values == content.read(inference.clone()).values
