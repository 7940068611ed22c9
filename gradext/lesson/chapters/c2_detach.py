"""Chapter 2: what detach() gives, why .data is not the same, and the four places it belongs."""

from __future__ import annotations

import importlib.util
import io
import struct

import numpy as np
import torch
from torch import nn

import gradext
from gradext.lesson import graph_memory
from gradext.lesson.core import Chapter, Depends, Lesson

CHAPTER = Chapter(
    2,
    "detach",
    """detach() gives a second tensor on the same memory that autograd knows nothing about. That is
    all it does, and it is enough to cut a graph in the right place, or to break one. This chapter
    shows both, then the four places where it belongs, and last what freezing does instead.""",
)


def make_mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two linear layers with a ReLU between them."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def with_gradient(module: nn.Module) -> int:
    """How many of the module's parameters have a gradient."""
    return sum(parameter.grad is not None for parameter in module.parameters())


def draw(curve: torch.Tensor) -> str:
    """Draw a curve to a PNG in memory and say what came out; without matplotlib, how to get it."""
    if importlib.util.find_spec("matplotlib") is None:
        array = np.asarray(curve)  # what matplotlib does first
        return f"an array of {len(array)} points; for the picture: pip install 'gradext[plot]'"
    # Figure without pyplot: no window, and the caller's backend stays as it is.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), dpi=100)
    figure.subplots().plot(curve)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    width, height = struct.unpack(">II", picture.getvalue()[16:24])
    return f"a PNG picture of {width} x {height} pixels"


@CHAPTER.claim("detach() returns the same memory without the history.", verdict="true")
def same_memory_no_history(lesson: Lesson) -> bool | Depends:
    x = torch.ones(3, device=lesson.device, requires_grad=True)
    y = x * 2
    d = y.detach()
    lesson.show("shares the storage of y", gradext.shares_storage(d, y))
    lesson.show("grad_fn of y", gradext.inspect(y).grad_fn)
    lesson.show("grad_fn of d", gradext.inspect(d).grad_fn)
    lesson.show("d requires grad", gradext.inspect(d).requires_grad)
    no_history = gradext.inspect(d).grad_fn is None
    return gradext.shares_storage(d, y) and no_history


@CHAPTER.claim(
    "The detached tensor is a copy: writing to it is safe.",
    verdict="false",
    instead="It is the same memory: write to y.detach().clone() instead.",
)
def writing_is_safe(lesson: Lesson) -> bool | Depends:
    x = torch.ones(3, device=lesson.device, requires_grad=True)
    y = x * 2
    before = y.tolist()
    y.detach()[0] = 100.0
    lesson.show("y before", before)
    lesson.show("y after y.detach()[0] = 100", y.tolist())
    return y.tolist() == before


@CHAPTER.claim(
    "The detached tensor shares the version counter, so a write through it makes the original's "
    "backward fail.",
    verdict="true",
)
def detach_shares_the_counter(lesson: Lesson) -> bool | Depends:
    x = torch.tensor([0.0, 1.0, 2.0], device=lesson.device, requires_grad=True)
    y = torch.exp(x)  # exp is its own derivative: backward reads y again
    d = y.detach()
    shared = gradext.shares_version_counter(d, y)
    lesson.show("d shares the version counter of y", shared)
    lesson.show("version of y when it was saved", gradext.ops.version(y))
    d.mul_(10)
    lesson.show("version of y after d.mul_(10)", gradext.ops.version(y))
    error = lesson.raises(y.sum().backward, "y.sum().backward() raises")
    return shared and error is not None


@CHAPTER.claim(
    ".data is an older spelling of .detach().",
    verdict="false",
    instead=".data shares the memory without the version counter, so a write through it goes "
    "unnoticed: use detach().",
)
def data_is_detach(lesson: Lesson) -> bool | Depends:
    x = torch.tensor([0.0, 1.0, 2.0], device=lesson.device, requires_grad=True)
    (right,) = torch.autograd.grad(torch.exp(x).sum(), x)
    y = torch.exp(x)
    d = y.data
    shared = gradext.shares_version_counter(d, y)
    lesson.show("d shares the memory of y", gradext.shares_storage(d, y))
    lesson.show("d shares the version counter of y", shared)
    d.mul_(10)
    lesson.show("version of y after d.mul_(10)", gradext.ops.version(y))
    error = lesson.raises(y.sum().backward, "y.sum().backward() raises")
    lesson.show("the gradient it gives", x.grad)
    lesson.show("the right gradient", right)
    return shared and error is not None


