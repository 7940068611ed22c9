"""Programs that fail, each with the line that is wrong and what its author would write there.

What fix.py runs `gradext fix` on. The line stands once in its program.
"""

from __future__ import annotations

import textwrap
from typing import NamedTuple


class Program(NamedTuple):
    """One program: `text` with `wrong` in it fails, and with `right` in its place it does not."""

    name: str
    code: str
    text: str
    wrong: str
    right: str

    @property
    def broken(self) -> str:
        return self._with(self.wrong)

    @property
    def twin(self) -> str:
        return self._with(self.right)

    def _with(self, lines: str) -> str:
        found = textwrap.dedent(self.text).lstrip("\n")
        assert found.count("HERE") == 1, self.name
        place = found.index("HERE")
        indent = found[found.rindex("\n", 0, place) + 1 : place]
        inner = textwrap.dedent(lines).strip("\n").replace("\n", "\n" + " " * len(indent))
        return found.replace("HERE", inner)


_NET = """
import torch
from torch import nn

torch.manual_seed(0)
"""

PROGRAMS = (
    Program(
        "a gate is scaled in place behind its softmax",
        "GX101",
        _NET
        + """
class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.score = nn.Linear(16, 4)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def forward(self, x):
        gate = self.score(x).softmax(-1)
        HERE
        return sum(gate[:, n : n + 1] * f(x) for n, f in enumerate(self.experts))

net = Gate()
opt = torch.optim.SGD(net.parameters(), 0.1)
for _ in range(4):
    opt.zero_grad()
    net(torch.randn(32, 16)).pow(2).mean().backward()
    opt.step()
""",
        "gate /= gate.amax(-1, keepdim=True).detach()",
        "gate = gate / gate.amax(-1, keepdim=True).detach()",
    ),
    Program(
        "a residual is added into a tanh's result",
        "GX101",
        _NET
        + """
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        HERE
        return self.b(h)

net = nn.Sequential(Block(), Block())
for _ in range(3):
    net.zero_grad()
    net(torch.randn(5, 8)).square().sum().backward()
""",
        "h.add_(x, alpha=0.5)",
        "h = h.add(x, alpha=0.5)",
    ),
    Program(
        "a large table is shifted after one row of it was used",
        "GX101",
        _NET
        + """
w = torch.ones(64, requires_grad=True)
table = torch.rand(2048, 64)
used = HERE
table += 1
(used.sum() + table.mean()).backward()
""",
        "w * table[7]",
        "w * table[7].clone()",
    ),
    Program(
        "a helper normalises what its caller saved",
        "GX101",
        _NET
        + """
def normalised(v):
    HERE

w = nn.Parameter(torch.randn(6, 6))
for _ in range(3):
    w.grad = None
    x = torch.randn(4, 6)
    h = (x @ w).exp()
    out = normalised(h)
    (out * out).mean().backward()
""",
        "return v.div_(v.sum(-1, keepdim=True))",
        "return v.div(v.sum(-1, keepdim=True))",
    ),
    Program(
        "a module that works in place behind a sigmoid",
        "GX101",
        _NET
        + """
net = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid(), HERE, nn.Linear(6, 1))
opt = torch.optim.Adam(net.parameters())
for _ in range(3):
    opt.zero_grad()
    net(torch.randn(8, 6)).mean().backward()
    opt.step()
""",
        "nn.Hardtanh(0.2, 0.8, inplace=True)",
        "nn.Hardtanh(0.2, 0.8)",
    ),
    Program(
        "a square root's result is written by a mask",
        "GX101",
        _NET
        + """
w = torch.rand(8, requires_grad=True)
norms = (w * torch.arange(1.0, 9.0)).sqrt()
HERE
(norms * 3).sum().backward()
""",
        "norms[norms > 2] = 2.0",
        "norms = torch.where(norms > 2, 2.0, norms)",
    ),
    Program(
        "two faults, one behind the other",
        "GX101",
        _NET
        + """
net = nn.Linear(5, 5)
for _ in range(2):
    net.zero_grad()
    a = net(torch.randn(3, 5)).exp()
    HERE
    b.sum().backward()
""",
        "a += 1\nb = a.sigmoid()\nb *= 2",
        "b = (a + 1).sigmoid()\nb = b * 2",
    ),
    Program(
        "an optimizer steps before the second loss went backward",
        "GX101",
        _NET
        + """
net, head = nn.Linear(4, 4), nn.Linear(4, 1)
opt = torch.optim.SGD([*net.parameters(), *head.parameters()], 0.1)
for _ in range(3):
    h = net(torch.randn(6, 4))
    first, second = head(h).pow(2).mean(), head(h).abs().mean()
    opt.zero_grad()
    first.backward(retain_graph=True)
    HERE
""",
        "opt.step()\nsecond.backward()",
        "second.backward()\nopt.step()",
    ),
    Program(
        "gradient descent on a leaf, with -=",
        "GX102",
        _NET
        + """
w = torch.randn(6, requires_grad=True)
x, t = torch.randn(20, 6), torch.randn(20)
for _ in range(4):
    loss = ((x @ w - t) ** 2).mean()
    loss.backward()
    HERE
    w.grad = None
""",
        "w -= 0.1 * w.grad",
        "with torch.no_grad(): w -= 0.1 * w.grad",
    ),
    Program(
        "a bias is set through a view of it",
        "GX103",
        _NET
        + """
class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 6)
        HERE

    def forward(self, x):
        return self.out(x)

net = Head()
for _ in range(2):
    net(torch.randn(3, 4)).sigmoid().log().sum().backward()
""",
        "self.out.bias.view(3, 2)[:, 0] = -4.0",
        "with torch.no_grad(): self.out.bias.view(3, 2)[:, 0] = -4.0",
    ),
    Program(
        "rows of a buffer taken under no_grad, and filled with grad on",
        "GX104",
        _NET
        + """
w = torch.randn(4, requires_grad=True)
canvas = torch.zeros(3, 4)
HERE
row += w * 2
canvas.pow(2).sum().backward()
""",
        "with torch.no_grad():\n    row = canvas[1]",
        "row = canvas[1]",
    ),
    Program(
        "queries of a fused projection scaled in place",
        "GX105",
        _NET
        + """
lin = nn.Linear(8, 24)
for _ in range(2):
    q, k, v = lin(torch.randn(5, 8)).chunk(3, dim=-1)
    HERE
    ((q @ k.T).softmax(-1) @ v).pow(2).sum().backward()
""",
        "q *= 8**-0.5",
        "q = q * 8**-0.5",
    ),
    Program(
        "rows written while they are iterated",
        "GX105",
        _NET
        + """
w = torch.randn(3, 4, requires_grad=True)
h = w * 2
HERE
h.pow(2).sum().backward()
""",
        "for row in h.unbind():\n    row.mul_(3)",
        "h = h * 3",
    ),
    Program(
        "embeddings cached under inference_mode",
        "GX201",
        _NET
        + """
net, head = nn.Linear(4, 8), nn.Linear(8, 1)
HERE
for _ in range(2):
    head(cached).pow(2).mean().backward()
""",
        "with torch.inference_mode():\n    cached = net(torch.randn(6, 4))",
        "with torch.no_grad():\n    cached = net(torch.randn(6, 4))",
    ),
    Program(
        "a loss that is rebuilt from its number",
        "GX301",
        _NET
        + """
net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
for _ in range(2):
    net.zero_grad()
    loss = HERE
    loss.backward()
""",
        "torch.tensor(net(torch.randn(7, 3)).pow(2).mean().item())",
        "net(torch.randn(7, 3)).pow(2).mean()",
    ),
    Program(
        "a hidden state carried from batch to batch",
        "GX302",
        _NET
        + """
cell = nn.GRUCell(4, 8)
opt = torch.optim.SGD(cell.parameters(), 0.1)
state = torch.zeros(2, 8)
for _ in range(3):
    opt.zero_grad()
    state = cell(torch.randn(2, 4), HERE)
    state.pow(2).mean().backward()
    opt.step()
""",
        "state",
        "state.detach()",
    ),
    Program(
        "a hook that writes into a gradient two branches share",
        "GX403",
        _NET
        + """
w = torch.randn(4, requires_grad=True)

def halve(gradient):
    HERE

a, b = w * 1.0, w * 3.0
b.register_hook(halve)
(a + b).pow(2).sum().backward()
""",
        "gradient.mul_(0.5)",
        "return gradient.mul(0.5)",
    ),
)
