"""Patches that keep a gradient (GX305), or a graph for the next loss (GX302), on the text."""

from __future__ import annotations

import pytest
from test_strategies import case_of, changed, patches

NONE = "The .grad of `{}` is None: an op at train.py:1 made it"
NO_LEAF = "makes it, which is no leaf (Mul)"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("w = torch.zeros(3, requires_grad=True) + 1", "w = (torch.zeros(3) + 1).requires_grad_()"),
        ("self.w = nn.Parameter(a) / 2", "self.w = nn.Parameter(a / 2)"),
        ("x = torch.rand(3).requires_grad_().to(d)", "x = torch.rand(3).to(d).requires_grad_()"),
    ],
)
def test_a_leaf_is_made_of_the_result(line: str, expected: str) -> None:
    case = case_of(f"{line}\n", "GX305", {1: NO_LEAF}, message=NONE.format("w"))
    assert changed(case, "make a leaf of the result") == [expected]


def test_a_leaf_is_made_of_what_a_function_returns() -> None:
    text = "def f(n):\n    return torch.ones(n, requires_grad=True) / n\n"
    case = case_of(text, "GX305", {2: NO_LEAF}, message=NONE.format("w"))
    expected = "    return (torch.ones(n) / n).requires_grad_()"
    assert changed(case, "make a leaf of the result") == [expected]


@pytest.mark.parametrize("line", ["x = x.double()", "a, x = f(w)", "x = y = w * 2"])
def test_a_name_keeps_its_gradient(line: str) -> None:
    text = f"if True:\n    {line}\n    loss(x).backward()\n"
    case = case_of(text, "GX305", {2: NO_LEAF}, message=NONE.format("x"))
    found = changed(case, "call `x.retain_grad()` below")
    assert found == ["    x.retain_grad()"]


def test_what_was_made_elsewhere_keeps_it_above_the_backward() -> None:
    text = "score = net(x).sum()\nif True:\n    score.backward()\n    print(cam.kept.grad)\n"
    victims = {4: "reads its .grad, which is None", 3: "backward() fills the .grad of leaves"}
    case = case_of(text, "GX305", {1: NO_LEAF}, victims, message=NONE.format("cam.kept"))
    found = changed(case, "call `cam.kept.retain_grad()` above")
    assert found == ["    cam.kept.retain_grad()"]
    case = case_of(text, "GX305", {1: NO_LEAF}, message=NONE.format("cam.kept"))
    assert not patches(case)


def test_a_graph_that_losses_share_is_kept_first() -> None:
    text = "for loss in losses:\n    loss.backward()\n"
    said = "the losses of this loop, which were computed before it, share it."
    case = case_of(text, "GX302", {2: "this backward() freed the graph"}, message=said)
    assert next(iter(patches(case))).startswith("keep the graph")


@pytest.mark.parametrize(
    ("loop", "rest"),
    [("for x in data:", ""), ("while k < 3:  # rounds", ""), ("for x in data:", "        y = 1\n")],
)
def test_the_block_goes_into_the_loop(loop: str, rest: str) -> None:
    text = f"with parametrize.cached():\n    {loop}\n        step()\n{rest}"
    case = case_of(text, "GX302", {1: "keeps each weight as it is computed first"})
    found = changed(case, "enter the block")
    assert found == [loop, "    with parametrize.cached():"]


@pytest.mark.parametrize(
    "text",
    [
        "with cached():\n    step()\n    for x in data:\n        step()\n",
        "with cached():\n    for x in data:\n        step()\n    else:\n        end()\n",
        "with cached():\n    for x in (\n        a):\n        step()\n",
        "with cached():\n    for x in a: step()\n",
    ],
)
def test_a_block_with_more_in_it_is_left(text: str) -> None:
    case = case_of(text, "GX302", {1: "keeps each weight as it is computed first"})
    assert not [title for title in patches(case) if "enter the block" in title]


@pytest.mark.parametrize(
    ("line", "mended"),
    [
        ("m = torch.tensor([[c, -s], [s, c]])", "[[c, -s], [s, c]]"),
        ("m = torch.tensor([(c.item(), 0.0), (0, c.item())], dtype=d)", "[(c, 0.0), (0, c)]"),
    ],
)
def test_lists_of_lists_are_stacked(line: str, mended: str) -> None:
    case = case_of(f"{line}\n", "GX304", {1: "tensor() copies the value"})
    row = "torch.stack([torch.as_tensor(v) for v in row])"
    assert changed(case, "what cuts") == [f"m = torch.stack([{row} for row in {mended}])"]