@CHAPTER.claim("In transfer learning, detaching the features freezes the backbone.", verdict="true")
def frozen_backbone(lesson: Lesson) -> bool | Depends:
    backbone = make_mlp(16, 64, 32).to(lesson.device)
    head = nn.Linear(32, 4).to(lesson.device)
    images = torch.randn(8, 16, device=lesson.device)
    parameters = [*backbone.parameters(), *head.parameters()]

    features = backbone(images)
    attached = head(features).square().mean()
    detached = head(features.detach()).square().mean()
    for name, loss in ("attached", attached), ("detached", detached):
        kept = graph_memory.storage_bytes(graph_memory.saved_tensors(loss), parameters)
        lesson.show(f"nodes behind the loss, {name}", len(graph_memory.nodes(loss)))
        lesson.show(f"bytes of activations it keeps, {name}", kept)

    detached.backward()
    lesson.show("backbone parameters with a gradient", with_gradient(backbone))
    lesson.show("head parameters with a gradient", with_gradient(head))
    fewer = len(graph_memory.nodes(detached)) < len(graph_memory.nodes(attached))
    return fewer and with_gradient(backbone) == 0 < with_gradient(head)


@CHAPTER.claim(
    "In a GAN's discriminator step, fake.detach() keeps the generator out.", verdict="true"
)
def gan_discriminator_step(lesson: Lesson) -> bool | Depends:
    generator = make_mlp(4, 16, 8).to(lesson.device)
    discriminator = make_mlp(8, 16, 1).to(lesson.device)
    noise = torch.randn(16, 4, device=lesson.device)

    # With detach the generator gets nothing, and its own step can follow.
    fake = generator(noise)
    discriminator(fake.detach()).mean().backward()
    touched = with_gradient(generator)
    lesson.show("generator parameters with a gradient, detached", touched)
    generator_loss = -discriminator(fake).mean()
    step = lesson.raises(generator_loss.backward, "its own step then raises")
    generator.zero_grad()

    # Without, the step reaches the generator and uses up the graph of fake.
    fake = generator(noise)
    discriminator(fake).mean().backward()
    reached = with_gradient(generator)
    lesson.show("generator parameters with a gradient, attached", reached)
    generator_loss = -discriminator(fake).mean()
    broken = lesson.raises(generator_loss.backward, "its own step then raises")
    return touched == 0 < reached and step is None and broken is not None


@CHAPTER.claim(
    "An LSTM trained window by window forgets old windows by itself; detach is not needed.",
    verdict="false",
    instead="Each window's graph goes on into the last one's; detach the state between windows.",
)
def lstm_forgets_by_itself(lesson: Lesson) -> bool | Depends:
    lstm = nn.LSTM(input_size=4, hidden_size=8).to(lesson.device)
    windows = torch.randn(5, 10, 1, 4, device=lesson.device)
    nodes: dict[str, list[int]] = {"carried over": [], "detached": []}

    for name, counts in nodes.items():
        hidden = None
        for window in windows:  # 5 windows of 10 steps
            out, hidden = lstm(window, hidden)
            counts.append(len(graph_memory.nodes(out.sum())))
            if name == "detached":
                hidden = tuple(state.detach() for state in hidden)
    lesson.show("nodes behind each window's loss", nodes)

    out, hidden = lstm(windows[0])
    out.sum().backward()
    out, hidden = lstm(windows[1], hidden)
    lesson.raises(out.sum().backward, "carried over, the second backward raises")
    return nodes["carried over"][-1] == nodes["carried over"][0]


@CHAPTER.claim(
    "matplotlib can draw a tensor that requires grad.",
    verdict="false",
    instead="Detach it first: what is drawn needs no gradient.",
)
def matplotlib_draws_it(lesson: Lesson) -> bool | Depends:
    x = torch.linspace(0, 6, 50, device=lesson.device, requires_grad=True)
    curve = torch.sin(x).cpu()  # numpy, and so matplotlib, reads the CPU only
    lesson.show("requires grad", gradext.inspect(curve).requires_grad)
    error = lesson.raises(lambda: draw(curve), "draw(curve) raises")
    lesson.show("draw(curve.detach()) gives", draw(curve.detach()))
    return error is None


