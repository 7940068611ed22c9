"""What GX102 and GX103 print as help where a layer wrote its input in place, typed where it says.

Its result is a part of the network: under no_grad the leaf would get no gradient through it.
"""

from __future__ import annotations

from advice import Advice, Advices, check

leaf, view = Advices(), Advices()
_NEVER = ("no_grad", "an update or an initialisation", "to change the leaf itself")

leaf(
    "module_on_fusion_weights", """
    class Fusion(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.Parameter(torch.tensor([1.0, 2.0]))
            self.positive = nn.ReLU(inplace=True)
        def forward(self, a, b):
            w = self.positive(self.weights)
            w = w / w.sum()
            return w[0] * a + w[1] * b
    net = Fusion()
    leaves = list(net.parameters())
    net(torch.ones(3), torch.zeros(3)).pow(2).sum().backward()
    """,
    ("self.positive = nn.ReLU(inplace=True)", "self.positive = nn.ReLU()"),
    words=("`nn.ReLU()` in place of `nn.ReLU(inplace=True)`",),
    never=_NEVER,
    twin=(("w = self.positive(self.weights)", "w = self.weights.clamp(min=0)"),),
)  # fmt: skip
leaf(
    "function_with_inplace_returned", """
    import torch.nn.functional as F
    def gate(scores):
        return F.leaky_relu(scores, 0.1, inplace=True)
    s = torch.tensor([1.0, -2.0], requires_grad=True)
    leaves = [s]
    (gate(s) * 3).exp().sum().backward()
    """,
    ("return F.leaky_relu(scores, 0.1, inplace=True)", "return F.leaky_relu(scores, 0.1)"),
    never=_NEVER,
    twin=(("return F.leaky_relu(scores, 0.1, inplace=True)",
           "return torch.where(scores > 0, scores, scores * 0.1)"),),
)  # fmt: skip
leaf(
    "op_within_an_expression", """
    s = torch.tensor([1.0, -2.0], requires_grad=True)
    leaves = [s]
    x = torch.ones(2)
    out = x * torch.relu_(s) + 1
    out.pow(2).sum().backward()
    """,
    ("out = x * torch.relu_(s) + 1", "out = x * torch.relu(s) + 1"),
    never=_NEVER,
    twin=(("out = x * torch.relu_(s) + 1", "out = x * s.clamp(min=0) + 1"),),
)  # fmt: skip
view(
    "module_on_a_row_of_a_weight", """
    table = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
    leaves = [table]
    act = nn.SiLU(True)
    row = act(table[1])
    row.pow(2).sum().backward()
    """,
    ("act = nn.SiLU(True)", "act = nn.SiLU()"),
    words=("`nn.SiLU()` in place of `nn.SiLU(True)`",),
    never=_NEVER,
    twin=(("row = act(table[1])", "row = table[1] * torch.sigmoid(table[1])"),),
)  # fmt: skip


@leaf.each()
def test_layer_that_writes_a_leaf(each: Advice) -> None:
    check(each, "GX102")


@view.each()
def test_layer_that_writes_a_view_of_a_leaf(each: Advice) -> None:
    check(each, "GX103")
