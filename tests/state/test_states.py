"""The batched facts: each column equals what the op of that name says of each tensor."""

from __future__ import annotations

import numpy
import pytest
import torch
from facts import CREATION_META, NAMESPACE

import gradext
from gradext import ops

COLUMNS = (
    "version",
    "version_counter",
    "is_view",
    "is_differentiable_view",
    "base",
    "creation_meta",
    "is_inference",
    "requires_grad",
    "is_leaf",
    "output_nr",
    "storage",
    "storage_offset",
    "numel",
    "nbytes",
    "dim",
    "id",
)


def mixed(device: str = "cpu") -> list[torch.Tensor]:
    parameter = torch.ones(4, 3, device=device, requires_grad=True)
    product = parameter * 2
    with torch.no_grad():
        no_grad_view = product[1]
        parameter.add_(1)
    with torch.inference_mode():
        inference = torch.ones(5, device=device)
        inference_view = inference[1:]
        view_in_mode = product[2:]
    values, indices = torch.sort(product, dim=0)
    return [
        parameter,
        product,
        no_grad_view,
        inference,
        inference_view,
        view_in_mode,
        values,
        indices,
        *product.unbind(),
        product.detach(),
        product[1:].t(),
        torch.empty(0, 2, device=device),
        torch.tensor(1.0, device=device),
        torch.ones(3, dtype=torch.cfloat, device=device).conj(),
        torch.ones(2, dtype=torch.bool, device=device)[1:],
        torch.ones(3, device="meta"),
    ]


def expected_rows(tensors: list[torch.Tensor]) -> list[list[int]]:
    """The table from the per-tensor ops and torch's own attributes, column by column."""
    metas = {name: int(value) for value, name in CREATION_META.items()}

    def absent(value: int | None, otherwise: int) -> int:
        return otherwise if value is None else value

    rows = []
    for t in tensors:
        state = gradext.inspect(t)
        meta = ops.creation_meta(t)
        rows.append(
            [
                absent(ops.version(t), -1),
                absent(ops.version_counter(t), 0),
                int(ops.is_view(t)),
                int(ops.is_differentiable_view(t)),
                absent(state.base, 0),
                -1 if meta is None else metas[meta],
                int(ops.is_inference(t)),
                int(t.requires_grad),
                int(t.is_leaf),
                t.output_nr,
                absent(state.storage, 0),
                t.storage_offset(),
                t.numel(),
                t.numel() * t.element_size(),
                t.dim(),
                state.id,
            ]
        )
    return rows


def test_the_columns_are_these_and_their_names_are_public() -> None:
    assert gradext.STATE_COLUMNS == COLUMNS
    assert gradext.states([]).columns == COLUMNS


def test_every_column_equals_the_ops_and_torch(device: str) -> None:
    tensors = mixed(device)
    expected = expected_rows(tensors)
    array, columns = gradext.states(tensors)
    assert isinstance(array, numpy.ndarray)
    assert array.dtype == numpy.int64
    assert array.shape == (len(tensors), len(columns))
    assert array.tolist() == expected
    # No column is the same for all of these tensors: a column that is never written would show.
    for index, name in enumerate(columns):
        assert len({row[index] for row in expected}) > 1, name


def test_all_doors_give_the_same_table(device: str) -> None:
    tensors = mixed(device)
    array = gradext.states(tensors).array
    for rows in (ops.states(tensors), NAMESPACE.states(tensors)):
        assert rows.dtype == torch.int64
        assert rows.device.type == "cpu"
        assert rows.shape == array.shape
        assert rows.numpy().tolist() == array.tolist()
        assert not rows.requires_grad


def test_a_long_list_past_every_prefetch_distance() -> None:
    tensors = [torch.empty(n % 7) for n in range(100)]
    for n, t in enumerate(tensors):
        for _ in range(n % 5):
            t.zero_()
    for array in (gradext.states(tensors).array, ops.states(tensors).numpy()):
        assert array[:, 0].tolist() == [n % 5 for n in range(100)]
        assert array[:, COLUMNS.index("numel")].tolist() == [n % 7 for n in range(100)]


def test_base_and_id_name_the_same_tensors() -> None:
    base = torch.ones(4)
    views = [base[i:] for i in range(3)]
    array = gradext.states([base, *views]).array
    assert set(array[1:, COLUMNS.index("base")]) == {array[0, COLUMNS.index("id")]}
    assert len(set(array[:, COLUMNS.index("id")])) == 4


def test_the_empty_list() -> None:
    assert gradext.states([]).array.shape == (0, len(COLUMNS))
    assert ops.states([]).shape == (0, len(COLUMNS))
    assert NAMESPACE.states([]).shape == (0, len(COLUMNS))


@pytest.mark.parametrize("door", [gradext.states, ops.states], ids=["gradext", "ops"])
def test_any_iterable_of_tensors(door) -> None:
    tensors = mixed()
    array = numpy.empty(len(tensors), dtype=object)
    for index, t in enumerate(tensors):
        array[index] = t
    expected = expected_rows(tensors)
    for given in (tensors, tuple(tensors), iter(tensors), (t for t in tensors), array):
        result = door(given)
        rows = result.array if door is gradext.states else result
        assert rows.tolist() == expected, type(given)


@pytest.mark.parametrize(
    ("tensors", "line"),
    [
        ([torch.ones(1), 3], "item 1 is a int"),
        ([None], "item 0 is a NoneType"),
        ((torch.ones(1), torch.ones(1), "t"), "item 2 is a str"),
        (numpy.ones(2), "item 0 is a numpy.float64"),
    ],
)
def test_a_bad_item_is_named(tensors, line: str) -> None:
    with pytest.raises(TypeError) as caught:
        gradext.states(tensors)
    assert str(caught.value) == f"gradext.states: {line}, expected a torch.Tensor"
    with pytest.raises(TypeError) as caught:
        ops.states(tensors)
    message = str(caught.value)
    assert message.startswith(f"gradext.ops.states: {line.split(' is ')[0]} is a ")
    assert message.endswith(", expected a torch.Tensor")


@pytest.mark.parametrize("bad", [3, None], ids=repr)
def test_what_is_no_sequence_is_one_line_that_names_the_door(bad) -> None:
    for door, name in ((gradext.states, "gradext.states"), (ops.states, "gradext.ops.states")):
        with pytest.raises(TypeError) as caught:
            door(bad)
        assert str(caught.value).startswith(f"{name}: ")
        assert "\n" not in str(caught.value)


def test_a_lone_tensor_is_refused() -> None:
    # Iterating it would make views, of which nothing but dangling ids would be left.
    for door, name in ((gradext.states, "gradext.states"), (ops.states, "gradext.ops.states")):
        with pytest.raises(TypeError) as caught:
            door(torch.ones(3))
        assert str(caught.value).startswith(f"{name}: ")
        assert "\n" not in str(caught.value)


def test_a_failed_call_keeps_no_tensor_alive() -> None:
    tensors = [torch.ones(1), torch.ones(1), 3]
    before = [t._use_count() for t in tensors[:2]]
    for door in (gradext.states, ops.states):
        with pytest.raises(TypeError):
            door(tensors)
    assert [t._use_count() for t in tensors[:2]] == before


def test_states_is_a_named_tuple() -> None:
    result = gradext.states([torch.ones(1)])
    assert result._fields == ("array", "columns")
    assert result.array is result[0]
    assert result.array.flags.writeable
    assert result.array.flags.c_contiguous
