"""GX101's help for a statement that saves what it writes itself, typed where it says."""

from __future__ import annotations

from advice import Advice, Advices, check

advice = Advices()

advice(
    "states_in_one_tensor", """
    cell = nn.Linear(5, 5)
    leaves = [cell.weight]
    xs = torch.randn(4, 3, 5)
    states = torch.zeros(4, 4, 5)
    for t in range(3):
        states[:, t + 1] = torch.tanh(cell(states[:, t]) + xs[:, t])
    states[:, -1].pow(2).sum().backward()
    """,
    ("states[:, t + 1] = torch.tanh(cell(states[:, t]) + xs[:, t])",
     "states[:, t + 1] = torch.tanh(cell(states[:, t].clone()) + xs[:, t])"),
    never=("copy before",),
    twin=(("states = torch.zeros(4, 4, 5)", "states = {k: torch.zeros(4, 5) for k in range(4)}"),
          ("states[:, t + 1] = torch.tanh(cell(states[:, t]) + xs[:, t])",
           "states[t + 1] = torch.tanh(cell(states[t]) + xs[:, t])"),
          ("states[:, -1].pow(2).sum().backward()", "states[3].pow(2).sum().backward()")),
)  # fmt: skip
advice(
    "slice_that_is_added_to", """
    a = torch.arange(1.0, 6.0, requires_grad=True)
    leaves = [a]
    x = a * 2
    x[1:] += x[:-1] * x[:-1]
    x.sum().backward()
    """,
    ("x[1:] += x[:-1] * x[:-1]", "x[1:] += x[:-1].clone() * x[:-1].clone()"),
    never=("copy before",),
    twin=(("x[1:] += x[:-1] * x[:-1]", "x = torch.cat([x[:1], x[1:] + x[:-1] * x[:-1]])"),),
)  # fmt: skip
advice(
    "slice_that_is_multiplied", """
    a = torch.arange(1.0, 6.0, requires_grad=True)
    leaves = [a]
    x = a * 2
    x[3:] *= x[:2]
    x.sum().backward()
    """,
    ("x[3:] *= x[:2]", "x[3:] *= x[:2].clone()"),
    never=("copy before",),
    twin=(("x[3:] *= x[:2]", "x = torch.cat([x[:3], x[3:] * x[:2]])"),),
)  # fmt: skip
advice(
    "row_of_an_attribute_by_a_method", """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 3))
        def step(self, h):
            return torch.tanh(h @ self.w)
        def forward(self, x):
            self.mem = x.new_zeros(5, 3)
            self.mem[0] = x
            for i in range(4):
                self.mem[i + 1] = self.step(self.mem[i])
            return self.mem.sum()
    net = Net()
    leaves = [net.w]
    net(torch.ones(3)).backward()
    """,
    ("self.mem[i + 1] = self.step(self.mem[i])",
     "self.mem[i + 1] = self.step(self.mem[i].clone())"),
    never=("copy before",),
    twin=(("self.mem = x.new_zeros(5, 3)", "self.mem = [x] * 5"),
          ("self.mem[0] = x", "pass"),
          ("return self.mem.sum()", "return torch.stack(self.mem).sum()")),
)  # fmt: skip
advice(
    "method_that_reads_the_attribute", """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 3))
        def step(self, i):
            last = self.mem[i]
            return torch.tanh(last @ self.w)
        def forward(self, x):
            self.mem = x.new_zeros(5, 3)
            self.mem[0] = x
            for i in range(4):
                self.mem[i + 1] = self.step(i)
            return self.mem.sum()
    net = Net()
    leaves = [net.w]
    net(torch.ones(3)).backward()
    """,
    ("last = self.mem[i]", "last = self.mem[i].clone()"),
    never=("copy before",),
    twin=(("self.mem = x.new_zeros(5, 3)", "self.mem = [x] * 5"),
          ("self.mem[0] = x", "pass"),
          ("return self.mem.sum()", "return torch.stack(self.mem).sum()")),
)  # fmt: skip
advice(
    "copied_into_an_entry", """
    w = torch.full((3,), 0.5, requires_grad=True)
    leaves = [w]
    out = {"s": torch.ones(6, 3)}
    for i in range(1, 6):
        out["s"][i].copy_(out["s"][i - 1] * w)
    out["s"].sum().backward()
    """,
    ('out["s"][i].copy_(out["s"][i - 1] * w)', "out['s'][i].copy_(out['s'][i - 1].clone() * w)"),
    never=("copy before",),
    twin=(('out = {"s": torch.ones(6, 3)}', 'out = {"s": [torch.ones(3)] * 6}'),
          ('out["s"][i].copy_(out["s"][i - 1] * w)', 'out["s"][i] = out["s"][i - 1] * w'),
          ('out["s"].sum().backward()', 'torch.stack(out["s"]).sum().backward()')),
)  # fmt: skip
advice(
    "function_in_a_comprehension", """
    a = torch.linspace(0.1, 0.5, 5).requires_grad_()
    leaves = [a]
    h = a.exp()
    def leak(h, k):
        h[k + 1:] += (h[k] * h[k]).expand_as(h[k + 1:])
        return h
    [leak(h, k) for k in range(3)]
    h.sum().backward()
    """,
    ("h = a.exp()", "h = a.exp().clone()"),
    ("h[k + 1:] += (h[k] * h[k]).expand_as(h[k + 1:])",
     "h[k + 1:] += (h[k].clone() * h[k].clone()).expand_as(h[k + 1:])"),
    never=("copy before",),
    twin=(("h[k + 1:] += (h[k] * h[k]).expand_as(h[k + 1:])",
           "h = torch.cat([h[:k + 1], h[k + 1:] + h[k] * h[k]])"),
          ("[leak(h, k) for k in range(3)]", "for k in range(3): h = leak(h, k)")),
)  # fmt: skip
advice(
    "saved_on_the_line_above_as_well", """
    w = torch.full((3,), 0.5, requires_grad=True)
    leaves = [w]
    bank = torch.ones(6, 3)
    extra = 0
    for i in range(1, 6):
        extra = extra + (bank[i - 1] * w).sum()
        bank[i] = bank[i - 1] * w
    (bank.sum() + extra).backward()
    """,
    ("bank[i] = bank[i - 1] * w", "bank = bank.clone()\nbank[i] = bank[i - 1].clone() * w"),
    twin=(("bank = torch.ones(6, 3)", "bank = [torch.ones(3)] * 6"),
          ("bank[i] = bank[i - 1] * w", "bank[i] = bank[i - 1] * w"),
          ("(bank.sum() + extra).backward()", "(torch.stack(bank).sum() + extra).backward()")),
)  # fmt: skip
advice(
    "statement_that_is_too_long_to_print", """
    gate = torch.full((3,), 0.5, requires_grad=True)
    leaves = [gate]
    trajectory = torch.ones(6, 3)
    for position in range(1, 6):
        trajectory[position] = torch.nn.functional.softplus(
            trajectory[position - 1] * gate) + torch.nn.functional.softplus(gate * 0.25) - 0.1
    trajectory.sum().backward()
    """,
    ("trajectory[position - 1] * gate) + torch.nn.functional.softplus(gate * 0.25) - 0.1",
     "trajectory[position - 1].clone() * gate) + torch.nn.functional.softplus(gate * 0.25) - 0.1"),
    words=("`trajectory[position - 1].clone()` in place of `trajectory[position - 1]`",),
    never=("copy before",),
    twin=(("trajectory = torch.ones(6, 3)", "trajectory = [torch.ones(3)] * 6"),
          ("trajectory.sum().backward()", "torch.stack(trajectory).sum().backward()")),
)  # fmt: skip
# Read through a name that was taken before: a copy of the whole, above the statement, is enough.
advice(
    "row_that_was_taken_before", """
    w = torch.full((3,), 0.5, requires_grad=True)
    leaves = [w]
    table = torch.ones(6, 3)
    for i in range(1, 6):
        last = table[i - 1]
        table[i] = last * w
    table.sum().backward()
    """,
    ("table[i] = last * w", "table = table.clone()\ntable[i] = last * w"),
    twin=(("table = torch.ones(6, 3)", "table = [torch.ones(3)] * 6"),
          ("table.sum().backward()", "torch.stack(table).sum().backward()")),
)  # fmt: skip


@advice.each()
def test_the_help_is_typed(each: Advice) -> None:
    check(each, "GX101")
