"""Whole training runs, bit for bit the same with full, light and no recording."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from events import same_bits
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradext
from gradext.recording import own_errors

STEPS = 6


class Transformer(nn.Module):
    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.embed = nn.Embedding(17, 16)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(16, 17)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        h = self.embed(tokens)
        for block in self.blocks:
            if self.reentrant is None:
                h = block(h)
            else:
                h = checkpoint(block, h, use_reentrant=self.reentrant)
        return self.head(h)  # type: ignore[no-any-return]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(inplace=True), nn.Linear(16, 4))


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.SiLU(inplace=True),
        nn.Flatten(),
        nn.Linear(144, 4),
    )


def vectors() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(5, 8), torch.randint(4, (5,))


def images() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(5, 1, 8, 8), torch.randint(4, (5,))


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(17, (3, 7)), torch.randint(17, (3, 7))


RUNS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], Callable[..., Any]]] = {
    "MLP, SGD": (mlp, vectors, functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)),
    "conv, BatchNorm, Adam": (conv, images, functools.partial(torch.optim.Adam, lr=0.01)),
    "conv, fused Adam": (conv, images, functools.partial(torch.optim.Adam, lr=0.01, fused=True)),
    "transformer, AdamW": (Transformer, tokens, torch.optim.AdamW),
    "transformer, foreach AdamW": (
        Transformer,
        tokens,
        functools.partial(torch.optim.AdamW, foreach=True),
    ),
    "reentrant checkpoint": (functools.partial(Transformer, True), tokens, torch.optim.AdamW),
    "checkpoint": (functools.partial(Transformer, False), tokens, torch.optim.AdamW),
    "LBFGS": (mlp, vectors, functools.partial(torch.optim.LBFGS, max_iter=3)),
}


def train(name: str) -> Any:
    """Weights, buffers, gradients, optimizer state, losses and versions after a few steps."""
    make_model, make_batch, make_optimizer = RUNS[name]
    torch.manual_seed(0)
    model = make_model()
    optimizer = make_optimizer(model.parameters())
    losses = []
    for _ in range(STEPS):
        inputs, targets = make_batch()

        def closure(inputs: Any = inputs, targets: Any = targets) -> torch.Tensor:
            optimizer.zero_grad()
            out = model(inputs)
            loss = nn.functional.cross_entropy(out.reshape(-1, out.shape[-1]), targets.reshape(-1))
            loss.backward()
            return loss

        if name == "LBFGS":
            losses.append(optimizer.step(closure))
        else:
            losses.append(closure())
            optimizer.step()
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(
        (
            [t.detach() for t in tensors],
            [None if t.grad is None else t.grad for t in model.parameters()],
            optimizer.state_dict(),
            [float(loss.detach()) for loss in losses],
            [t._version for t in tensors],
            torch.get_rng_state(),
        )
    )


@pytest.mark.parametrize("saves", [True, False], ids=["full", "light"])
@pytest.mark.parametrize("name", RUNS)
def test_same_weights(name: str, saves: bool) -> None:
    plain = train(name)
    known = own_errors.lines()
    with gradext.record(saves=saves) as recording:
        found = train(name)
    assert same_bits(found, plain)
    assert same_bits(train(name), plain)  # and afterwards
    assert len(recording.writes) >= STEPS
    assert len(recording.backwards) >= STEPS
    assert (len(recording.data.saves) > 0) is saves
    assert [line for line in own_errors.lines() if "recorder" in line] == [
        line for line in known if "recorder" in line
    ]


@pytest.mark.parametrize("saves", [True, False], ids=["full", "light"])
def test_the_error_of_a_failed_backward_is_torchs_own(saves: bool) -> None:
    def fail() -> None:
        x = torch.ones(3, requires_grad=True)
        y = x.sigmoid()
        y.mul_(2)
        y.sum().backward()

    with pytest.raises(RuntimeError) as plain:
        fail()
    with gradext.record(saves=saves), pytest.raises(RuntimeError) as found:
        fail()
    assert str(found.value) == str(plain.value)
    assert type(found.value) is type(plain.value)
    files = [frame.path.name for frame in found.traceback]
    assert files[1:] == [frame.path.name for frame in plain.traceback][1:]


class Cube(torch.autograd.Function):
    """The newer form, with setup_context and a rule for vmap."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class Both(torch.autograd.Function):
    """The older form, twice differentiable, with several outputs and arguments that are none."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor, power: int) -> Any:
        ctx.save_for_backward(x, y)
        ctx.power = power
        return x**power, x * y

    @staticmethod
    def backward(ctx: Any, first: torch.Tensor, second: torch.Tensor) -> Any:
        x, y = ctx.saved_tensors
        return ctx.power * x ** (ctx.power - 1) * first + y * second, x * second, None


def custom_functions() -> Any:
    x = torch.arange(1.0, 4.0).requires_grad_()
    y = torch.full((3,), 2.0, requires_grad=True)
    a, b = Both.apply(x, y, 3)
    first = torch.autograd.grad((a * b).sum(), (x, y), create_graph=True)
    second = torch.autograd.grad(first[0].sum(), (x, y))
    by_func = torch.func.grad(lambda t: Cube.apply(t).sum())(x.detach())
    by_vmap = torch.vmap(torch.func.grad(lambda t: Cube.apply(t)))(x.detach())
    name = type(a.grad_fn).__name__
    return [t.detach() for t in (a, b, *first, *second, by_func, by_vmap)], name


@pytest.mark.parametrize("saves", [True, False], ids=["full", "light"])
def test_custom_functions_of_every_form(saves: bool) -> None:
    plain = custom_functions()
    with gradext.record(saves=saves):
        found = custom_functions()
    assert same_bits(found, plain)
    assert plain[1] == "BothBackward"


@pytest.mark.parametrize("saves", [True, False], ids=["full", "light"])
def test_wrong_arguments_of_a_custom_function_fail_alike(saves: bool) -> None:
    def fail() -> None:
        Both.apply(torch.ones(3))

    with pytest.raises(TypeError) as plain:
        fail()
    with gradext.record(saves=saves), pytest.raises(TypeError) as found:
        fail()
    assert str(found.value) == str(plain.value)
