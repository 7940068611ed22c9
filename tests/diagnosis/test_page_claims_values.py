"""What the pages GX201 to GX204 say about torch, checked against torch.

As test_page_claims: plain torch only. A claim that stops to hold means that a page has to change.
"""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Callable

import pytest
import torch
from page_claims import FREED, leaf
from torch import Tensor, nn
from torch.nn import functional as F

SAVED = "^Inference tensors cannot be saved for backward"
WRITTEN = "^Inplace update to inference tensor outside InferenceMode is not allowed"
REQUIRES = "Setting requires_grad=True on inference tensor outside InferenceMode is not allowed"
NO_COUNTER = "^Inference tensors do not track version counter"
NO_GRADIENT = "^element 0 of tensors does not require grad and does not have a grad_fn"


def made(*sizes: int) -> Tensor:
    """An inference tensor of ones."""
    with torch.inference_mode():
        return torch.ones(*sizes)


def made_layer() -> nn.Linear:
    """A layer that was built under inference_mode."""
    with torch.inference_mode():
        return nn.Linear(2, 2)


# --- GX201 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [
        lambda w, t: w * t,
        lambda w, t: w / t,
        lambda w, t: w @ t,
        lambda w, t: w**t,
        lambda w, t: F.linear(t, w[None]),
        lambda w, t: F.mse_loss(w, t),
    ],
)
def test_what_saves_an_inference_tensor_is_refused(use: Callable[..., Tensor]) -> None:
    with pytest.raises(RuntimeError, match=SAVED):
        use(leaf(3), made(3))
    with torch.no_grad():
        use(leaf(3), made(3))
    assert use(leaf(3), made(3).clone()).requires_grad


def test_indices_and_conditions_are_saved_too() -> None:
    with torch.inference_mode():
        index, condition = torch.tensor([0]), torch.tensor([True, False])
    with pytest.raises(RuntimeError, match=SAVED):
        F.embedding(index, leaf(3, 2))
    with pytest.raises(RuntimeError, match=SAVED):
        torch.where(condition, leaf(2), leaf(2))


@pytest.mark.parametrize(
    "use",
    [
        lambda w, t: w + t,
        lambda w, t: w - t,
        lambda w, t: torch.cat([w, t]),
        lambda w, t: torch.stack([w, t]),
    ],
)
def test_what_saves_nothing_is_allowed(use: Callable[..., Tensor]) -> None:
    w = leaf(3)
    use(w, made(3)).sum().backward()
    assert w.grad.tolist() == [1, 1, 1]


def test_it_stays_an_inference_tensor_after_the_block() -> None:
    t = made(2)
    assert not torch.is_inference_mode_enabled()
    assert t.is_inference()
    with torch.inference_mode():
        assert t.clone().is_inference()
        with torch.no_grad():
            assert torch.ones(2).is_inference()
        with torch.inference_mode(False):
            assert not torch.ones(2).is_inference()
    with torch.no_grad():
        assert not torch.ones(2).is_inference()
        assert not t.clone().is_inference()


@pytest.mark.parametrize(
    "derive",
    [
        lambda t: t.detach(),
        lambda t: t.data,
        lambda t: t.view(-1),
        lambda t: t[0],
        lambda t: t.expand(2, 3),
        lambda t: t.contiguous(),
        lambda t: t.to(torch.float32),
    ],
)
def test_what_stays_an_inference_tensor(derive: Callable[[Tensor], Tensor]) -> None:
    assert derive(made(3)).is_inference()
    with pytest.raises(RuntimeError, match=SAVED):
        derive(made(3)) * leaf(3)


def test_contiguous_and_to_return_the_tensor_itself_where_there_is_nothing_to_do() -> None:
    t = made(3)
    assert t.contiguous() is t
    assert t.to(torch.float32) is t
    assert not t.to(torch.float64).is_inference()


def test_a_deep_copy_made_outside_is_normal() -> None:
    layer = copy.deepcopy(made_layer())
    assert not layer.weight.is_inference()
    layer(torch.ones(1, 2)).sum().backward()
    assert layer.weight.grad.tolist() == [[1, 1], [1, 1]]
    with torch.inference_mode():
        assert copy.deepcopy(layer).weight.is_inference()


