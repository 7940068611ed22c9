"""What the recorder benchmark times, and what it times it under: subjects and ways.

Owns the train steps and single ops (subjects) and the contexts that they run in (ways). It measures
nothing, and importing it does not import gradext: recorder_child.py times torch alone with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import traceback
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

Step: TypeAlias = Callable[[], object]
Context: TypeAlias = Callable[[], contextlib.AbstractContextManager[Any]]

# Small enough that hundreds of thousands of steps on one batch do not reach weights or gradients
# with subnormal numbers, which are slow to add.
LEARNING_RATE = 1e-6


@dataclasses.dataclass(frozen=True)
class Subject:
    """A call to time. ``build`` makes it: random weights, inputs and all.

    ``block_seconds`` is how long the calls of one block take together (0: one call), ``seconds``
    how long the whole comparison may take.
    """

    label: str
    group: str  # "op", "small" or "large"
    build: Callable[[], Step]
    block_seconds: float
    seconds: float
    ways: tuple[str, ...] | None = None  # None: all


@dataclasses.dataclass(frozen=True)
class Way:
    """A context to run a subject in. Entering and leaving it are not timed.

    ``apart``: compared with nothing in a run of its own. It takes so long, or its end does, that
    the rounds of the others would become few, and the turns of two ways in a round lie far apart.
    """

    label: str
    context: Context
    apart: bool = False


def functional_op() -> Step:
    a, b = torch.ones(16), torch.ones(16)
    return lambda: a + b


def differentiable_op() -> Step:
    w, x = torch.ones(16, requires_grad=True), torch.ones(16)
    return lambda: w * x


def in_place_op() -> Step:
    a, b = torch.zeros(16), torch.zeros(16)
    return lambda: a.add_(b)


def mlp_step() -> Step:
    model = nn.Sequential(
        *(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    )
    inputs, classes = torch.randn(8, 32), torch.randint(10, (8,))
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    return train_step(optimizer, lambda: functional.cross_entropy(model(inputs), classes))


def transformer_step(
    optimizer: type[torch.optim.Optimizer], *, depth: int, width: int, batch: int, tokens: int
) -> Step:
    """The lesson's decoder-only language model, forward without a KV cache, next-token loss."""
    from gradext.lesson.models import LLM

    model = LLM(vocabulary=256, context=tokens, width=width, depth=depth, heads=4)
    inputs, targets = torch.randint(256, (batch, tokens)), torch.randint(256, (batch * tokens,))
    return train_step(
        optimizer(model.parameters(), lr=LEARNING_RATE),  # type: ignore[call-arg]
        lambda: functional.cross_entropy(model(inputs)[0].flatten(0, 1), targets),
    )


def gpt2_step() -> Step:
    """GPT-2 small as transformers builds it: 124 million random weights, dropout on."""
    import transformers

    transformers.logging.set_verbosity_error()  # it warns of a missing loss_type, its own default
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(use_cache=False))
    tokens = torch.randint(50257, (1, 64))
    # SGD: the shorter step, in which an observer's share is the larger.
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    return train_step(optimizer, lambda: model(input_ids=tokens, labels=tokens).loss)


def vit_step() -> Step:
    """ViT-B/16 as transformers builds it: 86 million random weights, one 224×224 image."""
    import transformers

    model = transformers.ViTModel(transformers.ViTConfig(), add_pooling_layer=False).eval()
    image = torch.randn(1, 3, 224, 224)

    @torch.inference_mode()
    def step() -> None:
        model(image)

    return step


def _llama() -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return transformers.LlamaForCausalLM(config).eval()


def prefill_step() -> Step:
    """128 tokens of a small Llama at once, into a new KV cache, under inference_mode."""
    model, prompt = _llama(), torch.randint(256, (1, 128))

    @torch.inference_mode()
    def step() -> None:
        model(input_ids=prompt, use_cache=True)

    return step


def decode_step() -> Step:
    """One token of a small Llama with a KV cache of 64 tokens, under inference_mode."""
    model = _llama()
    prompt = torch.randint(256, (1, 64))
    with torch.inference_mode():
        cache = model(input_ids=prompt, use_cache=True).past_key_values
    token = prompt[:, -1:]

    @torch.inference_mode()
    def step() -> None:
        model(input_ids=token, past_key_values=cache, use_cache=True).logits.argmax(-1)
        cache.crop(-1)  # or it grows, and each step takes longer than the one before

    return step


def evaluation_step() -> Step:
    """The small transformer's forward under no_grad: every result is a value without gradient."""
    from gradext.lesson.models import LLM

    model = LLM(vocabulary=256, context=16, width=64, depth=2, heads=4)
    inputs = torch.randint(256, (2, 16))

    @torch.no_grad()
    def step() -> None:
        model(inputs)

    return step


