"""Chapter 4: what inference_mode skips, counted by the ops, and what that is worth in time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

import gradext
from gradext.lesson.core import CannotTell, Chapter, Depends, Lesson
from gradext.lesson.models import LLM, MLP, ViT
from gradext.mode_costs import measure, timing
from gradext.mode_costs.comparison import ModeComparison

CHAPTER = Chapter(
    4,
    "Why inference_mode is faster",
    """no_grad stops recording the graph, but each operation still passes the kernels that count
    writes and track views. inference_mode skips those as well. This chapter first counts what is
    skipped, which is the same on each machine, and then times what it is worth here. The times are
    ratios: the three modes take turns within each round, a number is the median over the rounds,
    and the spread is the 95 % interval of that median. Where the interval holds both answers, the
    verdict is that this machine cannot tell.""",
)

MODES = {name: measure.MODES[name].context for name in ("grad", "no_grad", "inference_mode")}


def bookkeeping_kernels(tensor: torch.Tensor) -> list[str]:
    """The kernels of autograd's bookkeeping that an op on ``tensor`` passes in this thread now."""
    thread = gradext.ops.grad_mode_state()
    keys = (set(gradext.ops.dispatch_keys(tensor)) | set(thread.included)) - set(thread.excluded)
    # The thread excludes Autograd as a whole, for each backend; AutogradOther stands for the rest.
    if "AutogradOther" in thread.excluded:
        keys = {key for key in keys if not key.startswith("Autograd")}
    return sorted(key for key in keys if key.startswith(("Autograd", "ADInplaceOrView")))


