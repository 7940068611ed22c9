"""What the pages GX101 to GX103 say about torch, checked against torch.

Plain torch only. A claim that stops to hold means that a page has to change.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from page_claims import LEAF, STALE, VIEW_OF_LEAF, leaf, result, two_layers
from torch import Tensor, nn
from torch.nn import functional as F

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