def test_enable_grad_does_not_record_under_inference_mode() -> None:
    w = leaf(2)
    with torch.inference_mode():
        with torch.enable_grad():
            assert not (w * 2).requires_grad
        with torch.inference_mode(False):
            assert (w * 2).requires_grad


def test_nothing_is_recorded_where_all_inputs_are_inference_tensors() -> None:
    with torch.inference_mode():
        p = nn.Parameter(torch.ones(2))
        t = torch.ones(2)
    assert p.requires_grad
    assert not (p * p).requires_grad
    assert not (p * t).requires_grad
    assert (p + torch.ones(2)).requires_grad


def test_a_function_checks_what_it_saves_and_not_what_it_keeps() -> None:
    class Saves(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, table):  # type: ignore[no-untyped-def]
            ctx.save_for_backward(table)
            return x * table

    class Keeps(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, table):  # type: ignore[no-untyped-def]
            ctx.table = table
            return x * table

        @staticmethod
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            return grad * ctx.table, None

    with pytest.raises(RuntimeError, match=SAVED):
        Saves.apply(leaf(2), made(2))
    for table in (made(2), torch.ones(2)):
        w = leaf(2)
        out = Keeps.apply(w, table).sum()
        table.detach().zero_()
        out.backward()
        assert w.grad.tolist() == [0, 0]  # 1, 1 would be right


# --- GX202 ---------------------------------------------------------------------------------------

WRITES = [
    lambda t: t.add_(1),
    lambda t: t.__setitem__(slice(None), 2.0),
    lambda t: t.copy_(torch.full((2,), 2.0)),
    lambda t: t[:2].add_(1),
    lambda t: torch.add(torch.ones(2), 1, out=t),
]


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("write", WRITES)
def test_a_refused_write_has_been_done(write: Callable[[Tensor], object], mode: type) -> None:
    t = made(2)
    with mode(), pytest.raises(RuntimeError, match=WRITTEN):
        write(t)
    assert t.tolist() == [2, 2]


@pytest.mark.parametrize("write", WRITES)
def test_a_write_under_inference_mode_passes(write: Callable[[Tensor], object]) -> None:
    t, normal = made(2), torch.ones(2)
    with torch.inference_mode():
        write(t)
        write(normal)
    assert t.tolist() == normal.tolist() == [2, 2]
    assert t.is_inference()
    assert normal._version == 1
    assert not normal.is_inference()


@pytest.mark.parametrize(
    "write",
    [
        lambda t: t.data.zero_(),
        lambda t: t.detach().zero_(),
        lambda t: t.numpy().fill(0),
        lambda t: t.untyped_storage().fill_(0),
    ],
)
def test_writes_that_pass(write: Callable[[Tensor], object]) -> None:
    t = made(2)
    write(t)
    assert t.tolist() == [0, 0]
    assert t.is_inference()


def test_a_new_tensor_of_an_inference_tensor_is_normal() -> None:
    assert not made(2).lerp(torch.ones(2), 0.1).is_inference()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_a_step_that_fails_has_updated_the_parameter(kind: type[torch.optim.Optimizer]) -> None:
    layer = made_layer()
    before = layer.bias.tolist()
    layer(torch.ones(1, 2)).sum().backward()
    with pytest.raises(RuntimeError, match=WRITTEN):
        kind(layer.parameters(), lr=0.5).step()  # type: ignore[call-arg]
    moved = [number - 0.5 for number in before]
    assert layer.bias.tolist() == pytest.approx(moved, abs=1e-6)  # in float32


def test_a_module_built_under_the_mode() -> None:
    with pytest.raises(RuntimeError, match=WRITTEN[1:]):
        made_layer().load_state_dict(nn.Linear(2, 2).state_dict())
    with torch.inference_mode():
        norm = nn.BatchNorm1d(2)
    with pytest.raises(RuntimeError, match=WRITTEN):
        norm(torch.ones(3, 2))
    copy.deepcopy(norm)(torch.ones(3, 2)).sum().backward()