class _Census(TorchFunctionMode):
    """Looks at each tensor that a call into torch returns while the mode is on."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                state = gradext.inspect(leaf)
                self.count["results"] += 1
                self.count["have a version counter"] += state.version_counter is not None
                self.count["are tracked as views"] += state.is_view
                self.count["have a grad_fn"] += state.grad_fn is not None
        return result


def census(function: Callable[[], object]) -> dict[str, int]:
    """How many tensors the calls in ``function`` return, and what bookkeeping they carry."""
    with _Census() as mode:
        function()
    return dict(mode.count)


def forward_of(model: torch.nn.Module, batch: int) -> Callable[[], object]:
    """A call that runs ``model`` on inputs made here and now, so in the mode that is on now.

    For the LLM it decodes one token behind a prefix of 32 that lies in the KV cache.
    """
    device = next(model.parameters()).device
    if isinstance(model, LLM):
        tokens = torch.zeros(batch, 32, dtype=torch.long, device=device)
        _, cache = model(tokens)
        return partial(model, tokens[:, :1], cache)
    shape = (model.width,) if isinstance(model, MLP) else (3, 32, 32)
    return partial(model, torch.ones(batch, *shape, device=device))


def on_ones(operation: Callable[[torch.Tensor], object], device: str) -> Callable[[], object]:
    """A call that runs ``operation`` on a tensor made here and now, so in the mode that is on."""
    return partial(operation, torch.ones(5, 5, device=device))


def parameters_of(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def time_modes(
    lesson: Lesson, build: Callable[[], Callable[[], object]], seconds: float
) -> ModeComparison:
    """Time what ``build`` returns under each mode; its inputs are made in the same mode.

    One CPU thread: several would wait for each other whenever another process takes a core, and
    those waits are longer than all that is measured here.
    """
    return measure.measure(
        lambda mode: build(),
        modes=tuple(MODES),
        seconds=seconds / 4 if lesson.quick else seconds,
        width=0.0,
        threads=1,
        device=lesson.device,
        counts=False,
        graphs=False,
    )


def gain(comparison: ModeComparison) -> timing.Estimate:
    """Time under no_grad over time under inference_mode."""
    return comparison.ratio("no_grad", over="inference_mode")


def chart_modes(lesson: Lesson, title: str, timed: Mapping[str, ModeComparison]) -> None:
    """Two bars per name, no_grad and grad over inference_mode, and how long a call takes."""
    rows = []
    for name, comparison in timed.items():
        for mode in ("no_grad", "grad"):
            ratio = comparison.ratio(mode, over="inference_mode")
            rows.append((f"{name}, {mode}", ratio.value, ratio.low, ratio.high))
    lesson.chart(title, rows, unit="x", reference=1.0)
    for name, comparison in timed.items():
        time = comparison.time("inference_mode")
        value, low, high = (number * 1e6 for number in (time.value, time.low, time.high))
        lesson.show(name, f"{value:,.4g} us [{low:,.4g}, {high:,.4g}]; {in_words(comparison)}")


def percent(ratio: timing.Estimate) -> str:
    """ "+12.3 % [+11.0, +13.9]": a ratio over 1 with its interval."""
    value, low, high = (100 * (number - 1) for number in (ratio.value, ratio.low, ratio.high))
    return f"{value:+.1f} % [{low:+.1f}, {high:+.1f}]"


def in_words(comparison: ModeComparison) -> str:
    """What no_grad adds to inference_mode, with its interval, and whether that is anything."""
    ratio = gain(comparison)
    verdict = "; no difference that can be told" if ratio.holds(1.0) else ""
    return f"under no_grad {percent(ratio)}{verdict}"


def at_least(gains: Mapping[str, timing.Estimate], least: float) -> bool | CannotTell:
    """Whether each gain is at least that: as far as the intervals decide it."""
    if all(ratio.low >= least for ratio in gains.values()):
        return True
    if any(ratio.high < least for ratio in gains.values()):
        return False
    open_ = {name: ratio for name, ratio in gains.items() if ratio.low < least}
    numbers = ", ".join(f"{name} {percent(ratio)}" for name, ratio in open_.items())
    return CannotTell(f"the intervals hold {100 * (least - 1):.0f} %: {numbers}.")


def grown(small: timing.Estimate, large: timing.Estimate) -> bool | CannotTell:
    """Whether the gain is larger by 2 points at least, as far as the intervals decide it."""
    if large.low > small.high + 0.02:
        return True
    if large.high <= small.low + 0.02:
        return False
    return CannotTell(f"small {percent(small)} and large {percent(large)} may be the same.")


def five_to_ten(gains: Mapping[str, timing.Estimate]) -> bool | Depends | CannotTell:
    """Whether each gain is from 5 to 10 %, as far as the intervals decide it."""
    numbers = ", ".join(f"{percent(ratio)} for {name}" for name, ratio in gains.items())
    if all(ratio.low >= 1.05 and ratio.high <= 1.10 for ratio in gains.values()):
        return True
    if any(ratio.high < 1.05 or ratio.low > 1.10 for ratio in gains.values()):
        return Depends(f"on how much work there is per operation: {numbers}.")
    return CannotTell(f"each interval reaches into 5 to 10 %: {numbers}.")


@CHAPTER.claim(
    "no_grad skips the Autograd kernels.",
    verdict="false",
    instead="They run under no_grad too, and find nothing to record.",
)
def no_grad_skips_autograd(lesson: Lesson) -> bool | Depends:
    passed = {}
    for name, mode in MODES.items():
        with mode():
            x = torch.ones(3, device=lesson.device)
            passed[name] = bookkeeping_kernels(x)
    lesson.show("an op on x passes", passed)
    # They run under no_grad too, find nothing to record, and pass the op on.
    return passed["no_grad"] != passed["grad"]


@CHAPTER.claim(
    "inference_mode skips them, and the counting of writes and tracking of views with them.",
    verdict="true",
)
def inference_mode_skips_all(lesson: Lesson) -> bool | Depends:
    with torch.inference_mode():
        x = torch.ones(3, device=lesson.device)
        passed = bookkeeping_kernels(x)
        thread = gradext.ops.grad_mode_state()
        view = gradext.inspect(x[:2].add_(1))
    lesson.show("an op on x passes", passed)
    lesson.show("ADInplaceOrView in the thread's keys", "ADInplaceOrView" in thread.included)
    lesson.show("x[:2].add_(1): version counter", view.version_counter)
    lesson.show("x[:2].add_(1): tracked as a view", view.is_view)
    return not passed and view.version_counter is None and not view.is_view


@CHAPTER.claim(
    "It skips them for every tensor, parameters included.",
    verdict="false",
    instead="A tensor from outside keeps its counter and its views; only what is made inside "
    "has neither.",
)
def parameters_included(lesson: Lesson) -> bool | Depends:
    weight = torch.nn.Linear(3, 3, device=lesson.device).weight
    with torch.inference_mode():
        passed = bookkeeping_kernels(weight)
        row = gradext.inspect(weight[0])
    lesson.show("an op on the weight passes", passed)
    lesson.show("weight[0]: tracked as a view", row.is_view)
    lesson.show("weight[0]: has a version counter", row.version_counter is not None)
    lesson.show("weight[0]: inference tensor", row.is_inference)
    # The weight has a counter, and a view of it must share that counter.
    return not passed and not row.is_view


@CHAPTER.claim(
    """For a model, no_grad already saves the whole graph; inference_mode saves the counters and the
    views on top of that.""",
    verdict="true",
)
def what_a_model_skips(lesson: Lesson) -> bool | Depends:
    model = LLM().to(lesson.device)
    counts = {}
    for name, mode in MODES.items():
        with mode():
            counts[name] = census(forward_of(model, batch=1))
        lesson.show(f"one token, {name}", counts[name])
    graph, counter, view = "have a grad_fn", "have a version counter", "are tracked as views"
    grad, no_grad, inference = counts["grad"], counts["no_grad"], counts["inference_mode"]
    return (
        (grad[graph] > 0 and no_grad[graph] == 0)
        and (no_grad[counter] == grad[counter] and no_grad[view] == grad[view] > 0)
        and (inference[counter] == 0 and inference[view] == 0)
    )


@CHAPTER.claim(
    "Under no_grad a view by itself takes at least 1.25 times as long as under inference_mode.",
    verdict="true",
)
def one_operation(lesson: Lesson) -> bool | CannotTell:
    w = torch.ones(5, 5, device=lesson.device, requires_grad=True)
    operations: dict[str, Callable[[torch.Tensor], object]] = {
        "x.view(25)": lambda x: x.view(25),
        "x[1:3]": lambda x: x[1:3],
        "x.add_(1)": lambda x: x.add_(1),
        "x @ w, 5 by 5": lambda x: x @ w,
    }
    timed = {}
    for name, operation in operations.items():
        timed[name] = time_modes(lesson, partial(on_ones, operation, lesson.device), seconds=0.25)
    chart_modes(lesson, "Time of a call, as a multiple of its time under inference_mode", timed)
    return at_least({name: gain(timed[name]) for name in ("x.view(25)", "x[1:3]")}, 1.25)


@CHAPTER.claim(
    """A whole model gains at least 10 % over no_grad, at batch 1 and at a large batch alike (the
    LLM decodes one token with its KV cache).""",
    verdict="false",
    instead="The more arithmetic a call holds, the less the skipped bookkeeping is worth: at "
    "large batches little or nothing.",
)
def whole_models(lesson: Lesson) -> bool | CannotTell:
    timed = {}
    for model, large in ((MLP(), 1024), (ViT(), 16), (LLM(), 32)):
        model.to(lesson.device)
        for batch in (1, large):
            name = f"{type(model).__name__}, batch {batch}"
            timed[name] = time_modes(lesson, partial(forward_of, model, batch), seconds=0.4)
    chart_modes(lesson, "Time of a call, as a multiple of its time under inference_mode", timed)
    return at_least({name: gain(comparison) for name, comparison in timed.items()}, 1.10)


@CHAPTER.claim(
    "The gain of inference_mode over no_grad grows with model size.",
    verdict="false",
    instead="What is skipped depends on the number of operations, not on their size; bigger "
    "ones hide it.",
)
def grows_with_size(lesson: Lesson) -> bool | CannotTell:
    # A GPU needs a wider model before its kernels outlast their launches.
    wide, batch = (4096, 1024) if lesson.device == "cuda" else (1024, 8)
    small, large = (MLP(width).to(lesson.device) for width in (64, wide))
    lesson.show("parameters", {"small": parameters_of(small), "large": parameters_of(large)})
    with torch.inference_mode():
        skipped = [census(forward_of(model, batch))["results"] for model in (small, large)]
    lesson.show("results without bookkeeping", {"small": skipped[0], "large": skipped[1]})
    timed = {
        f"small, batch {batch}": time_modes(lesson, partial(forward_of, small, batch), seconds=0.4),
        f"large, batch {batch}": time_modes(lesson, partial(forward_of, large, batch), seconds=0.4),
    }
    chart_modes(lesson, "Time of a call, as a multiple of its time under inference_mode", timed)
    at_small, at_large = (gain(comparison) for comparison in timed.values())
    # The same is skipped, beside more arithmetic.
    return grown(at_small, at_large)


@CHAPTER.claim("inference_mode is 5 to 10 % faster than no_grad.", verdict="depends")
def five_to_ten_percent(lesson: Lesson) -> bool | Depends | CannotTell:
    llm, mlp = LLM().to(lesson.device), MLP(512).to(lesson.device)
    timed = {
        "a view": time_modes(
            lesson, partial(on_ones, lambda x: x.view(25), lesson.device), seconds=0.2
        ),
        "an LLM decoding a token": time_modes(lesson, partial(forward_of, llm, 1), seconds=0.4),
        "an MLP at batch 256": time_modes(lesson, partial(forward_of, mlp, 256), seconds=0.4),
    }
    for name, comparison in timed.items():
        lesson.show(name, in_words(comparison))
    return five_to_ten({name: gain(comparison) for name, comparison in timed.items()})
