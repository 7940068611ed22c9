"""What GX302, and GX101 across iterations, print as help, typed where it says."""

from __future__ import annotations

from advice import Advice, Advices, check

advice, across = Advices(), Advices()

advice(
    "carried_by_its_name", """
    def fit(cell, x, state):
        state = cell(x, state)
        state.sum().backward()
        return state
    cell = nn.RNNCell(2, 3)
    leaves = list(cell.parameters())
    state = torch.zeros(1, 3)
    for _ in range(3):
        after = fit(cell, torch.ones(1, 2), state)
        state = after
    """,
    ("state = after", "state = after.detach()"),
    twin=(("state = after", "state = torch.tensor(after.tolist())"),),
)  # fmt: skip
advice(
    "carried_by_an_attribute_of_a_submodule", """
    class Memory(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.trace = nn.Linear(2, 2), torch.zeros(1, 2)
        def forward(self, x):
            self.trace = torch.tanh(self.lin(x) + self.trace)
            return self.trace
    net = nn.Sequential(nn.Linear(2, 2), Memory())
    leaves = list(net.parameters())
    def epoch(model):
        for _ in range(3):
            out = model(torch.ones(1, 2)) + model(torch.ones(1, 2))
            out.sum().backward()
    epoch(net)
    """,
    ("out.sum().backward()",
     "out.sum().backward()\nmodel[1].trace = model[1].trace.detach()"),
    words=("`model[1].trace = model[1].trace.detach()` below carried_by_an_attribute",),
    twin=(("out.sum().backward()",
           "out.sum().backward()\nmodel[1].trace = torch.tensor(model[1].trace.tolist())"),),
)  # fmt: skip
advice(
    "carried_pair_of_an_lstm", """
    lstm = nn.LSTM(2, 3)
    leaves = list(lstm.parameters())
    hidden = (torch.zeros(1, 1, 3), torch.zeros(1, 1, 3))
    for _ in range(3):
        out, hidden = lstm(torch.ones(2, 1, 2), hidden)
        out.sum().backward()
    """,
    ("out.sum().backward()",
     "out.sum().backward()\nhidden = type(hidden)(t.detach() for t in hidden)"),
    words=("`hidden = type(hidden)(t.detach() for t in hidden)` below",),
    twin=(("out.sum().backward()",
           "out.sum().backward()\nhidden = tuple(torch.tensor(t.tolist()) for t in hidden)"),),
)  # fmt: skip
advice(
    "sum_that_was_not_begun_anew", """
    x = torch.ones(3, requires_grad=True)
    leaves = [x]
    loss = 0
    for k in range(2):
        loss = loss + (x * k).exp().sum()
    loss.backward()
    for k in range(2):
        loss = loss + (x + k).exp().sum()
    (loss * 1).backward()
    """,
    ("loss.backward()", "loss.backward()\nloss = loss.detach()"),
    words=("`loss = loss.detach()` below sum_that_was_not_begun_anew.py:6",),
    twin=(("loss.backward()", "loss.backward()\nloss = 0"),),
)  # fmt: skip
advice(
    "backward_in_the_criterion_and_after_it", """
    def criterion(out):
        loss = out.exp().sum()
        loss.backward()
        return loss
    x = torch.ones(3, requires_grad=True)
    leaves = [x]
    value = criterion(x * 2)
    value.backward()
    """,
    ("value.backward()", "pass"),
    words=("take `value.backward()` out",),
    never=("keep the graph",),
    twin=(("loss.backward()", "pass"),),
)  # fmt: skip
advice(
    "two_losses_of_one_trunk", """
    x = torch.ones(3, requires_grad=True)
    leaves = [x]
    trunk = x.exp()
    first = trunk.sum()
    second = (trunk * 2).sum()
    first.backward()
    second.backward()
    """,
    ("first.backward()", "pass"),
    ("second.backward()", "(first + second).backward()"),
    words=("`(first + second).backward()` at two_losses_of_one_trunk.py:7",),
    twin=(("first.backward()", "first.backward(retain_graph=True)"),),
)  # fmt: skip
across(
    "two_states_and_a_step", """
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.h, self.c = nn.Linear(4, 2), torch.zeros(1, 2), torch.zeros(1, 2)
        def forward(self, x):
            gate = torch.sigmoid(self.gate(torch.cat([x, self.h], 1)))
            self.c = gate * self.c + gate
            self.h = torch.tanh(self.c) * gate
            return self.h
    cell = Cell()
    leaves = list(cell.parameters())
    opt = torch.optim.SGD(cell.parameters(), 0.1)
    for _ in range(3):
        opt.zero_grad()
        cell(torch.ones(1, 2)).sum().backward(retain_graph=True)
        opt.step()
    """,
    ("opt.step()", "opt.step()\ncell.h = cell.h.detach()\ncell.c = cell.c.detach()"),
    words=("`cell.h = cell.h.detach()` below", "`cell.c = cell.c.detach()` below"),
    twin=(("opt.step()", "opt.step()\ncell.h, cell.c = cell.h.data, cell.c.data"),),
)  # fmt: skip


@advice.each()
def test_typed_as_printed(each: Advice) -> None:
    check(each, "GX302")


@across.each()
def test_typed_as_printed_across_a_step(each: Advice) -> None:
    check(each, "GX101")
