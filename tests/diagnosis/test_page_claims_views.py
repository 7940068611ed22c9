"""What the pages GX104 to GX106 say about torch, checked against torch.

Plain torch only. A claim that stops to hold means that a page has to change.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from page_claims import (
    IN_FUNCTION,
    ITS_BASE,
    MULTIPLE,
    NO_GRAD_VIEW,
    creation_meta,
    function,
    leaf,
    result,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# --- GX104 ---------------------------------------------------------------------------------------


def test_the_texts_of_a_view_made_without_grad_mode() -> None:
    base = result(3, 3)
    with torch.no_grad():
        view = base[0]
    with torch.inference_mode():
        inferred = base[0]
    assert creation_meta(view) == "no_grad_mode"
    assert creation_meta(inferred) == "inference_mode"
    inside = view[:2]
    with pytest.raises(RuntimeError, match=NO_GRAD_VIEW):
        view.mul_(2)
    words = "^A view was created in inference mode and is being modified inplace in normal mode"
    with pytest.raises(RuntimeError, match=words):
        inferred.mul_(2)
    words = "^Output 0 of Slice.* is a view of a view which was created in no_grad mode"
    with pytest.raises(RuntimeError, match=words):
        inside.mul_(2)
    base.mul_(2)
    with pytest.raises(RuntimeError, match=ITS_BASE):
        view.sum()


def test_a_view_made_without_grad_mode_and_its_repairs() -> None:
    weight, table = leaf(3), torch.zeros(2, 3)
    with torch.no_grad():
        view, copy = table[0], table[0].clone()
        view.fill_(5)  # both inside
    copy.copy_(weight)
    (view + weight).sum().backward()
    assert table.tolist() == [[5, 5, 5], [0, 0, 0]]
    assert weight.grad is not None


def test_writes_of_plain_data_are_not_checked() -> None:
    table = torch.zeros(2, 3)
    with torch.no_grad():
        view = table[0]
    view.add_(1)
    assert table[0].tolist() == [1, 1, 1]


def test_reshape_gives_a_view_or_not() -> None:
    base = result(3, 3)
    with torch.no_grad():
        view, copy = base.reshape(-1), base.t().reshape(-1)
    copy.mul_(2)
    with pytest.raises(RuntimeError, match=NO_GRAD_VIEW):
        view.mul_(2)


def test_a_write_through_detach_loses_the_gradient() -> None:
    weight, table = leaf(3), torch.zeros(3)
    with torch.no_grad():
        detached = table.detach()
    detached.copy_(weight)
    assert table.tolist() == [1, 1, 1]
    assert not table.requires_grad


# --- GX105 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pieces",
    [
        lambda t: t.unbind(),
        lambda t: t.split(1),
        lambda t: t.chunk(2),
        lambda t: list(t),
        lambda t: [*t],
    ],
)
def test_calls_that_give_several_views(pieces: Callable[[Tensor], list[Tensor]]) -> None:
    piece = pieces(result(2, 2))[0]
    assert creation_meta(piece) == "multi_output_node"
    with pytest.raises(RuntimeError, match=f"^Output 0 of (Unbind|Split).*{MULTIPLE}"):
        piece.mul_(2)
    pieces(torch.ones(2, 2))[0].mul_(2)  # nothing to record: not checked
    base = torch.zeros(2, 2)
    with pytest.raises(RuntimeError, match=f"{NO_GRAD_VIEW}.*{MULTIPLE}"):
        pieces(base)[0].copy_(leaf(2))


def test_chunk_is_called_split() -> None:
    with pytest.raises(RuntimeError, match=r"^Output 1 of Split"):
        result(2, 2).chunk(2)[1].mul_(2)


def test_the_use_of_a_piece_raises_after_a_write_to_its_base() -> None:
    base = result(2, 2)
    piece, _ = base.unbind()
    base.mul_(2)
    with pytest.raises(RuntimeError, match=ITS_BASE):
        piece.sum()


def test_a_piece_written_under_no_grad_cannot_be_used() -> None:
    piece, _ = result(2, 2).unbind()
    with torch.no_grad():
        piece.mul_(2)
    with pytest.raises(RuntimeError, match=ITS_BASE):
        piece.sum()


@pytest.mark.parametrize(
    "write",
    [
        lambda t: t[0].mul_(2),
        lambda t: t.__setitem__(0, t[0] * 2),
        lambda t: t[:1, :3].mul_(2),
        lambda t: t.narrow(0, 0, 1).mul_(2),
    ],
)
def test_one_view_a_call_may_be_written(write: Callable[[Tensor], object]) -> None:
    w = leaf(2, 2)
    h = w * 1
    write(h)
    h.sum().backward()
    assert w.grad.tolist() == [[2, 2], [1, 1]]


def test_rows_stacked_again() -> None:
    w = leaf(2, 2)
    torch.stack([row * 2 for row in w * 1]).sum().backward()
    assert w.grad.tolist() == [[2, 2], [2, 2]]


@pytest.mark.parametrize("method", ["squeeze_", "t_"])
def test_changes_of_shape_in_place_are_refused_too(method: str) -> None:
    with pytest.raises(RuntimeError, match=MULTIPLE):
        getattr(result(2, 1, 2).unbind()[0], method)()


@pytest.mark.parametrize("split", [lambda t: t.unsafe_chunk(2), lambda t: t.unsafe_split(1)])
def test_unsafe_pieces_leave_the_base_with_a_wrong_gradient(
    split: Callable[[Tensor], tuple[Tensor, ...]],
) -> None:
    w = leaf(2, 2)
    h = w * 1
    split(h)[0].mul_(3)
    assert h.tolist() == [[3, 3], [1, 1]]
    h.sum().backward()
    assert w.grad.tolist() == [[1, 1], [1, 1]]


# --- GX106 ---------------------------------------------------------------------------------------


VIEWS = [
    lambda ctx, x: x,
    lambda ctx, x: x.view_as(x),
    lambda ctx, x: x.view(-1),
    lambda ctx, x: (x * 2).view(-1),
]


@pytest.mark.parametrize("forward", VIEWS)
def test_views_that_a_function_returns(forward: Callable[..., Tensor]) -> None:
    apply = function(forward)
    with pytest.raises(RuntimeError, match=f"^Output 0 of Reverse.*{IN_FUNCTION}"):
        apply(result(2)).mul_(2)
    assert creation_meta(apply(result(2))) == "in_custom_function"
    x = leaf(2)
    (apply(x * 1) * 2).sum().backward()
    assert x.grad.tolist() == [-2, -2]
    x = leaf(2)
    apply(x * 1).clone().mul_(2).sum().backward()
    assert x.grad.tolist() == [-2, -2]


@pytest.mark.parametrize("forward", VIEWS[:3])
def test_a_function_without_gradient(forward: Callable[..., Tensor]) -> None:
    apply = function(forward)
    apply(torch.ones(2)).mul_(2)
    with pytest.raises(RuntimeError, match=f"{NO_GRAD_VIEW}.*{IN_FUNCTION}"):
        apply(torch.ones(2)).copy_(leaf(2))


@pytest.mark.parametrize("forward", VIEWS[1:3])
def test_a_view_that_a_function_returns_under_no_grad(forward: Callable[..., Tensor]) -> None:
    x = result(2)
    with torch.no_grad():
        made = function(forward)(x)
    with pytest.raises(RuntimeError, match=f"{NO_GRAD_VIEW}.*{IN_FUNCTION}"):
        made.mul_(2)


def test_a_returned_view_written_under_no_grad_or_through_its_input_cannot_be_used() -> None:
    apply = function(VIEWS[1])
    made = apply(result(2))
    with torch.no_grad():
        made.mul_(2)
    with pytest.raises(RuntimeError, match=ITS_BASE):
        made.sum()
    x = result(2)
    made = apply(x)
    x.mul_(2)
    with pytest.raises(RuntimeError, match=ITS_BASE):
        made.sum()


def test_a_function_that_clones_or_marks_dirty_may_be_followed_by_a_write() -> None:
    def write(ctx, x):  # type: ignore[no-untyped-def]
        x.add_(1)
        ctx.mark_dirty(x)
        return x

    for forward in (lambda ctx, x: x.clone(), write):
        x = leaf(2)
        made = function(forward)(x * 1)
        made.mul_(3)
        made.sum().backward()
        assert x.grad.tolist() == [-3, -3]
        assert not made._is_view()


def test_detach_in_a_function_hides_the_shared_memory() -> None:
    x = result(2)
    made = function(lambda ctx, x: x.detach())(x)
    assert not made._is_view()
    made.mul_(2)
    assert x.tolist() == [2, 2]
    with torch.no_grad():
        made = function(lambda ctx, x: x)(x)
    assert not made._is_view()
    made.mul_(2)
    assert x.tolist() == [4, 4]


def test_re_entrant_checkpointing_is_such_a_function() -> None:
    def reshape(x: Tensor) -> Tensor:
        return x.view(-1)

    with pytest.raises(RuntimeError, match=f"^Output 0 of CheckpointFunction.*{IN_FUNCTION}"):
        checkpoint(reshape, result(2), use_reentrant=True).mul_(2)
    checkpoint(reshape, result(2), use_reentrant=False).mul_(2)
