"""GX406 names the state that a checkpointed block changes itself, and the line that changes it."""

from __future__ import annotations

import textwrap

import pytest
from cases import run

PRELUDE = "from torch.utils.checkpoint import checkpoint\n"

# The source, with the line marked; words of the message; whether the guard has to compare.
STATES = {
    "a_counter_that_another_branch_depends_on": (
        """
        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b, self.calls = nn.Linear(4, 4), nn.Linear(4, 4), 0
            def forward(self, x):
                self.calls += 1  #S
                if self.calls % 2:
                    return torch.tanh(self.a(x))
                return self.b(torch.sigmoid(self.a(x)))
        x = torch.randn(2, 4, requires_grad=True)
        checkpoint(Block(), x, use_reentrant=False).sum().backward()
        """,
        "`self.calls`",
    ),
    "a_codebook_that_is_bound_anew": (
        """
        class Codebook(nn.Module):
            def __init__(self):
                super().__init__()
                self.proj = nn.Linear(4, 4)
                self.register_buffer("book", torch.randn(6, 4))
            def forward(self, x):
                z = self.proj(x)
                index = torch.cdist(z, self.book).argmin(1)
                q = self.book[index]
                self.book = self.book.index_copy(0, index, 0.5 * q + 0.5 * z.detach())  #S
                return (z * q).sum()
        x = torch.randn(3, 4, requires_grad=True)
        checkpoint(Codebook(), x, use_reentrant=False).backward()
        """,
        "`self.book`",
    ),
    "keys_that_grow_so_that_torch_raises": (
        """
        class Memory(nn.Module):
            def __init__(self):
                super().__init__()
                self.f, self.keys = nn.Linear(4, 4), torch.zeros(0, 4)
            def forward(self, x):
                k = self.f(x)
                keys = torch.cat([self.keys, k])
                self.keys = keys.detach()  #S
                return torch.softmax(k @ keys.t(), 1).exp().sum()
        x = torch.randn(3, 4, requires_grad=True)
        checkpoint(Memory(), x, use_reentrant=False).backward()
        """,
        "`self.keys`",
    ),
    "a_global_of_a_function": (
        """
        step = 0
        f = nn.Linear(4, 4)
        def block(x):
            global step
            h = torch.tanh(f(x) * (step + 1))
            step = step + 1  #S
            return h
        x = torch.randn(3, 4, requires_grad=True)
        checkpoint(block, x, use_reentrant=False).sum().backward()
        """,
        "`step`",
    ),
    "a_buffer_that_an_op_writes_behind_what_is_recomputed": (
        """
        class Gate(nn.Module):
            def __init__(self):
                super().__init__()
                self.f = nn.Linear(4, 4)
                self.register_buffer("load", torch.zeros(4))
            def forward(self, x):
                s = self.f(x)
                s = s.exp() if self.load.sum() > 2 else s
                with torch.no_grad():
                    self.load.add_(s.softmax(1).sum(0))  #S
                return torch.sin(s).sum()
        gate, x = Gate(), torch.randn(3, 4, requires_grad=True)
        checkpoint(gate, x, use_reentrant=False).backward()
        """,
        "the block writes `gate.load` each time that it runs",
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_the_state_is_named(name: str) -> None:
    marked, said = STATES[name]
    text = PRELUDE + textwrap.dedent(marked).lstrip("\n")
    line = next(n for n, one in enumerate(text.splitlines(), 1) if one.endswith("#S"))
    ran = run(text.replace("  #S", ""), f"state-{name}", guard=True)
    first = ran.diagnoses[0]
    assert first.code == "GX406"
    assert said in first.message
    assert line in {site.frame.line for site in first.culprits}
    assert f":{line})" in first.fix


def test_a_mode_that_was_switched_in_between() -> None:
    text = PRELUDE + textwrap.dedent("""
        class Drop(nn.Module):
            def __init__(self):
                super().__init__()
                self.f = nn.Linear(4, 4)
            def forward(self, x):
                h = self.f(x)
                if self.training:
                    h = h * torch.sigmoid(h)
                return h.relu()
        net, x = Drop(), torch.randn(3, 4, requires_grad=True)
        y = checkpoint(net, x, use_reentrant=False)
        net.eval()
        y.sum().backward()
        """).lstrip("\n")
    first = run(text, "state-mode").diagnoses[0]
    assert "`self.training`" in first.message
    assert 8 in {site.frame.line for site in first.culprits}


QUIET = {
    "two_things_that_change": """
        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.f, self.a, self.b = nn.Linear(4, 4), 1.0, 1.0
            def forward(self, x):
                a, b = self.a, self.b
                self.a, self.b = a * 0.5, b * 0.5
                return torch.tanh(self.f(x) * a * b)
        x = torch.randn(3, 4, requires_grad=True)
        checkpoint(Two(), x, use_reentrant=False).sum().backward()
        """,
    "what_is_only_counted": """
        import random
        class Noisy(nn.Module):
            def __init__(self):
                super().__init__()
                self.f, self.calls = nn.Linear(4, 4), 0
            def forward(self, x):
                self.calls += 1
                return torch.tanh(self.f(x) * random.random())
        x = torch.randn(3, 4, requires_grad=True)
        checkpoint(Noisy(), x, use_reentrant=False).sum().backward()
        """,
}


@pytest.mark.parametrize("name", QUIET)
def test_where_it_is_not_known_less_is_said(name: str) -> None:
    ran = run(PRELUDE + textwrap.dedent(QUIET[name]).lstrip("\n"), f"quiet-{name}", guard=True)
    first = ran.diagnoses[0]
    assert first.code == "GX406"
    assert "each time that it runs" not in first.message
