"""GX301 where a library's function detaches what a line asks it for, typed where it says."""

from __future__ import annotations

from advice import Advice, Advices, check

advice = Advices()
_NEVER = ("take `.detach()` out",)

advice(
    "weights_for_a_functional_call", """
    from torch.func import functional_call
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    leaves = list(net.parameters())
    def loss_of(params, x):
        return functional_call(net, params, (x,)).pow(2).mean()
    params = dict(net.state_dict())
    loss_of(params, torch.ones(4, 2)).backward()
    """,
    ("params = dict(net.state_dict())", "params = dict(net.state_dict(keep_vars=True))"),
    never=_NEVER,
    twin=(("params = dict(net.state_dict())", "params = dict(net.named_parameters())"),),
)  # fmt: skip
advice(
    "penalty_over_a_state", """
    net = nn.Linear(2, 3)
    leaves = list(net.parameters())
    def penalty(model):
        total = 0
        for name, value in model.state_dict().items():
            total = total + value.pow(2).sum()
        return total
    penalty(net).backward()
    """,
    ("for name, value in model.state_dict().items():",
     "for name, value in model.state_dict(keep_vars=True).items():"),
    words=("`.state_dict(keep_vars=True)`",),
    never=_NEVER,
    twin=(("for name, value in model.state_dict().items():",
           "for name, value in model.named_parameters():"),),
)  # fmt: skip
advice(
    "one_weight_by_its_name", """
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(4, 2)
        def forward(self, ids):
            table = self.embed.state_dict()["weight"]
            return table[ids] @ table.t()
    net = Tied()
    leaves = list(net.parameters())
    net(torch.tensor([1, 2])).exp().sum().backward()
    """,
    ('table = self.embed.state_dict()["weight"]',
     "table = self.embed.state_dict(keep_vars=True)['weight']"),
    never=_NEVER,
    twin=(('table = self.embed.state_dict()["weight"]', "table = self.embed.weight"),),
)  # fmt: skip


@advice.each()
def test_typed_as_printed(each: Advice) -> None:
    check(each, "GX301")
