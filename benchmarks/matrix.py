"""What the mode benchmark times: single ops from launch-bound to bandwidth-bound, and models.

Owns the calls and their inputs, random weights and all. It measures nothing and knows of modes only
that a call is made anew in each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional

Call: TypeAlias = Callable[[], object]
Wrap: TypeAlias = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A subject with its weights. ``build(wrap)`` makes the call anew, in the mode that is on.

    ``wrap`` is applied to the model before it is called (torch.compile; or nothing).
    """

    build: Callable[[Wrap], Call]
    parameters: Sequence[torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A row of the matrix. ``size`` is the text, ``elements`` the number of elements (ops)."""

    group: str  # "op" or "model"
    what: str
    size: str
    prepare: Callable[[str], Prepared]  # device -> what is to be timed
    elements: int | None = None
    parallel: bool = True  # False: no thread but the caller's has work, so one row is enough


def _leaf(*shape: int, device: str) -> torch.Tensor:
    return torch.rand(*shape, device=device).requires_grad_(True)


def _op(
    shapes: Sequence[tuple[int, ...]], call: Callable[..., object], grad: bool = True
) -> Callable[[str], Prepared]:
    """An op on tensors of these shapes: the first a parameter if ``grad``, none else.

    All tensors but the parameter are made inside the mode, as a model's intermediate values are.
    """

    def prepare(device: str) -> Prepared:
        first = _leaf(*shapes[0], device=device)

        def build(wrap: Wrap) -> Call:
            rest = [torch.rand(*shape, device=device) for shape in shapes[1:]]
            head = first if grad else torch.rand(*shapes[0], device=device)
            return lambda: call(head, *rest)

        return Prepared(build, [first] if grad else [])

    return prepare


def _view(shape: tuple[int, ...], call: Callable[[torch.Tensor], object]) -> Any:
    """A view of a value that a model computed: its result requires grad, and it is no leaf."""

    def prepare(device: str) -> Prepared:
        weight = _leaf(*shape, device=device)

        def build(wrap: Wrap) -> Call:
            value = weight * 1.0
            return lambda: call(value)

        return Prepared(build, [weight])

    return prepare


def _index_put(count: int) -> Callable[[str], Prepared]:
    def prepare(device: str) -> Prepared:
        def build(wrap: Wrap) -> Call:
            target = torch.rand(2 * count, device=device)
            places = torch.randperm(2 * count, device=device)[:count]
            values = torch.rand(count, device=device)
            return lambda: target.index_put_((places,), values)

        return Prepared(build, [])

    return prepare


def _attention(tokens: int) -> Callable[[str], Prepared]:
    def prepare(device: str) -> Prepared:
        queries = _leaf(1, 4, tokens, 32, device=device)

        def build(wrap: Wrap) -> Call:
            keys = torch.rand(1, 4, tokens, 32, device=device)
            values = torch.rand(1, 4, tokens, 32, device=device)
            return lambda: functional.scaled_dot_product_attention(queries, keys, values)

        return Prepared(build, [queries])

    return prepare


def _layer_norm(rows: int) -> Callable[[str], Prepared]:
    def prepare(device: str) -> Prepared:
        weight, bias = _leaf(256, device=device), _leaf(256, device=device)

        def build(wrap: Wrap) -> Call:
            x = torch.rand(rows, 256, device=device)
            return lambda: functional.layer_norm(x, (256,), weight, bias)

        return Prepared(build, [weight, bias])

    return prepare


def _power(exponent: int) -> str:
    return f"2^{exponent}"


ELEMENTWISE = (2, 10, 14, 18, 22)
IN_PARALLEL = 15  # at::internal::GRAIN_SIZE is 32768 elements


def ops() -> list[Subject]:
    rows = [
        Subject(
            "op",
            "x @ w",
            f"{n}×{n}",
            _op([(n, n), (n, n)], lambda w, x: x @ w),
            n * n,
            parallel=n > 100,
        )
        for n in (5, 32, 128, 512)
    ]
    for what, call, grad in (
        ("x + w", lambda w, x: x + w, True),
        ("x.add_(y)", lambda x, y: x.add_(y), False),
        ("x.copy_(y)", lambda x, y: x.copy_(y), False),
    ):
        rows += [
            Subject(
                "op",
                what,
                _power(k),
                _op([(2**k,), (2**k,)], call, grad),
                2**k,
                parallel=k >= IN_PARALLEL,
            )
            for k in ELEMENTWISE
        ]
    for what, view in (
        ("x.view(-1)", lambda x: x.view(-1)),
        ("x[1:3]", lambda x: x[1:3]),
        ("x.chunk(2)", lambda x: x.chunk(2)),
    ):
        rows += [
            Subject("op", what, f"{n}×{n}", _view((n, n), view), n * n, parallel=False)
            for n in (8, 1024)
        ]
    rows += [
        Subject(
            "op",
            "layer_norm(x)",
            f"{n}×256",
            _layer_norm(n),
            n * 256,
            parallel=n > 1000,
        )
        for n in (1, 64, 4096)
    ]
    rows += [
        Subject(
            "op",
            "attention (SDPA)",
            f"1×4×{n}×32",
            _attention(n),
            4 * n * 32,
            parallel=n > 100,
        )
        for n in (8, 64, 512)
    ]
    rows += [
        Subject(
            "op",
            "x.index_put_(i, y)",
            _power(k),
            _index_put(2**k),
            2**k,
            parallel=k >= IN_PARALLEL,
        )
        for k in (4, 12, 18)
    ]
    return rows


def _model(
    make: Callable[[], nn.Module], inputs: Callable[[nn.Module, str], tuple[Any, ...]]
) -> Callable[[str], Prepared]:
    """A model in eval mode, called on inputs from outside the mode, as a batch of a loader is."""

    def prepare(device: str) -> Prepared:
        torch.manual_seed(0)
        model = make().to(device).eval()
        given = inputs(model, device)

        def build(wrap: Wrap) -> Call:
            wrapped = wrap(model)
            return lambda: wrapped(*given)

        return Prepared(build, list(model.parameters()))

    return prepare


class _Residual(nn.Module):
    """Two 3×3 convolutions with batch norm, and the input added: ResNet's basic block."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            self.skip = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.skip(x))


def resnet20() -> nn.Module:
    """ResNet-20 for 32×32 images (He et al. 2016, section 4.2): 0.27 million weights."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
    ]
    width = 16
    for outside in (16, 32, 64):
        for index in range(3):
            layers.append(_Residual(width, outside, 2 if outside != width and index == 0 else 1))
            width = outside
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def mlp() -> nn.Module:
    """Four linear layers 256 wide with ReLUs between them: 0.26 million weights."""
    from gradext.lesson.models import MLP

    return MLP(width=256, depth=4)


def vit() -> nn.Module:
    """ViT-B/16 as transformers builds it: 86 million weights, 224×224 images."""
    import transformers

    return transformers.ViTModel(transformers.ViTConfig(), add_pooling_layer=False)


def llm() -> nn.Module:
    """A Llama of 4 layers, 256 wide, grouped-query attention: 4.9 million weights."""
    import transformers

    transformers.logging.set_verbosity_error()
    config = transformers.LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    return transformers.LlamaForCausalLM(config)


PREFIX = 128


def _decode(batch: int) -> Callable[[str], Prepared]:
    """One token behind a KV cache of 128 that was filled in the same mode.

    The cache is put back after each call, or it (and under grad its graph) would grow.
    """

    def prepare(device: str) -> Prepared:
        torch.manual_seed(0)
        model = llm().to(device).eval()
        prompt = torch.randint(4096, (batch, PREFIX), device=device)
        token = prompt[:, -1:].contiguous()

        def build(wrap: Wrap) -> Call:
            wrapped = wrap(model)
            cache = model(input_ids=prompt, use_cache=True).past_key_values
            kept = [(layer.keys.detach(), layer.values.detach()) for layer in cache.layers]

            def call() -> object:
                for layer, (keys, values) in zip(cache.layers, kept, strict=True):
                    layer.keys, layer.values = keys, values
                return wrapped(input_ids=token, past_key_values=cache, use_cache=True).logits

            return call

        return Prepared(build, list(model.parameters()))

    return prepare


BATCHES = (1, 8, 64)


def models() -> list[Subject]:
    def images(batch: int, side: int) -> Callable[[nn.Module, str], tuple[Any, ...]]:
        return lambda model, device: (torch.rand(batch, 3, side, side, device=device),)

    def vectors(batch: int) -> Callable[[nn.Module, str], tuple[Any, ...]]:
        return lambda model, device: (torch.rand(batch, 256, device=device),)

    def tokens(batch: int) -> Callable[[nn.Module, str], tuple[Any, ...]]:
        return lambda model, device: (torch.randint(4096, (batch, PREFIX), device=device),)

    rows = []
    for batch in BATCHES:
        size = f"batch {batch}"
        rows += [
            Subject("model", "MLP", size, _model(mlp, vectors(batch))),
            Subject("model", "ResNet-20", size, _model(resnet20, images(batch, 32))),
            Subject("model", "LLM, decode", size, _decode(batch)),
            Subject("model", "LLM, prefill of 128", size, _model(llm, tokens(batch))),
            Subject("model", "ViT-B/16", size, _model(vit, images(batch, 224))),
        ]
    return rows
