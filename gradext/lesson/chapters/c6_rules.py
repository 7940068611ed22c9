"""Chapter 6: which mode to train, validate and serve in, and what inference_mode leaves behind."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import nn
from torch.nn import functional

import gradext
from gradext.lesson.core import Chapter, Depends, Lesson
from gradext.lesson.models import MLP

CHAPTER = Chapter(
    6,
    "The rules and their limits",
    """Train in grad mode, validate and serve under inference_mode, and use no_grad for what meets
    autograd again. The first claims run each rule. The others are its limits: an inference tensor
    that outlives its block, in a cache or in a module, and writes that go around PyTorch.""",
)


def training_step(model: nn.Module, x: torch.Tensor) -> None:
    """One plain SGD step on the mean square of the output."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@CHAPTER.claim(
    "Train in grad mode: in neither of the others does a gradient reach the weights.",
    verdict="true",
)
def train_in_grad_mode(lesson: Lesson) -> bool | Depends:
    x = torch.ones(4, 64, device=lesson.device)
    reached = {}
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        model = MLP().to(lesson.device)
        with mode():
            loss = model(x).square().mean()
        lesson.raises(loss.backward, f"{mode.__name__}: backward() raises")
        reached[mode.__name__] = sum(weight.grad is not None for weight in model.parameters())
    lesson.show("parameters with a gradient, of 8", reached)
    return reached == {"enable_grad": 8, "no_grad": 0, "inference_mode": 0}


@CHAPTER.claim(
    "model.eval() is enough: it stops recording a graph.",
    verdict="false",
    instead="eval() changes what dropout and batch norm compute; use it together with "
    "inference_mode.",
)
def eval_is_no_mode(lesson: Lesson) -> bool | Depends:
    model = MLP().to(lesson.device).eval()
    x = torch.ones(4, 64, device=lesson.device)
    evaluated = gradext.inspect(model(x))
    with torch.inference_mode():
        inferred = gradext.inspect(model(x))
    lesson.show("eval(): grad_fn", evaluated.grad_fn)
    lesson.show("eval() and inference_mode: grad_fn", inferred.grad_fn)
    # eval() changes what dropout and batch norm compute, and nothing else: use both.
    return evaluated.grad_fn is None


@CHAPTER.claim(
    "Validate under inference_mode: training goes on exactly as without the validation.",
    verdict="true",
)
def validate_under_inference_mode(lesson: Lesson) -> bool | Depends:
    x = torch.randn(16, 64, device=lesson.device)
    model = MLP().to(lesson.device)
    validated, undisturbed = copy.deepcopy(model), copy.deepcopy(model)
    for _ in range(3):
        training_step(validated, x)
        training_step(undisturbed, x)
        validated.eval()
        with torch.inference_mode():
            validated(x).square().mean()
        validated.train()
    pairs = list(zip(validated.parameters(), undisturbed.parameters(), strict=True))
    equal = all(torch.equal(one, other) for one, other in pairs)
    versions = [[gradext.ops.version(weight) for weight in pair] for pair in pairs]
    marked = any(gradext.ops.is_inference(one) for one, _ in pairs)
    lesson.show("weights equal, bit by bit", equal)
    lesson.show("first weight's version, with and without", versions[0])
    lesson.show("a parameter became an inference tensor", marked)
    return equal and not marked and all(one == other for one, other in versions)


@CHAPTER.claim(
    "Serve under inference_mode: the same numbers, and nothing kept beside them.", verdict="true"
)
def serve_under_inference_mode(lesson: Lesson) -> bool | Depends:
    model = MLP().to(lesson.device).eval()
    x = torch.randn(4, 64, device=lesson.device)
    recorded = model(x)
    with torch.inference_mode():
        served = model(x)
    state = gradext.inspect(served)
    same = torch.allclose(served, recorded)
    lesson.show("same numbers as in grad mode", same)
    lesson.show("grad_fn", state.grad_fn)
    lesson.show("version counter", state.version_counter)
    return same and state.grad_fn is None and state.version_counter is None


