"""GX304: what is learned comes to the loss as a draw without a gradient, or as rounded in place."""

from __future__ import annotations

import textwrap

import pytest
from cases import Cases, named_and_mended, run

case = Cases()

# --- distributions --------------------------------------------------------------------------------

case(
    "GX304", "latent_of_an_autoencoder_by_sample", """
    from torch.distributions import Normal
    class Coder(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc, self.dec = nn.Linear(4, 4), nn.Linear(2, 4)
        def forward(self, x):
            mean, spread = self.enc(x).chunk(2, -1)
            z = Normal(mean, F.softplus(spread)).sample()  #C
            return self.dec(z)  #V
    net = Coder()
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for x in torch.rand(3, 6, 4):
        opt.zero_grad()
        F.mse_loss(net(x), x).backward()
        opt.step()
    """,
    (".sample()", ".rsample()"),
    text=("`net.enc.weight` and `net.enc.bias` get no gradient", "ends at `.sample()`"),
    fix=("Normal(mean, F.softplus(spread)).rsample()",),
)  # fmt: skip
case(
    "GX304", "gates_drawn_from_a_bernoulli", """
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits, self.body = nn.Parameter(torch.zeros(3)), nn.Linear(3, 1)
        def gates(self, rows):
            chance = torch.distributions.Bernoulli(logits=self.logits)
            return chance.sample((rows,))  #C
        def forward(self, x):
            return self.body(x * self.gates(len(x)))
    net = Gated()
    opt = torch.optim.Adam(net.parameters())
    for x in torch.rand(3, 6, 3):
        loss = net(x).pow(2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("return chance.sample((rows,))",
     "return torch.distributions.RelaxedBernoulli(torch.tensor(0.5), logits=self.logits)"
     ".rsample((rows,))"),
    text=("`net.logits` gets no gradient",), fix=("RelaxedBernoulli",),
)  # fmt: skip
case(
    "GX304", "bounds_of_a_uniform_in_a_library_class", """
    from torch import distributions as D
    class Jitter(nn.Module):
        def __init__(self):
            super().__init__()
            self.width = nn.Parameter(torch.tensor(0.5))
        def forward(self, x):
            noise = D.Independent(D.Uniform(-self.width, self.width), 0)
            return x + noise.sample(x.shape)  #C
    jitter, head = Jitter(), nn.Linear(3, 1)
    opt = torch.optim.SGD([*jitter.parameters(), *head.parameters()], 0.1)
    for x in torch.rand(3, 4, 3):
        opt.zero_grad()
        head(jitter(x)).pow(2).mean().backward()  #V
        opt.step()
    """,
    ("noise.sample(", "noise.rsample("),
    text=("`jitter.width` gets no gradient", "`.sample()`"), fix=("noise.rsample(x.shape)",),
)  # fmt: skip
case(
    "GX304", "expert_of_a_categorical", """
    from torch.distributions import Categorical
    gate, experts = nn.Linear(3, 4), nn.Embedding(4, 3)
    opt = torch.optim.SGD([*gate.parameters(), *experts.parameters()], 0.1)
    def route(x):
        return Categorical(logits=gate(x)).sample()  #C
    for x in torch.rand(3, 5, 3):
        loss = (experts(route(x)) * x).sum(-1).pow(2).mean()  #V
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("Categorical(logits=gate(x)).sample()", "F.gumbel_softmax(gate(x), hard=True)"),
    ("experts(route(x))", "(route(x) @ experts.weight)"),
    text=("`gate.weight` and `gate.bias` get no gradient",), fix=("gumbel_softmax", "log_prob"),
)  # fmt: skip
case(
    "GX304", "normal_of_moments_in_a_block_of_its_own", """
    policy, critic = nn.Linear(3, 2), nn.Linear(4, 1)
    opt = torch.optim.SGD([*policy.parameters(), *critic.parameters()], 0.1)
    def act(s):
        mean, log_std = policy(s).chunk(2, -1)
        with torch.no_grad():
            return torch.normal(mean, log_std.exp())  #C
    for s in torch.rand(3, 5, 3):
        loss = -critic(torch.cat([s, act(s)], -1)).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("    with torch.no_grad():\n        return torch.normal(mean, log_std.exp())",
     "    return mean + log_std.exp() * torch.randn_like(mean)"),
    text=("`policy.weight` and `policy.bias` get no gradient", "`normal`"), fix=("randn_like",),
)  # fmt: skip

# --- in place -------------------------------------------------------------------------------------

case(
    "GX304", "activations_rounded_in_place", """
    class Quantised(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 1)
        def forward(self, x):
            h = self.inner(x) * 7
            h.round_()  #C
            return self.outer(h / 7)
    net = Quantised()
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for x in torch.rand(3, 5, 3):
        opt.zero_grad()
        net(x).pow(2).mean().backward()
        opt.step()
    """,
    ("h.round_()", "h = h + (h.round() - h).detach()"),
    text=("`net.inner.weight` and `net.inner.bias` get a gradient of zero", "`round_`"),
    fix=("h + (h.round() - h).detach()",),
)  # fmt: skip
case(
    "GX304", "codes_by_sign_in_a_chain", """
    hasher, head = nn.Linear(4, 8), nn.Linear(8, 2)
    opt = torch.optim.Adam([*hasher.parameters(), *head.parameters()])
    def codes(x):
        h = hasher(x)
        return h.sign_()  #C
    for x in torch.rand(3, 6, 4):
        loss = F.cross_entropy(head(codes(x)), torch.zeros(6, dtype=torch.long))
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("h.sign_()", "h + (h.sign() - h).detach()"),
    text=("`hasher.weight`", "`sign_`"), fix=("`return h + (h.sign() - h).detach()`",),
)  # fmt: skip
case(
    "GX304", "spikes_by_a_comparison_in_place", """
    cells, read = nn.Linear(3, 4), nn.Linear(4, 1)
    opt = torch.optim.SGD([*cells.parameters(), *read.parameters()], 0.1)
    for x in torch.rand(3, 5, 3):
        v = cells(x)
        v.ge_(0.1)  #C
        opt.zero_grad()
        read(v).pow(2).mean().backward()  #V
        opt.step()
    """,
    ("v.ge_(0.1)", "v = torch.sigmoid(5 * (v - 0.1))"),
    text=("`cells.weight`", "`ge_`"), fix=("v = v + (v.ge(0.1).type_as(v) - v).detach()",),
)  # fmt: skip


