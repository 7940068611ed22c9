"""GX101's help where an optimizer stepped between: all that is to run again is told, and runs."""

from __future__ import annotations

from textwrap import dedent

import pytest
from cases import run

GAN = """
    torch.manual_seed(0)
    G, D = nn.Linear(4, 2), nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    og = torch.optim.SGD(G.parameters(), 1e-3)
    od = torch.optim.SGD(D.parameters(), 1e-3)
    bce = nn.BCEWithLogitsLoss()
    for step in range(2):
        fake = G(torch.randn(16, 4))
        d_fake = D(fake)
        d_loss = bce(d_fake, torch.zeros(16, 1))
        g_loss = bce(d_fake, torch.ones(16, 1))
        od.zero_grad()
        d_loss.backward(retain_graph=True)
        od.step()
        og.zero_grad()
        g_loss.backward()
        og.step()
    """
SUM = """
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    opt = torch.optim.SGD(net.parameters(), 0.1)
    def train(x):
        out = net(x)
        a = out.mean()
        total = a * 2
        opt.zero_grad()
        a.backward(retain_graph=True)
        opt.step()
        opt.zero_grad()
        total.backward()
        opt.step()
    train(torch.randn(4, 3))
    """
LOOP = """
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    opt = torch.optim.SGD(net.parameters(), 0.1)
    out = net(torch.randn(4, 3))
    losses = []
    for k in range(2):
        losses.append((out - k).pow(2).mean())
    total = sum(losses)
    out.mean().backward(retain_graph=True)
    opt.step()
    opt.zero_grad()
    total.backward()
    """
METHOD = """
    torch.manual_seed(0)
    class Trainer:
        def __init__(self):
            self.actor, self.critic = nn.Linear(4, 2), nn.Linear(2, 1)
            self.opt = torch.optim.SGD(self.critic.parameters(), 1e-3)
        def losses(self, s):
            q = self.critic(self.actor(s))
            return (q - 1).pow(2).mean(), -q.mean()
        def update(self, s):
            of_critic, of_actor = self.losses(s)
            of_critic.backward(retain_graph=True)
            self.opt.step()
            self.opt.zero_grad()
            of_actor.backward()
    Trainer().update(torch.randn(5, 4))
    """
PROGRAMS = {
    "of_a_gan": (
        GAN,
        ("`d_fake = D(fake)`", "`g_loss = bce(d_fake, torch.ones(16, 1))`", "again after it"),
        ("d_loss =", "fake = G("),
        ("og.zero_grad()", "d_fake = D(fake); g_loss = bce(d_fake, torch.ones(16, 1))"),
    ),
    "of_a_sum": (
        SUM,
        ("`out = net(x)`", "`a = out.mean()`", "`total = a * 2`", "again after it"),
        ("move `opt.step()`",),  # zero_grad() would take away what it steps along
        ("total.backward()", "out = net(x); a = out.mean(); total = a * 2"),
    ),
    "of_a_loop": (
        LOOP,
        ("all that leads from `out = net(torch.randn(4, 3))`", "line 9"),
        (),
        ("total.backward()", "out = net(torch.randn(4, 3)); total = sum([out.mean()])"),
    ),
    "of_a_method": (
        METHOD,
        ("`of_critic, of_actor = self.losses(s)`", "again after it"),
        (),
        ("of_actor.backward()", "of_critic, of_actor = self.losses(s)"),
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_all_that_is_to_run_again_is_told(name: str) -> None:
    source, words, never, (line, again) = PROGRAMS[name]
    ran = run(dedent(source), name)
    assert ran.diagnoses[0].code == "GX101", ran.error
    fix = ran.diagnoses[0].fix.replace(f"{name}.py:", "line ")
    for word in words:
        assert word in fix, fix
    for word in never:
        assert word not in fix, fix
    at = source.index(line, source.index("step()\n"))
    mended = run(dedent(source[:at] + again + "; " + source[at:]), f"{name}_mended")
    assert mended.error is None
    assert mended.diagnoses == []


def test_the_later_backward_keeps_out_of_the_gradients_of_the_earlier_step() -> None:
    fix = run(dedent(GAN), "gan_moved").diagnoses[0].fix
    own = "inputs=[p for g in og.param_groups for p in g['params']]"
    assert f"as `g_loss.backward({own})`" in fix, fix
    text = dedent(GAN).replace("    od.step()\n", "")
    text = text.replace("g_loss.backward()", f"g_loss.backward({own})\n    od.step()")
    mended = run(text, "gan_moved_mended")
    assert (mended.error, mended.diagnoses) == (None, [])