@CHAPTER.claim(
    "A teacher's targets for a student can be made under inference_mode.",
    verdict="false",
    instead="Make under no_grad what meets autograd again, or clone it outside of inference_mode.",
)
def targets_need_no_grad(lesson: Lesson) -> bool | Depends:
    teacher, student = MLP().to(lesson.device), MLP().to(lesson.device)
    x = torch.ones(4, 64, device=lesson.device)
    with torch.inference_mode():
        inferred = teacher(x)
    with torch.no_grad():
        constant = teacher(x)
    error = lesson.raises(
        lambda: functional.mse_loss(student(x), inferred), "targets from inference_mode"
    )
    lesson.raises(lambda: functional.mse_loss(student(x), constant), "targets from no_grad")
    # What meets autograd again is made under no_grad; or clone it, at the price of a copy.
    return error is None


@CHAPTER.claim(
    "A cache that validation filled serves training too.",
    verdict="false",
    instead="What a block leaves behind is an inference tensor: fill the cache before, or under "
    "inference_mode(False).",
)
def lazy_cache(lesson: Lesson) -> bool | Depends:
    class Rotary(nn.Module):
        cos: torch.Tensor | None = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.cos is None:
                self.cos = torch.arange(x.shape[-1], device=x.device).float().cos()
            return x * self.cos

    rotary = Rotary()
    model = nn.Sequential(nn.Linear(4, 4), rotary).to(lesson.device)
    x = torch.ones(2, 4, device=lesson.device)
    with torch.inference_mode():
        model(x)  # a validation before the first training step
    lesson.show("rotary.cos is an inference tensor", gradext.ops.is_inference(rotary.cos))
    error = lesson.raises(lambda: training_step(model, x), "training_step(model, x)")
    return error is None


@CHAPTER.claim("Filled under inference_mode(False), it does.", verdict="true")
def lazy_cache_fixed(lesson: Lesson) -> bool | Depends:
    class Rotary(nn.Module):
        cos: torch.Tensor | None = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.cos is None:
                with torch.inference_mode(False):  # whoever calls: a normal tensor
                    self.cos = torch.arange(x.shape[-1], device=x.device).float().cos()
            return x * self.cos

    rotary = Rotary()
    model = nn.Sequential(nn.Linear(4, 4), rotary).to(lesson.device)
    x = torch.ones(2, 4, device=lesson.device)
    with torch.inference_mode():
        model(x)
    lesson.show("rotary.cos is an inference tensor", gradext.ops.is_inference(rotary.cos))
    error = lesson.raises(lambda: training_step(model, x), "training_step(model, x)")
    # Filling it in __init__, as a buffer, does as well, if __init__ runs in grad mode.
    return error is None


@CHAPTER.claim(
    "A KV cache allocated under inference_mode can be written after the block.",
    verdict="false",
    instead="A cache is written in the mode that made it: keep one mode for all of its life.",
)
def kv_cache(lesson: Lesson) -> bool | Depends:
    with torch.inference_mode():
        cache = torch.zeros(1, 8, 4, device=lesson.device)
        cache[:, 0].fill_(1)
    with torch.no_grad():
        error = lesson.raises(lambda: cache[:, 1].fill_(1), "written under no_grad")
    with torch.inference_mode():
        again = lesson.raises(lambda: cache[:, 1].fill_(1), "written under inference_mode")
    lesson.show("rows written", cache.sum(dim=(0, 2)))
    # One mode for all of a cache's life: prompt, decoding and whatever resets it.
    return error is None and again is None


@CHAPTER.claim(
    "A module built under inference_mode trains like any other.",
    verdict="false",
    instead="Its parameters are inference tensors: build modules in grad mode.",
)
def module_built_inside(lesson: Lesson) -> bool | Depends:
    with torch.inference_mode():
        layer = nn.Linear(3, 1, device=lesson.device)
    x = torch.ones(2, 3, device=lesson.device)
    lesson.show("weight is an inference tensor", gradext.ops.is_inference(layer.weight))
    lesson.show("weight requires grad", layer.weight.requires_grad)
    lesson.raises(lambda: layer(x).sum().backward(), "backward() raises")
    lesson.show("gradients", {"weight": layer.weight.grad, "bias": layer.bias.grad})
    error = lesson.raises(torch.optim.SGD(layer.parameters(), lr=0.1).step, "step() raises")
    return error is None and layer.weight.grad is not None