test_the_line_is_named, test_the_mended_script_is_silent = named_and_mended(case)


SILENT = {
    "score_of_what_was_drawn": """
    from torch.distributions import Categorical
    policy = nn.Linear(3, 4)
    opt = torch.optim.SGD(policy.parameters(), 0.1)
    for s in torch.rand(3, 5, 3):
        dist = Categorical(logits=policy(s))
        act = dist.sample()
        opt.zero_grad()
        (-dist.log_prob(act) * act.float()).mean().backward()
        opt.step()
    """,
    "continuous_actions_whose_value_another_loss_learns": """
    from torch.distributions import Normal
    actor, critic = nn.Linear(3, 1), nn.Linear(4, 1)
    opt_a, opt_c = (torch.optim.SGD(m.parameters(), 0.1) for m in (actor, critic))
    for s in torch.rand(3, 5, 3):
        dist = Normal(actor(s), 0.2)
        act = dist.sample()
        value = critic(torch.cat([s, act], -1))
        opt_c.zero_grad()
        F.mse_loss(value, torch.ones(5, 1)).backward()
        opt_c.step()
        opt_a.zero_grad()
        (-dist.log_prob(act) * value.detach()).mean().backward()
        opt_a.step()
    """,
    "rollout_under_no_grad_and_a_surrogate": """
    from torch.distributions import Normal
    policy = nn.Linear(3, 1)
    opt = torch.optim.SGD(policy.parameters(), 0.1)
    for s in torch.rand(3, 5, 3):
        with torch.no_grad():
            before = Normal(policy(s), 0.5)
            act = before.sample()
            old = before.log_prob(act)
        for _ in range(2):
            ratio = (Normal(policy(s), 0.5).log_prob(act) - old).exp()
            opt.zero_grad()
            (-ratio * act.pow(2)).mean().backward()
            opt.step()
    """,
    "prior_and_noise_of_constants": """
    from torch.distributions import Normal, Bernoulli
    net = nn.Linear(3, 3)
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for x in torch.rand(3, 5, 3):
        noisy = x * Bernoulli(torch.full_like(x, 0.5)).sample() + Normal(0.0, 0.1).sample(x.shape)
        opt.zero_grad()
        F.mse_loss(net(noisy), x).backward()
        opt.step()
    """,
    "frozen_teacher_that_draws": """
    teacher, student = nn.Linear(3, 2), nn.Linear(3, 2)
    opt = torch.optim.SGD(student.parameters(), 0.1)
    for x in torch.rand(3, 5, 3):
        label = torch.distributions.Categorical(logits=teacher(x)).sample()
        opt.zero_grad()
        F.cross_entropy(student(x), label).backward()
        opt.step()
    """,
    "contrastive_divergence": """
    class Machine(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.b = nn.Parameter(torch.randn(4, 3) * 0.1), nn.Parameter(torch.zeros(3))
        def energy(self, v):
            return -F.softplus(v @ self.w + self.b).sum(-1).mean()
        def gibbs(self, v):
            h = torch.bernoulli(torch.sigmoid(v @ self.w + self.b))
            return torch.bernoulli(torch.sigmoid(h @ self.w.t()))
    net = Machine()
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for v in torch.bernoulli(torch.rand(3, 6, 4)):
        opt.zero_grad()
        (net.energy(v) - net.energy(net.gibbs(v).detach())).backward()
        opt.step()
    """,
    "straight_through_by_round_in_place": """
    net = nn.Linear(3, 3)
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for x in torch.rand(3, 5, 3):
        h = net(x)
        q = h.clone().round_()
        opt.zero_grad()
        (h + (q - h).detach()).pow(2).mean().backward()
        opt.step()
    """,
    "targets_rounded_in_place": """
    net = nn.Linear(3, 1)
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for x in torch.rand(3, 5, 3):
        y = x.sum(-1, keepdim=True).mul_(4).round_()
        opt.zero_grad()
        F.mse_loss(net(x), y).backward()
        opt.step()
    """,
}


@pytest.mark.parametrize("name", SILENT)
def test_draws_and_steps_that_are_meant(name: str) -> None:
    ran = run(textwrap.dedent(SILENT[name]).lstrip("\n"), name)
    assert ran.error is None
    assert ran.diagnoses == []
