"""Chapter 1: which tensors require grad, what a result remembers, and what that costs in memory."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy
import torch

import gradext
from gradext.lesson import graph_memory
from gradext.lesson.core import CannotTell, Chapter, Depends, Lesson
from gradext.mode_costs import timing

CHAPTER = Chapter(
    1,
    "requires_grad spreads",
    """A flag on an input decides what autograd remembers about every result made from it. This
    chapter reads the flag, follows it through an operation, and then counts what is really
    allocated: nodes and saved tensors, in bytes.""",
)


def at_most(ratios: Mapping[int, timing.Estimate], most: float) -> bool | CannotTell:
    """Whether each ratio is at most that, as far as the intervals decide it."""
    if all(ratio.high <= most for ratio in ratios.values()):
        return True
    if any(ratio.low > most for ratio in ratios.values()):
        return False
    intervals = ", ".join(f"[{ratio.low:.2f}, {ratio.high:.2f}]" for ratio in ratios.values())
    return CannotTell(f"the intervals {intervals} hold {most}.")


@CHAPTER.claim("Leaves default to requires_grad=False.", verdict="true")
def leaves_default_to_false(lesson: Lesson) -> bool | Depends:
    x = torch.ones(3, device=lesson.device)
    state = gradext.inspect(x)
    lesson.show("is_leaf", state.is_leaf)
    lesson.show("requires_grad", state.requires_grad)
    lesson.show("grad_fn", state.grad_fn)
    return state.is_leaf and not state.requires_grad


@CHAPTER.claim(
    "The parameters of a module default to False as well.",
    verdict="false",
    instead="nn.Parameter requires grad by default, and a module's weights are such.",
)
def parameters_default_to_false(lesson: Lesson) -> bool | Depends:
    layer = torch.nn.Linear(3, 2, device=lesson.device)
    weight, bias = gradext.inspect(layer.weight), gradext.inspect(layer.bias)
    lesson.show("is_leaf", [weight.is_leaf, bias.is_leaf])
    lesson.show("requires_grad", [weight.requires_grad, bias.requires_grad])
    return not weight.requires_grad and not bias.requires_grad


@CHAPTER.claim("A result requires grad as soon as one of its inputs does.", verdict="true")
def one_input_is_enough(lesson: Lesson) -> bool | Depends:
    x = torch.ones(3, device=lesson.device)
    w = torch.ones(3, device=lesson.device, requires_grad=True)
    none = gradext.inspect(x * x).requires_grad
    one = gradext.inspect(x * w).requires_grad
    later = gradext.inspect((x * w + x).exp().sum()).requires_grad
    lesson.show("x * x", none)
    lesson.show("x * w", one)
    lesson.show("(x * w + x).exp().sum()", later)
    return one and later and not none


@CHAPTER.claim("A result names the operation that made it: its grad_fn.", verdict="true")
def grad_fn_is_named(lesson: Lesson) -> bool | Depends:
    x = torch.ones(3, device=lesson.device)
    w = torch.ones(3, device=lesson.device, requires_grad=True)
    product, total = x * w, (x * w).sum()
    lesson.show("x * x", gradext.inspect(x * x).grad_fn)
    lesson.show("x * w", gradext.inspect(product).grad_fn)
    lesson.show("(x * w).sum()", gradext.inspect(total).grad_fn)
    lesson.show("the whole graph", graph_memory.names(total))
    # AccumulateGrad stands for w: there the gradient of a leaf arrives.
    expected = ["SumBackward0", "MulBackward0", "AccumulateGrad"]
    return graph_memory.names(total) == expected


@CHAPTER.claim(
    "requires_grad=True allocates memory for a graph.",
    verdict="false",
    instead="The flag alone costs nothing; a graph begins with the first operation on the tensor.",
)
def the_flag_allocates(lesson: Lesson) -> bool | Depends:
    x = torch.ones(1024, device=lesson.device)
    storage = gradext.inspect(x).storage
    x.requires_grad_()
    flagged = gradext.inspect(x)
    lesson.show("same storage as before", flagged.storage == storage)
    lesson.show("nodes behind x", len(graph_memory.nodes(x)))

    ones = partial(torch.ones, 1024, device=lesson.device)
    plain = graph_memory.memory_kept(lambda: ones(requires_grad=False))
    flag = graph_memory.memory_kept(lambda: ones(requires_grad=True))
    lesson.show("bytes it takes without the flag", plain)
    lesson.show("bytes it takes with the flag", flag)
    return flag > plain or flagged.grad_fn is not None


@CHAPTER.claim(
    "The graph of w @ x copies w and x, because backward needs them.",
    verdict="false",
    instead="The graph refers to w and x themselves; only their lifetime is longer.",
)
def matmul_copies_its_inputs(lesson: Lesson) -> bool | Depends:
    w = torch.randn(64, 32, device=lesson.device, requires_grad=True)
    x = torch.randn(32, 16, device=lesson.device, requires_grad=True)
    y = w @ x
    saved = graph_memory.saved_tensors(y)
    copied = graph_memory.storage_bytes(saved, besides=[w, x])
    lesson.show("nodes", graph_memory.names(y))
    lesson.show("saved tensors", [list(tensor.shape) for tensor in saved])
    lesson.show("bytes saved", graph_memory.storage_bytes(saved))
    lesson.show("besides w and x themselves", copied)

    with_graph = graph_memory.memory_kept(lambda: w @ x)
    without = graph_memory.memory_kept(lambda: w.detach() @ x.detach())
    lesson.show("bytes of new tensors, graph", with_graph)
    lesson.show("bytes of new tensors, no graph", without)
    return copied > 0 or with_graph > without


@CHAPTER.claim(
    "What a graph really costs is kept activations: the MLP's hidden layer cannot be freed.",
    verdict="true",
)
def mlp_keeps_activations(lesson: Lesson) -> bool | Depends:
    mlp = torch.nn.Sequential(
        torch.nn.Linear(256, 512),
        torch.nn.ReLU(),
        torch.nn.Linear(512, 128),
    ).to(lesson.device)
    x = torch.randn(32, 256, device=lesson.device)
    y = mlp(x)
    saved = graph_memory.saved_tensors(y)
    activations = graph_memory.storage_bytes(saved, besides=[x, *mlp.parameters()])
    lesson.show("nodes", graph_memory.names(y))
    lesson.show("bytes saved", graph_memory.storage_bytes(saved))
    lesson.show("besides x and the parameters", activations)

    with_graph = graph_memory.memory_kept(lambda: mlp(x))
    with torch.no_grad():
        without = graph_memory.memory_kept(lambda: mlp(x))
    hidden_layer = 32 * 512 * 4  # batch x width x bytes of a float
    lesson.show("bytes alive after mlp(x)", with_graph)
    lesson.show("the same under no_grad", without)
    lesson.show("bytes of the hidden layer", hidden_layer)
    return activations == with_graph - without == hidden_layer


@CHAPTER.claim(
    "A tensor without requires_grad is as light as a NumPy array.",
    verdict="false",
    instead="It holds the same bytes and no graph, but each operation on it passes torch's "
    "dispatcher, which small tensors feel and large ones hide.",
)
def as_light_as_numpy(lesson: Lesson) -> bool | CannotTell:
    torch.set_num_threads(1)  # numpy adds on one
    ratios = {}
    for count in (4, 1_000_000):
        x = torch.ones(count)  # on the CPU, where numpy is
        array = x.numpy().copy()
        lesson.show(f"bytes of {count:,} numbers", [x.untyped_storage().nbytes(), array.nbytes])
        ways = {"torch": partial(torch.add, x, x), "numpy": partial(numpy.add, array, array)}
        found = timing.compare(ways, budget_seconds=0.1 if lesson.quick else 0.4)
        ratio = ratios[count] = found.ratio("torch", "numpy")
        times = f"{ratio.value:.2f} times numpy's [{ratio.low:.2f}, {ratio.high:.2f}]"
        lesson.show(f"time of adding {count:,} numbers", times)
    # As light: within a tenth, for small and for large.
    return at_most(ratios, 1.1)
