"""What the pages say about torch, checked against torch: mechanisms, repairs, limits of its checks.

Plain torch only. A claim that stops to hold means that a page has to change.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

STALE = "modified by an inplace operation"
FREED = "Trying to backward through the graph a second time"
UNUSED = "appears to not have been used in the graph"
LEAF = "^a leaf Variable that requires grad is being used in an in-place operation"
VIEW_OF_LEAF = "^a view of a leaf Variable that requires grad is being used"
NO_GRAD_VIEW = "^A view was created in no_grad mode and is being modified inplace"
ITS_BASE = "its base or another view of its base has been modified inplace"
MULTIPLE = "This view is the output of a function that returns multiple views"
IN_FUNCTION = "This view was created inside a custom Function"


def leaf(*sizes: int) -> Tensor:
    return torch.ones(*sizes, requires_grad=True)


def result(*sizes: int) -> Tensor:
    return leaf(*sizes) * 1


def creation_meta(view: Tensor) -> str | None:
    import gradext

    return gradext.inspect(view).creation_meta


# --- GX101 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.add_(1),
        lambda x: x.__iadd__(1),
        lambda x: x.__setitem__(0, 1.0),
        lambda x: torch.mul(torch.ones(4), 2, out=x),
        lambda x: torch.relu_(x),
        lambda x: x[1:].zero_(),
        lambda x: x.detach().add_(1),
        lambda x: torch.optim.SGD([x.requires_grad_()], 0.1).step(),
    ],
)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_in_place_operations_count(write: Callable[[Tensor], object], mode: type) -> None:
    x = torch.ones(4)
    x.grad = torch.ones(4)
    with mode():
        write(x)
    assert x._version >= 1


def test_views_and_detach_share_the_counter_and_data_does_not() -> None:
    x = torch.ones(4)
    view, detached, data = x[1:], x.detach(), x.data
    x.add_(1)
    assert (view._version, detached._version, data._version) == (1, 1, 0)


@pytest.mark.parametrize(
    ("operation", "saves_input", "saves_output"),
    [
        (lambda x: x + 1, False, False),
        (lambda x: x + torch.ones(2, 2), False, False),
        (lambda x: x * torch.ones(2, 2), False, False),
        (lambda x: x * x, True, False),
        (torch.sigmoid, False, True),
        (torch.tanh, False, True),
        (torch.exp, False, True),
        (torch.sqrt, False, True),
        (torch.relu, False, True),
        (lambda x: torch.softmax(x, 0), False, True),
        (lambda x: F.linear(x, torch.ones(3, 2, requires_grad=True)), True, False),
        (lambda x: F.conv2d(x[None, None], leaf(1, 1, 1, 1)), True, False),
    ],
)
def test_what_operations_save(
    operation: Callable[[Tensor], Tensor], saves_input: bool, saves_output: bool
) -> None:
    for write_output, saved in ((False, saves_input), (True, saves_output)):
        x = result(2, 2)
        y = operation(x)
        total = y.sum()
        with torch.no_grad():
            (y if write_output else x).add_(1)
        if saved:
            with pytest.raises(RuntimeError, match=STALE):
                total.backward()
        else:
            total.backward()


@pytest.mark.parametrize("layer", [lambda x, w: F.linear(x, w[0, 0]), F.conv2d])
def test_linear_and_convolution_save_their_weight(
    layer: Callable[[Tensor, Tensor], Tensor],
) -> None:
    x, w = result(1, 1, 2, 2), result(1, 1, 2, 2)
    total = layer(x, w).sum()
    w.detach().add_(1)
    with pytest.raises(RuntimeError, match=STALE):
        total.backward()


def test_multiplication_saves_what_the_other_needs() -> None:
    w, x = leaf(3), torch.ones(3)
    y = (w * x).sum()
    x.add_(1)
    with pytest.raises(RuntimeError, match=f"{STALE}.*version 1; expected version 0"):
        y.backward()


def test_a_leaf_has_no_which_is_output() -> None:
    w, x = leaf(3), leaf(3)
    y = (w * x).sum()
    with torch.no_grad():
        w.add_(1)
    with pytest.raises(RuntimeError, match=r"\[torch\.FloatTensor \[3\]\] is at version 1"):
        y.backward()


def test_anomaly_mode_names_the_line_that_saved_and_not_the_one_that_wrote() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with torch.autograd.set_detect_anomaly(True):
            h = torch.sigmoid(result(3))  # saved here
            h.mul_(10)  # written here
            with pytest.raises(RuntimeError, match=STALE):
                h.sum().backward()
    said = "".join(str(warning.message) for warning in caught)
    assert "# saved here" in said
    assert "# written here" not in said


@pytest.mark.parametrize(
    "repaired",
    [
        lambda h: h * 10,
        lambda h: torch.where(torch.tensor([True, False, False]), 1.0, h),
        lambda h: h.masked_fill(torch.tensor([True, False, False]), 1.0),
        lambda h: h.clone().mul_(10),
    ],
)
def test_repairs_of_a_stale_tensor(repaired: Callable[[Tensor], Tensor]) -> None:
    repaired(torch.sigmoid(leaf(3))).sum().backward()


@pytest.mark.parametrize("layer", [nn.Linear(2, 2), nn.Conv2d(1, 1, 1)])
@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.Dropout(inplace=True)])
def test_inplace_layers_behind_linear_and_convolution(
    layer: nn.Module, activation: nn.Module
) -> None:
    x = torch.ones(1, 2, 2)
    activation(layer(x)).sum().backward()
    with pytest.raises(RuntimeError, match=STALE):
        activation(torch.sigmoid(layer(x))).sum().backward()


def two_layers() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    return model, torch.optim.SGD(model.parameters(), 0.1)


def test_a_step_between_two_backward_passes() -> None:
    model, optimizer = two_layers()
    first, second = model(torch.ones(2, 2)).unbind()
    first.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match=STALE):
        second.backward()

    model, optimizer = two_layers()
    first, second = model(torch.ones(2, 2)).unbind()
    first.backward(retain_graph=True)
    second.backward()
    optimizer.step()


@pytest.mark.parametrize("detach", [False, True])
def test_a_hidden_state_carried_over_steps(detach: bool) -> None:
    cell = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(cell.parameters(), 0.1)

    def train() -> None:
        state = torch.zeros(1, 2)
        for _ in range(2):
            state = cell(state)
            state.sum().backward(retain_graph=True)
            optimizer.step()
            if detach:
                state = state.detach()

    if detach:
        train()
    else:
        with pytest.raises(RuntimeError, match=STALE):
            train()


def test_the_max_norm_of_an_embedding_writes_its_weight() -> None:
    embedding = nn.Embedding(3, 2, max_norm=0.1)
    loss = (embedding.weight * embedding.weight).sum()
    embedding(torch.tensor([0]))
    with pytest.raises(RuntimeError, match=STALE):
        loss.backward()


def test_allow_mutation_on_saved_tensors() -> None:
    w = leaf(3)
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        h = w.exp()
        h.mul_(0)
        h.sum().backward()
    assert torch.equal(w.grad, torch.zeros(3))


def test_the_check_compares_counters_and_not_bytes() -> None:
    h = torch.exp(leaf(3))
    h.add_(0)
    with pytest.raises(RuntimeError, match=STALE):
        h.sum().backward()
    for part, allowed in ((lambda t: t, False), (lambda t: t.clone(), True)):
        h = result(4)
        half = part(h[:2])
        total = (half * half).sum()
        h[2:] += 1
        if allowed:
            total.backward()
        else:
            with pytest.raises(RuntimeError, match=STALE):
                total.backward()


def test_a_part_of_the_graph_that_is_not_run_is_not_checked() -> None:
    w = leaf(3)
    stale, fine = w.exp(), w.sin()
    stale.add_(1)
    fine.sum().backward()


def test_hooks_switch_the_check_off() -> None:
    w = leaf(3)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        h = w * 1
        total = (h * h).sum()
    h.detach().add_(1)
    total.backward()
    assert torch.equal(w.grad, torch.full((3,), 4.0))  # 2 would be right


def test_what_a_function_keeps_by_itself_is_not_checked() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            ctx.x = x
            return x * x

        @staticmethod
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            return 2 * ctx.x * grad

    w = leaf(3)
    h = w * 1
    total = Square.apply(h).sum()
    h.detach().mul_(5)
    total.backward()
    assert torch.equal(w.grad, torch.full((3,), 10.0))  # 2 would be right


# --- GX102 and GX103 -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "error"),
    [
        (lambda w: w.add_(1), LEAF),
        (lambda w: w.__setitem__(torch.tensor([True, False, True]), 0.0), LEAF),
        (lambda w: w.__setitem__(torch.tensor([0, 2]), 0.0), LEAF),
        (lambda w: w.clamp_(0, 0.5), LEAF),
        (lambda w: nn.ReLU(inplace=True)(w), LEAF),
        (lambda w: w.__setitem__(0, 0.0), VIEW_OF_LEAF),
        (lambda w: w.view(-1).mul_(2), VIEW_OF_LEAF),
        (lambda w: w[:2][1:].zero_(), VIEW_OF_LEAF),
        (
            lambda w: torch.mul(torch.ones(3), 2, out=w),
            "^mul\\(\\): functions with out=... arguments",
        ),
    ],
)
def test_writes_to_a_leaf_are_refused_before_they_happen(
    write: Callable[[Tensor], object], error: str
) -> None:
    w = leaf(3)
    with pytest.raises(RuntimeError, match=error):
        write(w)
    assert torch.equal(w, torch.ones(3))
    assert w._version == 0


def test_a_view_of_a_view_of_a_leaf() -> None:
    with pytest.raises(RuntimeError, match=VIEW_OF_LEAF):
        leaf(2, 3)[0][1:].t().zero_()


@pytest.mark.parametrize(
    "write",
    [
        lambda w: nn.init.constant_(w, 2.0),
        lambda w: nn.init.constant_(w[:3], 2.0),
        lambda w: w.detach().fill_(2.0),
        lambda w: w.detach()[:].fill_(2.0),
    ],
)
def test_writes_to_a_leaf_that_pass_and_count(write: Callable[[Tensor], object]) -> None:
    w = leaf(3)
    loss = (w * w).sum()
    write(w)
    assert torch.equal(w, torch.full((3,), 2.0))
    assert w.is_leaf
    assert w._version > 0
    with pytest.raises(RuntimeError, match=STALE):
        loss.backward()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_leaf_may_be_written_without_grad_mode(mode: type) -> None:
    w = leaf(3)
    with mode():
        w -= 1
    assert w.is_leaf
    assert w._version == 1


def test_a_view_of_a_leaf_made_outside_may_be_written_under_no_grad() -> None:
    w = leaf(3)
    view = w[:2]
    with torch.no_grad():
        view.zero_()
    assert w.tolist() == [0, 0, 1]


def test_a_new_tensor_under_the_name_of_a_leaf_is_no_leaf() -> None:
    w = leaf(3)
    (w * 2).sum().backward()
    w = w - 0.1 * w.grad
    (w * 2).sum().backward()
    assert not w.is_leaf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert w.grad is None


def test_an_input_may_be_changed_out_of_place() -> None:
    x = leaf(3)
    x.clamp(0, 5).sum().backward()
    assert torch.equal(x.grad, torch.ones(3))


def test_a_clone_may_be_written_and_its_gradient_is_zero_there() -> None:
    w = leaf(3)
    h = w.clone()
    h[0] = 0
    h.sum().backward()
    assert w.grad.tolist() == [0, 1, 1]


def test_data_writes_a_leaf_and_does_not_count() -> None:
    w, x = leaf(3), leaf(3)
    loss = (w * x).sum()
    w.data[0] = 0
    w.data -= 1
    loss.backward()
    assert w._version == 0
    assert x.grad.tolist() == [-1, 0, 0]  # 1, 1, 1 would be right


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


def function(forward: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    """A custom Function of that forward; its backward turns the sign."""
    made = type(
        "Reverse",
        (torch.autograd.Function,),
        {
            "forward": staticmethod(forward),
            "backward": staticmethod(lambda ctx, grad: -grad),
        },
    )
    return made.apply  # type: ignore[attr-defined, no-any-return]


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


# --- GX302 ---------------------------------------------------------------------------------------


def passes_twice(loss: Tensor, **options: bool) -> None:
    loss.backward(**options)
    loss.backward()


def test_what_frees_and_what_retains_a_graph() -> None:
    with pytest.raises(RuntimeError, match=FREED):
        passes_twice((leaf(2) ** 2).sum())
    passes_twice((leaf(2) ** 2).sum(), retain_graph=True)
    w = leaf(2)
    loss = (w * w).sum()
    torch.autograd.grad(loss, w, create_graph=True)
    torch.autograd.grad(loss, w)
    with pytest.raises(RuntimeError, match=FREED):
        loss.backward()


def test_saved_tensors_cannot_be_read_after_they_are_freed() -> None:
    h = leaf(2).exp()
    h.sum().backward()
    with pytest.raises(RuntimeError, match=FREED):
        _ = h.grad_fn._saved_result  # type: ignore[union-attr]


def test_two_losses_with_a_common_part() -> None:
    trunk = leaf(2).exp()
    trunk.sum().backward()
    with pytest.raises(RuntimeError, match=FREED):
        (trunk * 2).sum().backward()
    trunk = leaf(2).exp()
    (trunk.sum() + (trunk * 2).sum()).backward()


@pytest.mark.parametrize("inside", [False, True])
def test_a_value_computed_before_the_loop(inside: bool) -> None:
    w = leaf(2)
    scale = w.exp()

    def train() -> None:
        for _ in range(2):
            used = w.exp() if inside else scale
            (used * torch.ones(2)).sum().backward()

    if inside:
        train()
    else:
        with pytest.raises(RuntimeError, match=FREED):
            train()


def test_a_step_between_two_passes_over_a_retained_graph() -> None:
    model, optimizer = two_layers()
    loss = model(torch.ones(1, 2)).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match=STALE):
        loss.backward()


def test_nodes_that_save_nothing_are_passed_again_without_a_word() -> None:
    w = leaf(2)
    passes_twice((w + w).sum())
    assert w.grad.tolist() == [4, 4]


def test_a_failed_pass_has_done_a_part_of_its_work() -> None:
    w, u = leaf(2), leaf(2)
    loss = (u + w.exp()).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match=FREED):
        loss.backward()
    assert u.grad.tolist() == [2, 2]


def test_after_a_caught_error_the_graph_is_freed() -> None:
    w = leaf(2)
    h, other = w.exp(), w.sin()
    stale = (h * h).sum()
    loss = stale + (other * other).sum()  # what was made last is run first
    h.detach().mul_(1)
    with pytest.raises(RuntimeError, match=STALE):
        loss.backward()
    with pytest.raises(RuntimeError, match=FREED):
        loss.backward()


# --- GX303 ---------------------------------------------------------------------------------------


def test_what_counts_is_the_tensor_object() -> None:
    x = leaf(2)
    loss = (x * x).sum()
    for other in (x.clone(), x[0], x.view(-1), x * 2):
        with pytest.raises(RuntimeError, match=UNUSED):
            torch.autograd.grad(loss, other, retain_graph=True)
    view = x.view(-1)
    torch.autograd.grad((view * view).sum(), view)


def test_a_tensor_written_after_its_use_is_another_node() -> None:
    h = result(2)
    loss = (h + 1).sum()
    h.mul_(2)
    with pytest.raises(RuntimeError, match=UNUSED):
        torch.autograd.grad(loss, h)


def test_ways_to_allow_an_unused_input() -> None:
    w, u = leaf(2), leaf(2)
    assert torch.autograd.grad((w * 2).sum(), [w, u], allow_unused=True)[1] is None
    grads = torch.autograd.grad((w * 2).sum(), [w, u], materialize_grads=True)
    assert grads[1].tolist() == [0, 0]


def test_the_check_comes_after_the_pass() -> None:
    w, u = leaf(2), leaf(2)
    for retain in (True, False):
        loss = (w * w).sum()
        with pytest.raises(RuntimeError, match=UNUSED):
            torch.autograd.grad(loss, [w, u], retain_graph=retain)
        if retain:
            torch.autograd.grad(loss, [w, u], allow_unused=True)
        else:
            with pytest.raises(RuntimeError, match=FREED):
                torch.autograd.grad(loss, [w, u], allow_unused=True)


def test_a_gradient_that_does_not_depend_on_the_input() -> None:
    x, u = leaf(2), leaf(2)
    (grad,) = torch.autograd.grad((u * x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=UNUSED):
        torch.autograd.grad(grad.sum(), x)


def test_used_means_connected() -> None:
    w, u = leaf(2), leaf(2)
    assert torch.autograd.grad((w + u * 0).sum(), u)[0].tolist() == [0, 0]


def test_backward_says_nothing() -> None:
    w, u = leaf(2), leaf(2)
    (w * 2).sum().backward()
    (w * 2).sum().backward(inputs=[w, u])
    assert u.grad is None


def test_an_input_that_needs_no_gradient() -> None:
    with pytest.raises(RuntimeError, match="One of the differentiated Tensors does not require"):
        torch.autograd.grad(leaf(2).sum(), torch.ones(2))


# --- GX401 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_fused_optimizers_do_not_count(kind: type[torch.optim.Optimizer], fused: bool) -> None:
    w, x = leaf(2), leaf(2)
    optimizer = kind([w], lr=0.5, fused=fused)  # type: ignore[call-arg]
    w.grad = torch.ones(2)
    out = (w * x).sum()
    optimizer.step()
    assert w.tolist() != [1, 1]
    if fused:
        assert w._version == 0
        assert torch.equal(torch.autograd.grad(out, x)[0], w)  # 1, 1 would be right
    else:
        with pytest.raises(RuntimeError, match=STALE):
            torch.autograd.grad(out, x)


def test_unscaling_does_not_count() -> None:
    w = leaf(2)
    optimizer = torch.optim.SGD([w], 0.1)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale((w * w).sum()).backward()
    before, version = w.grad.clone(), w.grad._version
    scaler.unscale_(optimizer)
    assert not torch.equal(w.grad, before)
    assert w.grad._version == version


def raw(x: Tensor) -> None:
    """A kernel that writes without telling autograd."""
    x.detach().numpy()[:] = 0


@pytest.fixture
def custom_op() -> Iterator[Callable[[Tensor], None]]:
    library = torch.library.Library("gradext_page_claims", "FRAGMENT")
    library.define("zero(Tensor(a!) x) -> ()")
    library.impl("zero", raw, "CompositeExplicitAutograd")
    yield torch.ops.gradext_page_claims.zero
    library._destroy()


def write_data(x: Tensor) -> None:
    x.data.mul_(0)


def replace_data(x: Tensor) -> None:
    x.data = torch.zeros(2)


def write_numpy(x: Tensor) -> None:
    x.detach().numpy()[:] = 0


def write_dlpack(x: Tensor) -> None:
    torch.from_dlpack(x.detach()).zero_()


def write_storage(x: Tensor) -> None:
    x.untyped_storage().fill_(0)


@pytest.mark.parametrize(
    "write", [write_data, replace_data, write_numpy, write_dlpack, write_storage]
)
def test_writes_that_do_not_count(write: Callable[[Tensor], None]) -> None:
    w, x = leaf(2), leaf(2)
    out = (w * x).sum()
    write(w)
    assert w._version == 0
    out.backward()
    assert x.grad.tolist() == [0, 0]  # 1, 1 would be right


def test_a_custom_operator_that_writes_on_its_own(custom_op: Callable[[Tensor], None]) -> None:
    w, x = leaf(2), leaf(2)
    out = (w * x).sum()
    with torch.no_grad():
        custom_op(w)
    assert w._version == 0
    out.backward()
    assert x.grad.tolist() == [0, 0]  # 1, 1 would be right


def test_batch_norm_writes_its_statistics_without_counting() -> None:
    norm = nn.BatchNorm1d(2).eval()
    x = torch.ones(4, 2, requires_grad=True)
    out = norm(x).sum()
    (right,) = torch.autograd.grad(out, x, retain_graph=True)
    version = norm.running_var._version
    norm.train()(torch.arange(8.0).reshape(4, 2) * 9)
    assert norm.running_var._version == version
    assert not torch.allclose(torch.autograd.grad(out, x)[0], right)


@pytest.mark.parametrize("write", ["detach", "no_grad"])
def test_the_repair_of_data_counts(write: str) -> None:
    w, x = leaf(2), leaf(2)
    out = (w * x).sum()
    if write == "detach":
        w.detach().mul_(0)
    else:
        with torch.no_grad():
            w.mul_(0)
    with pytest.raises(RuntimeError, match=STALE):
        out.backward()


def test_torch_tensor_copies_an_array() -> None:
    array = numpy.ones(2, dtype=numpy.float32)
    w = leaf(2)
    out = (w * torch.tensor(array)).sum() + (w * torch.from_numpy(array)).sum()
    array[:] = 5
    out.backward()
    assert w.grad.tolist() == [6, 6]  # 1 of the copy, 5 of the shared array


def test_increment_version_and_mutates_args_make_a_write_count() -> None:
    @torch.library.custom_op("gradext_page_claims::declared", mutates_args=("x",))
    def declared(x: Tensor) -> None:
        raw(x)

    w, x = leaf(2), leaf(2)
    out = (w * x).sum()
    with torch.no_grad():
        declared(w)
    assert w._version == 1
    with pytest.raises(RuntimeError, match=STALE):
        out.backward()
    h = torch.exp(leaf(2))
    h.data.mul_(3)
    torch.autograd.graph.increment_version(h)
    with pytest.raises(RuntimeError, match=STALE):
        h.sum().backward()
