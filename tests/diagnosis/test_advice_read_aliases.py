"""GX101 of a statement that reads what it writes under two names, typed as the help says.

A copy of what it reads by the one name leaves the other to be written in a later round.
"""

from __future__ import annotations

from advice import Advice, Advices, check

advice = Advices()

advice(
    "layers_of_one_state", """
    cells = nn.ModuleList(nn.GRUCell(3, 3) for _ in range(2))
    leaves = list(cells.parameters())
    def run(frames):
        hidden = torch.zeros(2, 1, 3)
        for frame in frames:
            below = frame
            for k, cell in enumerate(cells):
                hidden[k] = cell(below, hidden[k])
                below = hidden[k]
        return hidden
    run(torch.ones(3, 1, 3)).sum().backward()
    """,
    ("hidden[k] = cell(below, hidden[k])",
     "hidden = hidden.clone()\nhidden[k] = cell(below, hidden[k].clone())"),
    twin=(("hidden = torch.zeros(2, 1, 3)", "hidden = list(torch.zeros(2, 1, 3))"),
          ("return hidden", "return torch.stack(hidden)")),
)  # fmt: skip
advice(
    "last_point_of_a_path", """
    lin = nn.Linear(3, 3)
    leaves = list(lin.parameters())
    path = torch.zeros(4, 1, 3)
    last = path[0]
    for t in range(3):
        path[t + 1] = torch.tanh(lin(last) + path[t] * path[t])
        last = path[t + 1]
    path.sum().backward()
    """,
    ("path[t + 1] = torch.tanh(lin(last) + path[t] * path[t])",
     "path = path.clone()\n"
     "path[t + 1] = torch.tanh(lin(last) + path[t].clone() * path[t].clone())"),
    twin=(("path = torch.zeros(4, 1, 3)", "path = list(torch.zeros(4, 1, 3))"),
          ("path.sum().backward()", "torch.stack(path).sum().backward()")),
)  # fmt: skip
advice(
    "attribute_of_an_object", """
    class Belief:
        def __init__(self):
            self.mix = nn.Linear(2, 2)
            self.nodes = torch.zeros(3, 1, 2)
        def sweep(self):
            sent = self.nodes[0]
            for k in range(1, 3):
                self.nodes[k] = torch.sigmoid(self.mix(sent)) * (1 + self.nodes[k].exp())
                sent = self.nodes[k]
            return self.nodes
    net = Belief()
    leaves = list(net.mix.parameters())
    net.sweep().sum().backward()
    """,
    ("self.nodes[k] = torch.sigmoid(self.mix(sent)) * (1 + self.nodes[k].exp())",
     "self.nodes = self.nodes.clone()\n"
     "self.nodes[k] = torch.sigmoid(self.mix(sent)) * (1 + self.nodes[k].clone().exp())"),
    twin=(("self.nodes = torch.zeros(3, 1, 2)", "self.nodes = list(torch.zeros(3, 1, 2))"),
          ("return self.nodes", "return torch.stack(self.nodes)")),
)  # fmt: skip
advice(
    "one_name_alone", """
    lin = nn.Linear(3, 3)
    leaves = list(lin.parameters())
    h = torch.zeros(4, 1, 3)
    for t in range(3):
        h[t + 1] = torch.tanh(lin(h[t]))
        seen = h[t + 1]
    h.sum().backward()
    """,
    ("h[t + 1] = torch.tanh(lin(h[t]))", "h[t + 1] = torch.tanh(lin(h[t].clone()))"),
    never=("h = h.clone()",),
    twin=(("h = torch.zeros(4, 1, 3)", "h = list(torch.zeros(4, 1, 3))"),
          ("h.sum().backward()", "torch.stack(h).sum().backward()")),
)  # fmt: skip


@advice.each()
def test_typed_as_printed(each: Advice) -> None:
    check(each, "GX101")