@CHAPTER.claim(
    "A module converted under inference_mode (layer.double()) either trains or raises an error.",
    verdict="false",
    instead="It can half-train in silence: convert and move modules outside of the block.",
)
def module_moved_inside(lesson: Lesson) -> bool | Depends:
    layer = nn.Linear(3, 1, device=lesson.device)
    with torch.inference_mode():
        layer.double()
    x = torch.ones(2, 3, dtype=torch.float64, device=lesson.device)
    before = copy.deepcopy(layer.state_dict())
    error = lesson.raises(lambda: training_step(layer, x), "training_step(layer, x) raises")
    learned = {
        name: not torch.equal(value, before[name]) for name, value in layer.state_dict().items()
    }
    lesson.show("weight is an inference tensor", gradext.ops.is_inference(layer.weight))
    lesson.show("changed by the step", learned)
    # The bias learns, the weight never does, and nothing says so.
    return error is not None or learned == {"weight": True, "bias": True}


@CHAPTER.claim("Parameters cloned outside of inference_mode repair it.", verdict="true")
def module_repaired(lesson: Lesson) -> bool | Depends:
    layer = nn.Linear(3, 1, device=lesson.device)
    with torch.inference_mode():
        layer.double()
    for name, parameter in list(layer.named_parameters()):
        setattr(layer, name, nn.Parameter(parameter.detach().clone()))
    x = torch.ones(2, 3, dtype=torch.float64, device=lesson.device)
    before = copy.deepcopy(layer.state_dict())
    training_step(layer, x)
    learned = {
        name: not torch.equal(value, before[name]) for name, value in layer.state_dict().items()
    }
    lesson.show("weight is an inference tensor", gradext.ops.is_inference(layer.weight))
    lesson.show("changed by the step", learned)
    return learned == {"weight": True, "bias": True}


@CHAPTER.claim(
    "After its block, an inference tensor can no longer be changed.",
    verdict="false",
    instead="Only torch refuses the write; numpy writes the same memory past every check.",
)
def numpy_writes_inference_tensor(lesson: Lesson) -> bool | Depends:
    with torch.inference_mode():
        x = torch.ones(3)  # on the CPU: numpy sees no other memory
    before = x.tolist()
    lesson.raises(lambda: x.add_(1), "x.add_(1) raises")
    lesson.raises(lambda: x.numpy().fill(7), "x.numpy().fill(7) raises")
    lesson.show("x before", before)
    lesson.show("x after", x)
    return x.tolist() == before


@CHAPTER.claim(
    "A write through numpy is counted, so backward notices it.",
    verdict="false",
    instead="No counter sees it and the gradients are wrong: gradext run --guard finds such "
    "writes.",
)
def numpy_writes_saved_tensor(lesson: Lesson) -> bool | Depends:
    w = torch.ones(2, requires_grad=True)
    x = torch.tensor([3.0, 4.0])  # on the CPU: numpy sees no other memory
    right = torch.autograd.grad((w * x).sum(), w)[0].tolist()
    y = (w * x).sum()
    before = gradext.ops.version(x)
    x.numpy().fill(100)
    lesson.show("version of x before and after", [before, gradext.ops.version(x)])
    error = lesson.raises(y.backward, "backward() raises")
    lesson.show("gradient, right", right)
    lesson.show("gradient, as computed", w.grad)
    return gradext.ops.version(x) != before and error is not None


@CHAPTER.claim(
    "Use inference_mode always, in place of no_grad.",
    verdict="false",
    instead="Use it where nothing that is made inside meets autograd, a later write or a module's "
    "state; use no_grad for the rest.",
)
def always_inference_mode(lesson: Lesson) -> bool | Depends:
    works = {}
    x = torch.ones(4, 64, device=lesson.device)
    for mode in (torch.no_grad, torch.inference_mode):
        student = MLP().to(lesson.device)
        with mode():
            target = MLP().to(lesson.device)(x)
            average = torch.zeros(64, device=lesson.device)  # of a weight, as an EMA keeps it
        name = mode.__name__
        errors = [
            lesson.raises(partial(torch.sum, target), f"{name}: a forward"),
            lesson.raises(
                partial(functional.mse_loss, student(x), target), f"{name}: its result as a target"
            ),
            lesson.raises(partial(average.add_, 1), f"{name}: what it made, written later"),
        ]
        works[name] = [error is None for error in errors]
    return works["inference_mode"] == works["no_grad"]
