"""The copy of a graph that rules read: node for node what torch has, and no object for any node."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import gradext
from gradext import _C
from gradext.rules import graph_copy


class Twice(torch.autograd.Function):
    """Saves its input and keeps its result."""

    @staticmethod
    def forward(ctx, x):
        out = x * 2
        ctx.save_for_backward(x, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


def leaf(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, requires_grad=True)


def written_view() -> torch.Tensor:
    y = leaf(3, 4) * 1
    y[0].mul_(y[1].detach())
    return y.exp()


def stale() -> torch.Tensor:
    y = leaf(3).exp()
    z = y * y
    y.add_(1)
    return z


def freed() -> torch.Tensor:
    y = leaf(3).exp()
    y.sum().backward()
    return y * 2


def hooked() -> torch.Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (t,), lambda packed: packed[0]):
        return leaf(3).sin()


def normed() -> torch.Tensor:
    norm = torch.nn.BatchNorm1d(4)
    return norm(leaf(5, 4)) + norm.eval()(leaf(5, 4))


GRAPHS = {
    "one op": lambda: leaf(3).exp(),
    "two saved": lambda: leaf(2, 3) @ leaf(3, 2),
    "broadcast": lambda: leaf(3, 1) * leaf(1, 4)[:, ::2],
    "lists": lambda: torch.stack([leaf(2).tanh() for _ in range(5)]).index_put(
        (torch.tensor([0, 1]),), leaf(1)
    ),
    "a written view": written_view,
    "stale": stale,
    "freed": freed,
    "hooked": hooked,
    "a Function": lambda: Twice.apply(leaf(3)) * leaf(3),
    "batch norms": normed,
    "a checkpoint": lambda: checkpoint(torch.sin, leaf(3), use_reentrant=False).cos(),
    "convolution": lambda: torch.nn.Conv2d(1, 2, 3)(leaf(1, 1, 5, 5)).relu(),
    "complex": lambda: torch.rand(3, dtype=torch.cfloat, requires_grad=True).abs(),
    "sparse": lambda: torch.sparse.mm(torch.eye(3).to_sparse(), leaf(3, 2)),
    "a leaf": lambda: leaf(2),
    "no graph": lambda: torch.ones(2),
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_a_copy_is_what_the_nodes_themselves_say(kind: str) -> None:
    for _ in range(4):  # later nodes of a class are read another way than the first two
        out = GRAPHS[kind]()
        graph = graph_copy.read([out])
        rows, whole = _C.graph([out])
        assert graph.whole is whole is True
        assert len(graph.nodes) == len(rows)
        for node, row in zip(graph.nodes, rows, strict=True):
            assert (node.name, node.thread, node.sequence, list(node.next), node.inner_of) == row[
                1:
            ]
            assert node.id == _C.testing.node_id(row[0])
            items, is_freed, _ = _C.saved_of(row[0])
            tensors = [(label, facts) for label, facts in items if facts["kind"] == "tensor"]
            assert node.saved == tuple(graph_copy.saved_of(f, label) for label, f in tensors)
            assert node.hooked == tuple(label for label, f in items if f["kind"] == "hooked")
            assert node.is_freed is is_freed
            assert node.is_readable
            assert node.forward_code == graph_copy.forward_code(row[0])


def by_torch(node: Any, attribute: str) -> torch.Tensor:
    """What a node saved, by its own attribute."""
    name, _, index = attribute.partition("[")
    found = getattr(node, name if name == "saved_tensors" else f"_saved_{name}")
    return found[int(index[:-1])] if index else found


@pytest.mark.parametrize("kind", ["one op", "two saved", "broadcast", "a Function", "batch norms"])
def test_each_node_shows_its_own_tensors(kind: str) -> None:
    outs = [GRAPHS[kind]() for _ in range(6)]
    graph = graph_copy.read(outs)
    seen = 0
    for node, row in zip(graph.nodes, _C.graph(outs)[0], strict=True):
        for saved in node.saved:
            tensor = by_torch(row[0], saved.attribute)
            assert saved.storage == gradext.inspect(tensor).storage
            assert saved.version == saved.saved_version == tensor._version
            assert (saved.sizes, saved.strides) == (tuple(tensor.shape), tensor.stride())
            assert saved.dtype == tensor.dtype
            seen += 1
    assert seen >= 6
    assert graph.saved_count == seen


def test_columns_and_questions_agree_with_the_nodes() -> None:
    out = torch.cat([stale(), freed(), hooked(), written_view().view(-1), Twice.apply(leaf(2))])
    graph = graph_copy.read([out])
    nodes = list(graph.nodes)
    assert graph.threads() == [node.thread for node in nodes]
    assert graph.sequences() == [node.sequence for node in nodes]
    assert graph.freed() == [node.is_freed for node in nodes]
    assert graph.following() == [list(node.next) for node in nodes]
    for number, above in enumerate(graph.above()):
        assert above == [k for k, node in enumerate(nodes) for n in node.next if n == number]
    newest = sorted(nodes, key=graph.order, reverse=True)
    assert list(graph.newest_first()) == newest
    pairs = [(node, saved) for node in newest for saved in node.saved]
    assert graph.stale() == [pair for pair in pairs if pair[1].is_stale]
    assert {node.name for node, _ in graph.stale()} == {"ExpBackward0", "MulBackward0"}
    storage, counter = pairs[0][1].storage, pairs[-1][1].counter
    assert graph.saving(storages=[storage]) == [
        node for node in newest if any(saved.storage == storage for saved in node.saved)
    ]
    assert graph.saving(counters=[counter]) == [
        node for node in newest if any(saved.counter == counter for saved in node.saved)
    ]
    assert graph.saving() == []
    assert graph.unread() == [node for node in nodes if node.hooked]
    assert graph.nodes[-1] is nodes[-1]
    with pytest.raises(IndexError):
        graph.nodes[len(nodes)]


def node_objects() -> int:
    kinds = (type(torch.ones(1, requires_grad=True).exp().grad_fn).__mro__[0].__name__,)
    return sum(type(found).__name__ in kinds for found in gc.get_objects())


def test_a_copy_makes_no_object_for_a_node_and_holds_none() -> None:
    graph_copy.read([leaf(2).exp()])  # the first node of a class gets one
    before = node_objects()
    outs = [leaf(2).exp() for _ in range(50)]
    graph = graph_copy.read(outs)
    assert len(graph.nodes[0].saved) == 1
    assert node_objects() == before
    uses = [gradext.inspect(out).version_counter for out in outs]
    del outs
    assert graph.nodes[49].saved[0].counter in uses  # still told, of what is gone


def test_too_many_nodes_are_not_all_of_them() -> None:
    out = leaf(2)
    for _ in range(100):
        out = out.sin()
    graph = graph_copy.read([out], 40)
    assert (len(graph.nodes), graph.whole) == (40, False)
    assert graph.nodes[39].next == (-1,)


def chain(length: int) -> torch.Tensor:
    out = leaf(1)
    for _ in range(length):
        out = out.neg()
    return out


@pytest.mark.parametrize(
    ("make", "longest", "count"),
    [
        (lambda: chain(30), 20, 20),
        (lambda: chain(20), 40, 21),
        (lambda: torch.stack([leaf(1).neg() for _ in range(100)]), 10, 201),
        (lambda: torch.stack([chain(60), *(leaf(1).neg() for _ in range(100))]), 20, None),
    ],
    ids=["a chain", "a short chain", "wide", "wide with a chain"],
)
def test_no_path_is_longer_than_was_asked_for(make: Any, longest: int, count: int | None) -> None:
    out = make()
    rows, whole = _C.graph([out], 1 << 20, longest)
    every, _ = _C.graph([out])
    assert whole is (len(rows) == len(every))
    assert count in (None, len(rows))
    depth = [1] * len(rows)
    for number, row in enumerate(rows):  # in these graphs a node comes after all that lead to it
        assert row[1:4] == every[number][1:4]
        for place, following in enumerate(row[4]):
            wanted = every[number][4][place]
            assert following == (wanted if wanted < len(rows) else -1)
            if following >= 0:
                depth[following] = max(depth[following], depth[number] + 1)
    assert max(depth) <= longest
    assert len(rows) >= min(longest, len(every))