def train_step(optimizer: torch.optim.Optimizer, loss: Callable[[], torch.Tensor]) -> Step:
    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


class NoOpMode(TorchDispatchMode):
    """The least that a mode written in Python can do."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


class StackMode(TorchDispatchMode):
    """A recorder of culprits as it can be written in Python: a stack for each op that writes."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: dict[Any, bool] = {}
        self.last: traceback.StackSummary | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        writes = self.writes.get(func)
        if writes is None:
            writes = self.writes[func] = func._schema.is_mutable
        if writes:
            self.last = traceback.extract_stack()
        return func(*args, **(kwargs or {}))


def anomaly(check_nan: bool) -> contextlib.AbstractContextManager[Any]:
    # What detect_anomaly switches on and off; that class only adds a warning each time.
    return torch.autograd.set_detect_anomaly(True, check_nan=check_nan)


def debug_mode() -> contextlib.AbstractContextManager[Any]:
    from torch.utils._debug_mode import DebugMode

    return DebugMode()


def profiler() -> contextlib.AbstractContextManager[Any]:
    # Its start is not timed, nor is its stop, which turns the trace into events.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it prints two lines at each of them
    return torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], with_stack=True, acc_events=True
    )


def empty_observer(mode: str) -> contextlib.AbstractContextManager[Any]:
    from gradext import _C

    return _C.testing.empty_observer(mode)


def recording(saves: bool, **narrowed: bool) -> contextlib.AbstractContextManager[Any]:
    import gradext

    return gradext.record(saves=saves, **narrowed)


WAYS = {
    "nothing": Way("nothing", contextlib.nullcontext),
    "anomaly": Way("detect_anomaly(check_nan=False)", lambda: anomaly(False)),
    "anomaly-nan": Way("detect_anomaly(check_nan=True)", lambda: anomaly(True)),
    "dispatch": Way("TorchDispatchMode, no-op", NoOpMode),
    "dispatch-stack": Way("TorchDispatchMode, stack per write", StackMode),
    "debug-mode": Way("DebugMode", debug_mode, apart=True),
    "profiler": Way("profiler, with_stack=True", profiler, apart=True),
    "empty": Way("empty observer", lambda: empty_observer("none")),
    "empty-inputs": Way("empty observer, boxed inputs", lambda: empty_observer("inputs")),
    "full": Way("gradext.record()", lambda: recording(True)),
    "no-origins": Way(
        "gradext.record(births=False, cuts=False)",
        lambda: recording(True, births=False, cuts=False),
    ),
    "light": Way("gradext.record(saves=False)", lambda: recording(False)),
}

# A large step takes a large part of a second: the ways that its bars need, and one more.
FEW = ("nothing", "anomaly", "dispatch", "full", "light")


def _transformer(optimizer: type[torch.optim.Optimizer], **sizes: int) -> Callable[[], Step]:
    return lambda: transformer_step(optimizer, **sizes)


SUBJECTS = {
    "functional": Subject("a + b, no gradient", "op", functional_op, 5e-4, 15),
    "differentiable": Subject("w * x, w requires grad", "op", differentiable_op, 5e-4, 15),
    "in-place": Subject("a.add_(b), no gradient", "op", in_place_op, 5e-4, 15),
    "mlp": Subject("MLP step, SGD", "small", mlp_step, 2e-3, 40),
    "transformer-64": Subject(
        "transformer 2 layers d=64 batch 2×16, SGD",
        "small",
        _transformer(torch.optim.SGD, depth=2, width=64, batch=2, tokens=16),
        5e-3,
        60,
    ),
    "transformer-64-adamw": Subject(
        "transformer 2 layers d=64 batch 2×16, AdamW",
        "small",
        _transformer(torch.optim.AdamW, depth=2, width=64, batch=2, tokens=16),
        5e-3,
        60,
    ),
    "evaluation": Subject(
        "transformer 2 layers d=64 batch 2×16, forward under no_grad",
        "small",
        evaluation_step,
        5e-3,
        40,
    ),
    "decode": Subject(
        "Llama 2 layers d=64, decode of one token, inference_mode", "small", decode_step, 5e-3, 40
    ),
    "prefill": Subject(
        "Llama 2 layers d=64, prefill of 128 tokens, inference_mode",
        "small",
        prefill_step,
        5e-3,
        40,
    ),
    "transformer-256": Subject(
        "transformer 4 layers d=256 batch 8×128, AdamW",
        "large",
        _transformer(torch.optim.AdamW, depth=4, width=256, batch=8, tokens=128),
        0.0,
        300,
        FEW,
    ),
    "vit": Subject("ViT-B/16, one image, inference_mode", "large", vit_step, 0.0, 150, FEW),
    "gpt2": Subject("GPT-2 small batch 1×64, SGD", "large", gpt2_step, 0.0, 400, FEW),
}