def test_momentum_made_under_the_mode() -> None:
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(1, 2)).sum().backward()
    with torch.inference_mode():
        optimizer.step()
    with pytest.raises(RuntimeError, match=WRITTEN):
        optimizer.step()


def test_a_gradient_made_under_the_mode() -> None:
    w = leaf(2)
    w.grad = made(2)
    with pytest.raises(RuntimeError, match=WRITTEN):
        (w * 2).sum().backward()
    w.grad = None
    (w * 2).sum().backward()


# --- GX203 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask",
    [
        lambda t: t.requires_grad_(),
        lambda t: setattr(t, "requires_grad", True),
        lambda t: nn.Parameter(t),
        lambda t: t.detach().requires_grad_(),
    ],
)
def test_it_cannot_require_grad(ask: Callable[[Tensor], object]) -> None:
    with pytest.raises(RuntimeError, match=f"^{REQUIRES}"):
        ask(made(2))
    ask(made(2).clone())
    with torch.inference_mode():
        ask(torch.ones(2))


def test_a_module_is_thawed() -> None:
    layer = made_layer().requires_grad_(False)
    with pytest.raises(RuntimeError, match=f"^{REQUIRES}"):
        layer.requires_grad_(True)


def test_weights_that_are_assigned() -> None:
    layer = nn.Linear(2, 2)
    with torch.inference_mode():
        state = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(RuntimeError, match=REQUIRES) as caught:
        layer.load_state_dict(state, assign=True)
    assert str(caught.value).startswith("Error(s) in loading state_dict for Linear")
    layer.load_state_dict(state)
    assert not layer.weight.is_inference()
    with torch.inference_mode():
        layer.load_state_dict(state, assign=True)
    assert layer.weight.is_inference()
    assert layer.weight.requires_grad


def test_the_version_of_an_inference_tensor() -> None:
    with pytest.raises(RuntimeError, match=NO_COUNTER):
        _ = made(2)._version


@pytest.mark.parametrize("inside", [True, False])
def test_moved_to_another_dtype_under_the_mode(inside: bool) -> None:
    layer = nn.Linear(2, 2)
    with torch.inference_mode(inside):
        layer.to(torch.float64)
    assert layer.weight.is_inference() is inside
    assert layer.weight.requires_grad


def test_a_parameter_made_under_the_mode_and_moved_outside() -> None:
    x = torch.ones(1, 2, dtype=torch.float64)
    layer = made_layer().to(torch.float64)
    assert not layer.weight.is_inference()
    for mode in (torch.enable_grad, torch.no_grad):
        with mode(), pytest.raises(RuntimeError, match=NO_COUNTER):
            layer(x)
    normal = copy.deepcopy(layer)
    normal(x).sum().backward()
    assert normal.weight.grad.tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("moved", [True, False])
def test_a_parameter_is_made_anew(moved: bool) -> None:
    layer = made_layer()
    if moved:
        layer.to(torch.float64)
    layer.weight = nn.Parameter(layer.weight.detach().clone())
    layer.bias = nn.Parameter(layer.bias.detach().clone())
    layer(torch.ones(1, 2, dtype=layer.weight.dtype)).sum().backward()
    assert layer.weight.grad.tolist() == [[1, 1], [1, 1]]
    torch.optim.SGD(layer.parameters(), lr=0.1).step()


def test_a_weight_misses_its_gradient_without_an_error() -> None:
    layer = made_layer()
    layer(torch.ones(1, 2)).sum().backward()
    assert layer.weight.requires_grad
    assert layer.weight.grad is None
    assert layer.bias.grad.tolist() == [1, 1]
    with pytest.raises(RuntimeError, match=WRITTEN):
        torch.optim.SGD(layer.parameters(), lr=0.1).step()
    with pytest.raises(RuntimeError, match=SAVED):
        layer(torch.ones(1, 2, requires_grad=True))


