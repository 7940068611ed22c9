"""What the pages GX301 and GX304 say about torch, checked against torch.

As test_page_claims: plain torch only. A claim that stops to hold means that a page has to change.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy
import pytest
import torch
from page_claims import function, leaf
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

NO_GRADIENT = "^element 0 of tensors does not require grad and does not have a grad_fn"


# --- GX301 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cut",
    [
        lambda t: torch.tensor(t.sum().item()),
        lambda t: torch.tensor(float(t.sum())),
        lambda t: torch.tensor(t.tolist()).sum(),
        lambda t: torch.from_numpy(t.detach().numpy()).sum(),
        lambda t: torch.tensor(t.detach()).sum(),
        lambda t: t.detach().sum(),
        lambda t: t.detach_().sum(),
        lambda t: t.data.sum(),
        lambda t: torch.no_grad()(t.sum)(),
        lambda t: torch.inference_mode()(t.sum)(),
        lambda t: t.argmax().float(),
        lambda t: (t > 0).float().sum(),
        lambda t: t.long().float().sum(),
        lambda t: t.topk(1).indices.float().sum(),
    ],
)
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True:UserWarning")
def test_usual_cuts(cut: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(RuntimeError, match=NO_GRADIENT):
        cut(leaf(2) * 2).backward()


def test_numpy_refuses_what_requires_grad() -> None:
    with pytest.raises(RuntimeError, match=r"Use tensor.detach\(\).numpy\(\) instead"):
        leaf(2).numpy()


def test_grad_mode_that_was_switched_off_by_a_call() -> None:
    torch.set_grad_enabled(False)
    try:
        assert not (leaf(2) * 2).requires_grad
    finally:
        torch.set_grad_enabled(True)


def test_gradients_are_constants_without_create_graph() -> None:
    x = leaf(2)
    for graph in (False, True):
        (grad,) = torch.autograd.grad((x * x).sum(), x, create_graph=graph)
        assert grad.requires_grad is graph
    (x * x).sum().backward()
    assert not x.grad.requires_grad


def test_what_a_function_uses_but_was_not_given() -> None:
    w = leaf(2)
    apply = function(lambda ctx, x: x * w)
    assert not apply(torch.ones(2)).requires_grad
    apply(leaf(2)).sum().backward()
    assert w.grad is None


def test_frozen_parameters_and_inputs() -> None:
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(RuntimeError, match=NO_GRADIENT):
        frozen(torch.ones(1, 2)).sum().backward()
    x = torch.ones(2)
    with pytest.raises(RuntimeError, match="One of the differentiated Tensors does not require"):
        torch.autograd.grad((leaf(2) * x).sum(), x)


def test_the_number_counts_the_roots() -> None:
    with pytest.raises(RuntimeError, match=r"^element 1 of tensors does not require grad"):
        torch.autograd.backward([leaf(2).sum(), torch.ones(())])


def test_stack_and_sum_keep_the_history() -> None:
    w = leaf(2)
    losses = list(w * 2)
    torch.stack(losses).mean().backward(retain_graph=True)
    sum(losses).backward()  # type: ignore[union-attr]
    assert w.grad.tolist() == [3, 3]


def test_a_rounded_value_with_the_gradient_of_what_was_rounded() -> None:
    x = torch.tensor([1.25], requires_grad=True)
    y = x + (x.round() - x).detach()
    y.sum().backward()
    assert (y.tolist(), x.grad.tolist()) == ([1.0], [1.0])


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
def test_checkpoints_of_inputs_that_require_no_grad() -> None:
    layer = nn.Linear(2, 2)

    def backward(x: Tensor, *, reentrant: bool) -> None:
        checkpoint(layer, x, use_reentrant=reentrant).sum().backward()

    with pytest.raises(RuntimeError, match=NO_GRADIENT):
        backward(torch.ones(1, 2), reentrant=True)
    backward(leaf(1, 2), reentrant=True)
    backward(torch.ones(1, 2), reentrant=False)
    assert layer.weight.grad.tolist() == [[2, 2], [2, 2]]


def test_one_term_is_cut() -> None:
    w, u = leaf(2), leaf(2)
    ((w * 2).detach() + u).sum().backward()
    assert w.grad is None
    assert u.grad.tolist() == [1, 1]


@pytest.mark.parametrize("op", [torch.round, torch.floor, torch.sign])
def test_a_derivative_of_zero_is_no_cut(op: Callable[[Tensor], Tensor]) -> None:
    w = leaf(2)
    assert op(w).requires_grad
    op(w).sum().backward()
    assert w.grad.tolist() == [0, 0]


# --- GX304 ---------------------------------------------------------------------------------------


def test_what_torch_says_of_a_rebuilt_loss() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.tensor(leaf(1).sum().item(), requires_grad=True).backward()
    with pytest.warns(UserWarning, match="To copy construct from a tensor, it is recommended"):
        torch.tensor(leaf(1).sum(), requires_grad=True).backward()


def test_a_rebuilt_loss_trains_nothing() -> None:
    w = leaf(2)
    optimizer = torch.optim.SGD([w], lr=0.1)
    loss = torch.tensor((w * 2).sum().item(), requires_grad=True)
    loss.backward()
    optimizer.step()
    assert loss.grad.item() == 1
    assert w.grad is None
    assert w.tolist() == [1, 1]
    cut = (w * 2).sum().detach()
    cut.requires_grad_()
    cut.backward()
    assert w.grad is None


def test_a_leaf_rebuilt_in_the_middle() -> None:
    w = leaf(2)
    array = numpy.square((w * 3).detach().numpy())
    middle = torch.from_numpy(array).requires_grad_()
    middle.sum().backward()
    assert w.grad is None
    assert middle.grad.tolist() == [1, 1]


@pytest.mark.parametrize("way", ["constant", "x.grad", "create_graph", "func"])
def test_a_penalty_on_gradients(way: str) -> None:
    w = nn.Parameter(torch.tensor([3.0]))
    x = torch.tensor([1.0], requires_grad=True)
    out = (w * x).sum()
    if way == "func":
        slope = torch.func.grad(lambda x: (w * x).sum())(torch.ones(1))
    elif way == "x.grad":
        out.backward(retain_graph=True)
        slope, w.grad = x.grad, None
    else:
        graph = way == "create_graph"
        (slope,) = torch.autograd.grad(out, x, retain_graph=True, create_graph=graph)
    (out + (slope - 1).pow(2).sum()).backward()
    assert w.grad.item() == (5 if way in ("create_graph", "func") else 1)


def test_create_graph_retains_the_graph() -> None:
    x = leaf(2)
    out = (x * x).sum()
    torch.autograd.grad(out, x, create_graph=True)
    out.backward()
