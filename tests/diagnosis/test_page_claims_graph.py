"""What the pages GX302, GX303 and GX401 say about torch, checked against torch.

Plain torch only. A claim that stops to hold means that a page has to change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy
import pytest
import torch
from page_claims import FREED, STALE, UNUSED, leaf, result, two_layers
from torch import Tensor, nn

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
