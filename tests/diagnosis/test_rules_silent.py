"""GX401 as far as the journal proves it: declared writes without a bump, and writes by `.data`."""

from __future__ import annotations

from cases import Case, Cases, check_broken, check_mended

case = Cases()

_FUSED = """
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    opt = torch.optim.{0}(net.parameters(), lr=0.1, fused=True)
    x = torch.ones(3, 2)
    y = net(x)  #V
    y.mean().backward(retain_graph=True)
    opt.step()  #C
    y.pow(2).mean().backward()
"""
for _kind in ("SGD", "Adam", "AdamW"):
    case(
        "GX401", f"fused_{_kind}", _FUSED.format(_kind),
        ("opt.step()\ny.pow(2)", "y.pow(2)"),
        fix=("move `opt.step()`", ":6", "fused=True"), text=("net[2].weight",),
    )  # fmt: skip
case(
    "GX401", "data_multiplied", """
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #V
    h.data.mul_(2)  #C
    h.sum().backward()
    """,
    ("h.data.mul_(2)", "h = h.mul(2)"),
    text=("`h`",), fix=(".data",),
)  # fmt: skip
case(
    "GX401", "data_augmented_by_name", """
    w = torch.ones(3, requires_grad=True)
    y = (w ** 2).sum()  #V
    alias = w.data
    alias += 1  #C
    y.backward()
    """,
    ("alias = w.data", "alias = w.data.clone()"),
    text=("`w`",),
)  # fmt: skip
case(
    "GX401", "weights_clipped_by_data", """
    critic = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    y = critic(torch.ones(2, 3))  #V
    y.mean().backward(retain_graph=True)
    for p in critic.parameters():
        p.data.clamp_(-0.01, 0.01)  #C
    y.sum().backward()
    """,
    ("p.data.clamp_(-0.01, 0.01)", "pass"),
)  # fmt: skip
case(
    "GX401", "soft_update_by_data", """
    q, target = nn.Linear(3, 1), nn.Linear(3, 1)
    x = torch.ones(2, 3, requires_grad=True)
    loss = (q(x) - target(x)).pow(2).mean()  #V
    for p, t in zip(q.parameters(), target.parameters()):
        t.data.lerp_(p.data, 0.1)  #C
    loss.backward()
    """,
    ("t.data.lerp_(p.data, 0.1)", "pass"),
)  # fmt: skip
case(
    "GX401", "own_optimizer_writes_data", """
    class Old:
        def __init__(self, params):
            self.params = list(params)
        def step(self):
            for p in self.params:
                p.data.add_(p.grad.data, alpha=-0.1)  #C
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    opt = Old(net.parameters())
    y = net(torch.ones(2, 3))  #V
    y.mean().backward(retain_graph=True)
    opt.step()
    y.sum().backward()
    """,
    ("opt.step()\ny.sum", "y.sum"),
    fix=("`opt.step()`",),
)  # fmt: skip
case(
    "GX401", "data_index_assignment", """
    x = torch.ones(4, requires_grad=True)
    h = x.sigmoid()  #V
    h.data[1] = 0  #C
    h.sum().backward()
    """,
    ("h.data[1] = 0", "h = h.clone(); h[1] = 0"),
)  # fmt: skip


@case.broken()
def test_broken(case: Case) -> None:
    ran = check_broken(case)
    assert ran.error is None, "torch raises here by itself"


@case.broken()
def test_mended(case: Case) -> None:
    check_mended(case)


FINE = Cases()
FINE("", "data_written_beside_the_saved_bytes", """
    table = torch.ones(4, 3)
    x = torch.ones(3, requires_grad=True)
    y = (x * table[0]).sum()
    table.data[2] = 9
    y.backward()
    """)  # fmt: skip
FINE("", "old_style_updates_after_backward", """
    net = nn.Linear(3, 1)
    for _ in range(3):
        net(torch.ones(2, 3)).pow(2).sum().backward()
        for p in net.parameters():
            p.data.sub_(0.1 * p.grad.data)
            p.grad.data.zero_()
    """)  # fmt: skip
FINE("", "fused_step_after_backward", """
    net = nn.Linear(3, 1)
    opt = torch.optim.Adam(net.parameters(), fused=True)
    for _ in range(3):
        opt.zero_grad()
        net(torch.ones(2, 3)).pow(2).sum().backward()
        opt.step()
    """)  # fmt: skip
FINE("", "data_written_before_the_forward", """
    w = torch.ones(3, requires_grad=True)
    w.data.fill_(2)
    (w ** 2).sum().backward()
    """)  # fmt: skip
FINE("", "average_kept_by_data", """
    net, mean = nn.Linear(3, 1), nn.Linear(3, 1)
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        opt.zero_grad()
        loss = net(torch.ones(2, 3)).pow(2).sum()
        for p, m in zip(net.parameters(), mean.parameters()):
            m.data.lerp_(p.data, 0.1)
        loss.backward()
        opt.step()
    """)  # fmt: skip


@FINE.broken()
def test_nothing_is_said_of_writes_that_do_no_harm(case: Case) -> None:
    check_mended(case)
