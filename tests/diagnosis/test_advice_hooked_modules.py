"""Writes to views that a backward hook made, and to slices of leaves: words and help."""

from __future__ import annotations

from textwrap import dedent
from typing import Any

import pytest
from cases import run

from gradext.reporters.fix import verdict_line

HOOKED = {
    "result_of_a_hooked_module": (
        """
        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Linear(3, 3)
            def forward(self, x):
                h = self.conv(x)
                h += x
                return h.relu()
        block = Block()
        norms = []
        def hook(module, gi, go):
            norms.append(go[0].norm())
        block.conv.register_full_backward_hook(hook)
        block(torch.ones(2, 3)).sum().backward()
        """,
        ("h += x", "h = h + x"),
        6, 13,
    ),
    "input_of_a_hooked_module": (
        """
        class Double(nn.Module):
            def forward(self, x):
                x.mul_(2)
                return x.relu()
        lin, double = nn.Linear(3, 3), Double()
        double.register_full_backward_hook(lambda m, gi, go: None)
        double(lin(torch.ones(2, 3))).sum().backward()
        """,
        ("x.mul_(2)", "x = x.mul(2)"),
        7, 6,
    ),
    "module_that_writes_in_place": (
        """
        net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 1))
        net[0].register_full_backward_hook(lambda m, gi, go: None)
        net(torch.ones(2, 3)).sum().backward()
        """,
        ("nn.ReLU(inplace=True)", "nn.ReLU()"),
        3, 2,
    ),
    "one_of_two_results": (
        """
        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            def forward(self, x):
                return self.a(x), self.b(x)
        two = Two()
        two.register_full_backward_pre_hook(lambda m, go: None)
        p, q = two(torch.ones(2, 3))
        p.add_(1)
        (p + q).sum().backward()
        """,
        ("p.add_(1)", "p = p.add(1)"),
        9, 8,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOOKED)
def test_a_view_of_a_hook(name: str) -> None:
    source, (old, new), called, registered = HOOKED[name]
    text = dedent(source).lstrip("\n")
    first = run(text, name).diagnoses[0]
    assert first.code in ("GX105", "GX106")
    assert f"`{new}`" in first.fix, first.fix
    assert "slice instead" not in first.fix
    labels = {site.frame.line: site.label for site in (*first.culprits, *first.victims)}
    assert labels[registered] == "registers the hook"
    assert "has a full backward hook" in labels[called] or called == first.culprits[0].frame.line
    assert "view of `self`" not in str(first)
    assert "the hook is defined at" in first.notes[-1] or "makes views of them" in first.notes[-1]
    mended = run(text.replace(old, new), f"{name}_mended")
    assert (mended.error, mended.diagnoses) == (None, [])


LEAVES = {
    "positions": (
        """
        class PE(nn.Module):
            def __init__(self):
                super().__init__()
                self.pe = nn.Parameter(torch.zeros(1, 8, 4))
            def forward(self, x):
                n = x.shape[1]
                self.pe[:, :n] += 0.1
                return x + self.pe[:, :n]
        PE()(torch.ones(2, 5, 4)).sum().backward()
        """,
        "add_ writes `self.pe[:, :n]`, a view of the leaf `self.pe`",
    ),
    "row_of_an_embedding": (
        """
        emb = nn.Embedding(5, 3)
        emb.weight[0] = 0
        """,
        "fill_ writes `emb.weight[0]`, a view of the leaf `emb.weight`",
    ),
    "row_with_a_name": (
        """
        w = torch.zeros(4, 4, requires_grad=True)
        row = w[0]
        row += 1
        """,
        "add_ writes `row`, a view of the leaf `w`",
    ),
}


@pytest.mark.parametrize("name", LEAVES)
def test_the_slice_is_the_view_and_the_name_is_the_leaf(name: str) -> None:
    source, label = LEAVES[name]
    first = run(dedent(source), name).diagnoses[0]
    assert first.code == "GX103"
    assert first.culprits[0].label.startswith(label), first.culprits[0].label


def test_the_argument_of_a_function_is_what_it_views() -> None:
    source = """
        class Window(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x[:2]
            @staticmethod
            def backward(ctx, g):
                return torch.cat([g, g * 0])
        x = torch.ones(4, requires_grad=True) * 1
        w = Window.apply(x)
        w += 1
        """
    first = run(dedent(source), "window").diagnoses[0]
    assert any("a view of `x`" in site.label for site in first.victims), first


def test_sizes_of_a_part_are_not_said_to_be_those_of_the_whole() -> None:
    source = """
        def roll(w):
            states = torch.ones(4, 3)
            for t in range(3):
                states[t + 1] = states[t] * w
            return states.sum()
        roll(torch.ones(3, requires_grad=True)).backward()
        """
    message = run(dedent(source), "roll").diagnoses[0].message
    assert message.startswith("A float32 [3] tensor in the memory of `states` was saved"), message


def test_no_gradient_that_differs() -> None:
    class Verdict:
        level, why, gradients, equal, difference = "changes-meaning", "other loss", 8, 8, 0.0
        tolerance, more, cost = 0.0, 0, None

    class Cost:
        bytes = ratio = seconds = None

    verdict: Any = Verdict()
    verdict.cost = Cost()
    line = verdict_line(verdict)
    assert "8 of 8 gradients bit-equal" in line
    assert "differ" not in line