def test_data_replaced_by_an_inference_tensor() -> None:
    p = nn.Parameter(torch.ones(2))
    p.data = made(2)
    assert p.is_inference()
    assert p.requires_grad
    with pytest.raises(RuntimeError, match=NO_GRADIENT):
        (p * p).sum().backward()


# --- GX204 ---------------------------------------------------------------------------------------


class Rotary(nn.Module):
    """The page's example, with each way to mend it."""

    def __init__(self, mode: Callable[[], object] | None = None) -> None:
        super().__init__()
        self.table: Tensor | None = None
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            if self.mode is None:
                self.table = torch.arange(4.0).cos()
            else:
                with self.mode():  # type: ignore[attr-defined]
                    self.table = torch.arange(4.0).cos()
        return x * self.table


def evaluates_and_trains(model: nn.Module, *, evaluation_first: bool = True) -> None:
    if not evaluation_first:
        model(leaf(2, 4)).sum().backward()
    with torch.inference_mode():
        model(torch.ones(2, 4))
    model(leaf(2, 4)).sum().backward()


def test_the_order_matters() -> None:
    evaluates_and_trains(Rotary(), evaluation_first=False)
    with pytest.raises(RuntimeError, match=SAVED):
        evaluates_and_trains(Rotary())


def test_ways_to_mend_a_cache() -> None:
    evaluates_and_trains(Rotary(lambda: torch.inference_mode(False)))
    model = Rotary()
    with torch.no_grad():
        model(torch.ones(2, 4))
    evaluates_and_trains(model)
    for mend in ("None", "clone"):
        model = Rotary()
        with torch.inference_mode():
            model(torch.ones(2, 4))
        model.table = model.table.clone() if mend == "clone" else None
        model(leaf(2, 4)).sum().backward()


def test_an_lru_cache() -> None:
    @functools.lru_cache
    def table(size: int) -> Tensor:
        return torch.ones(size)

    with torch.inference_mode():
        table(2)
    with pytest.raises(RuntimeError, match=SAVED):
        leaf(2) * table(2)
    table.cache_clear()
    leaf(2) * table(2)


def test_what_a_forward_hook_keeps() -> None:
    kept = []
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.inference_mode():
        layer(torch.ones(1, 2))
    assert kept[0].is_inference()


def test_a_buffer_moves_with_the_module_and_an_attribute_does_not() -> None:
    model = nn.Module()
    model.register_buffer("kept", torch.ones(2))
    model.plain = torch.ones(2)
    model.to(torch.float64)
    assert (model.kept.dtype, model.plain.dtype) == (torch.float64, torch.float32)


def test_a_cache_that_keeps_a_graph() -> None:
    w = leaf(2)
    with torch.no_grad(), torch.inference_mode(), torch.inference_mode(False):
        table = w.exp()
        with torch.no_grad():
            constant = w.exp()
    assert not table.is_inference()
    assert not constant.is_inference()
    for _ in range(2):
        (constant * leaf(2)).sum().backward()
    (table * leaf(2)).sum().backward()
    with pytest.raises(RuntimeError, match=FREED):
        (table * leaf(2)).sum().backward()


def test_clone_and_detach_under_inference_mode_false() -> None:
    with torch.inference_mode():
        h = torch.ones(2)
        with torch.inference_mode(False):
            assert not h.clone().is_inference()
            assert h.detach().is_inference()


@pytest.mark.parametrize("in_place", [True, False])
def test_a_buffer_written_or_bound_anew(in_place: bool) -> None:
    model = nn.Module()
    model.register_buffer("mean", torch.zeros(2))
    with torch.inference_mode():
        if in_place:
            model.mean.mul_(0.9).add_(0.1)
        else:
            model.mean = 0.9 * model.mean + 0.1
    assert model.mean.is_inference() is not in_place
    assert model.state_dict()["mean"].is_inference() is not in_place
    assert model.mean.tolist() == pytest.approx([0.1, 0.1])


def test_saved_and_loaded_it_is_normal() -> None:
    file = io.BytesIO()
    torch.save(made(2), file)
    file.seek(0)
    assert not torch.load(file).is_inference()
    assert not copy.deepcopy(made(2)).is_inference()