@CHAPTER.claim(
    "detach().clone() gives what can be written and kept: the graph does not notice.",
    verdict="true",
)
def detach_clone_is_safe(lesson: Lesson) -> bool | Depends:
    x = torch.tensor([0.0, 1.0, 2.0], device=lesson.device, requires_grad=True)
    (right,) = torch.autograd.grad(torch.exp(x).sum(), x)
    y = torch.exp(x)
    copy = y.detach().clone()
    copy.mul_(10)
    lesson.show("shares the memory of y", gradext.shares_storage(copy, y))
    lesson.show("shares its version counter", gradext.shares_version_counter(copy, y))
    lesson.show("version of y after copy.mul_(10)", gradext.ops.version(y))
    error = lesson.raises(y.sum().backward, "y.sum().backward() raises")
    lesson.show("the gradient it gives", x.grad)
    # In this order: clone().detach() would record the clone first, and forget it.
    return error is None and x.grad is not None and torch.equal(x.grad, right)


@CHAPTER.claim(
    "Freezing with requires_grad_(False) spares the same memory as detaching the features.",
    verdict="true",
)
def freezing_spares_activations(lesson: Lesson) -> bool | Depends:
    images = torch.randn(8, 16, device=lesson.device)
    kept = {}
    for name in ("trained", "frozen", "detached", "no_grad"):
        backbone = make_mlp(16, 64, 32).to(lesson.device)
        head = nn.Linear(32, 4).to(lesson.device)
        backbone.requires_grad_(name != "frozen")
        with torch.set_grad_enabled(name != "no_grad"):
            features = backbone(images)
        loss = head(features.detach() if name == "detached" else features).square().mean()
        parameters = [*backbone.parameters(), *head.parameters()]
        kept[name] = graph_memory.storage_bytes(graph_memory.saved_tensors(loss), parameters)
    lesson.show("bytes of activations the loss keeps", kept)
    # The images need no gradient: behind frozen parameters there is nothing to record.
    return kept["frozen"] == kept["detached"] == kept["no_grad"] < kept["trained"]


@CHAPTER.claim(
    "A frozen layer stops the gradient, as detach does.",
    verdict="false",
    instead="Its own parameters get none, but the gradient passes through to what comes before; "
    "detach cuts it.",
)
def frozen_layer_stops_the_gradient(lesson: Lesson) -> bool | Depends:
    first, frozen = nn.Linear(8, 8).to(lesson.device), nn.Linear(8, 4).to(lesson.device)
    frozen.requires_grad_(False)
    x = torch.randn(2, 8, device=lesson.device)
    frozen(first(x)).square().mean().backward()
    reached = with_gradient(first)
    lesson.show("frozen parameters with a gradient", with_gradient(frozen))
    lesson.show("parameters before it with a gradient, frozen", reached)
    first.zero_grad()
    lesson.raises(frozen(first(x).detach()).square().mean().backward, "detached, backward() raises")
    lesson.show("parameters before it with a gradient, detached", with_gradient(first))
    return reached == 0


@CHAPTER.claim(
    "Once requires_grad is False, the optimizer leaves a parameter alone.",
    verdict="false",
    instead="It skips a parameter whose .grad is None: call optimizer.zero_grad() when you freeze, "
    "or a gradient from before goes on moving it.",
)
def optimizer_leaves_it_alone(lesson: Lesson) -> bool | Depends:
    moved = {}
    for name in ("frozen before the first backward", "frozen after one", "and zero_grad() called"):
        layer = nn.Linear(4, 1).to(lesson.device)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        x = torch.ones(2, 4, device=lesson.device)
        if name != "frozen before the first backward":
            layer(x).sum().backward()
        layer.requires_grad_(False)
        if name == "and zero_grad() called":
            optimizer.zero_grad()
        before = layer.weight.clone()
        optimizer.step()
        moved[name] = not torch.equal(layer.weight, before)
    lesson.show("step() moved the weight", moved)
    return not any(moved.values())


@CHAPTER.claim(
    "A frozen BatchNorm no longer changes.",
    verdict="false",
    instead="Its running statistics are buffers, which each forward in training mode updates: call "
    "eval() on it too.",
)
def frozen_batchnorm_stands_still(lesson: Lesson) -> bool | Depends:
    changed = {}
    for name in ("frozen", "frozen, eval()"):
        norm = nn.BatchNorm1d(4).to(lesson.device).requires_grad_(False)
        norm.train(name == "frozen")
        before = gradext.fingerprint(norm)
        with torch.no_grad():  # which changes nothing about it
            norm(torch.randn(16, 4, device=lesson.device))
        after = gradext.fingerprint(norm)
        changed[name] = [path for path in before if before[path] != after[path]]
    lesson.show("what a forward changed", changed)
    return changed["frozen"] == []
