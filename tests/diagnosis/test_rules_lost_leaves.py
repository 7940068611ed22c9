"""GX304: what is trained comes to the loss as a number of Python's, a copy, or a new parameter."""

from __future__ import annotations

import textwrap

import pytest
from cases import Case, Cases, check_broken, check_mended, run

case = Cases()

# --- numbers that Python computes with ------------------------------------------------------------

case(
    "GX304", "index_by_a_learned_position", """
    class Pick(nn.Module):
        def __init__(self):
            super().__init__()
            self.at, self.table = nn.Parameter(torch.tensor(2.4)), nn.Parameter(torch.randn(6, 3))
        def forward(self, x):
            k = int(self.at)  #C
            return (x * self.table[k]).sum(-1)  #V
    net = Pick()
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for x in torch.rand(3, 5, 3):
        opt.zero_grad()
        net(x).pow(2).mean().backward()
        opt.step()
    """,
    ("k = int(self.at)", "w = torch.softmax(-(torch.arange(6.0) - self.at) ** 2, 0)"),
    ("self.table[k]", "(w @ self.table)"),
    text=("`net.at` gets no gradient", "`int()`"), fix=("a size or an index",),
)  # fmt: skip
case(
    "GX304", "size_of_a_pooling_window", """
    width, head = nn.Parameter(torch.tensor(2.6)), nn.Linear(4, 1)
    opt = torch.optim.Adam([width, *head.parameters()])
    def pooled(x):
        size = max(1, round(width.item()))  #C
        return F.avg_pool1d(x[:, None], size, 1)[:, 0, :4]
    for x in torch.rand(3, 5, 8):
        loss = head(pooled(x)).pow(2).mean()  #V
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("size = max(1, round(width.item()))",
     "w = torch.softmax(-(torch.arange(8.0)[:, None] - torch.arange(4.0)) ** 2 / width, 0)"),
    ("F.avg_pool1d(x[:, None], size, 1)[:, 0, :4]", "x @ w"),
    text=("`width` gets no gradient",), fix=("a size or an index",),
)  # fmt: skip
case(
    "GX304", "factor_that_is_a_float", """
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.log_scale = nn.Linear(3, 3), nn.Parameter(torch.tensor(0.7))
        def forward(self, x):
            scale = min(float(self.log_scale.exp()), 50.0)  #C
            return scale * self.body(x)  #V
    net = Scaled()
    opt = torch.optim.SGD(net.parameters(), 0.01)
    for x in torch.rand(2, 4, 3):
        opt.zero_grad()
        net(x).pow(2).mean().backward()
        opt.step()
    """,
    ("min(float(self.log_scale.exp()), 50.0)", "self.log_scale.exp().clamp(max=50.0)"),
    text=("`net.log_scale` gets no gradient", "`float()`"),
)  # fmt: skip
case(
    "GX304", "mixture_weights_as_a_list", """
    weights = nn.Parameter(torch.zeros(3))
    layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    opt = torch.optim.SGD([weights, *layers.parameters()], 0.1)
    def mixed(x):
        parts = weights.softmax(0).tolist()  #C
        return sum(p * layer(x) for p, layer in zip(parts, layers))  #V
    for x in torch.rand(3, 4, 2):
        opt.zero_grad()
        mixed(x).pow(2).mean().backward()
        opt.step()
    """,
    ("weights.softmax(0).tolist()", "weights.softmax(0)"),
    text=("`weights` gets no gradient", "`.tolist()`"),
)  # fmt: skip
case(
    "GX304", "constant_of_a_helper_object", """
    class Ball:
        def __init__(self, c):
            self.c = float(c)  #C
        def project(self, v):
            return torch.tanh(self.c * v)
    curvature, lin = nn.Parameter(torch.tensor(1.3)), nn.Linear(3, 2)
    opt = torch.optim.SGD([curvature, *lin.parameters()], 0.1)
    for x in torch.rand(2, 4, 3):
        loss = Ball(curvature).project(lin(x)).pow(2).sum()
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("self.c = float(c)", "self.c = c"),
    text=("`curvature` gets no gradient",),
)  # fmt: skip

# --- copies ---------------------------------------------------------------------------------------

case(
    "GX304", "matrix_of_learned_numbers", """
    angle, shift = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.zeros(2))
    opt = torch.optim.SGD([angle, shift], 0.1)
    def rotation():
        c, s = angle.cos(), angle.sin()
        return torch.tensor([[c, -s], [s, c]])  #C
    for x in torch.rand(3, 5, 2):
        opt.zero_grad()
        (x @ rotation().T + shift).pow(2).mean().backward()  #V
        opt.step()
    """,
    ("torch.tensor([[c, -s], [s, c]])",
     "torch.stack([torch.stack([c, -s]), torch.stack([s, c])])"),
    text=("rebuilt from numbers", "`torch.tensor()`"),
)  # fmt: skip
case(
    "GX304", "matrix_of_the_old_constructor", """
    net, out = nn.Linear(3, 2), nn.Linear(2, 1)
    opt = torch.optim.SGD([*net.parameters(), *out.parameters()], 0.1)
    for x in torch.rand(3, 4, 3):
        a = net(x).mean(0)
        mixed = torch.Tensor([[a[0], 0.0], [0.0, a[1]]])  #C
        opt.zero_grad()
        out(torch.rand(5, 2) @ mixed).pow(2).mean().backward()  #V
        opt.step()
    """,
    ("torch.Tensor([[a[0], 0.0], [0.0, a[1]]])", "torch.diag(a)"),
    text=("`net.weight`", "`torch.Tensor()`"),
)  # fmt: skip
case(
    "GX304", "list_of_auxiliary_losses", """
    gates = nn.ModuleList(nn.Linear(3, 2) for _ in range(2))
    opt = torch.optim.SGD(gates.parameters(), 0.1)
    for x in torch.rand(3, 6, 3):
        outs = [g(x).softmax(-1) for g in gates]
        balance = torch.tensor([o.mean(0).square().sum() for o in outs]).mean()  #C
        loss = sum(o[:, 0].pow(2).mean() for o in outs) + 0.1 * balance  #V
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("torch.tensor([o.mean(0).square().sum() for o in outs])",
     "torch.stack([o.mean(0).square().sum() for o in outs])"),
    text=("`torch.tensor()`",),
)  # fmt: skip
case(
    "GX304", "scores_of_draws_as_a_tensor", """
    policy, value = nn.Linear(3, 2), nn.Linear(3, 1)
    opt = torch.optim.SGD([*policy.parameters(), *value.parameters()], 0.1)
    for x in torch.rand(2, 5, 3):
        scores, rewards = [], []
        for state in x:
            chosen = torch.distributions.Categorical(logits=policy(state))
            action = chosen.sample()
            scores.append(chosen.log_prob(action))
            rewards.append(action.item() - 0.25)
        off = torch.tensor(rewards) - value(x).squeeze(1)
        loss = -(torch.tensor(scores) * off.detach()).mean() + off.pow(2).mean()  #C
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("torch.tensor(scores)", "torch.stack(scores)"),
    text=("`torch.tensor()`",),
)  # fmt: skip

# --- leaves that were made of a value -------------------------------------------------------------

case(
    "GX304", "parameter_made_of_a_generated_weight", """
    make, main = nn.Linear(3, 4), nn.Linear(2, 2, bias=False)
    opt = torch.optim.SGD(make.parameters(), 0.1)
    for code in torch.rand(3, 3):
        main.weight = nn.Parameter(make(code).view(2, 2))  #C
        opt.zero_grad()
        main(torch.rand(5, 2)).pow(2).mean().backward()  #V
        opt.step()
    """,
    ("main.weight = nn.Parameter(make(code).view(2, 2))", "w = make(code).view(2, 2)"),
    ("main(torch.rand(5, 2))", "F.linear(torch.rand(5, 2), w)"),
    text=("`make.weight`", "`nn.Parameter()`"), fix=("functional_call",),
)  # fmt: skip
case(
    "GX304", "generated_weight_as_data", """
    class Dynamic(nn.Module):
        def __init__(self):
            super().__init__()
            self.make, self.conv = nn.Linear(2, 3), nn.Conv1d(1, 1, 3)
        def forward(self, x, condition):
            self.conv.weight.data = self.make(condition).view(1, 1, 3)  #C
            return self.conv(x)
    net = Dynamic()
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for condition in torch.rand(2, 2):
        opt.zero_grad()
        net(torch.rand(2, 1, 5), condition).pow(2).mean().backward()  #V
        opt.step()
    """,
    ("self.conv.weight.data = self.make(condition).view(1, 1, 3)",
     "kernel = self.make(condition).view(1, 1, 3)"),
    ("self.conv(x)", "F.conv1d(x, kernel, self.conv.bias)"),
    text=("`net.make.weight`", "`.data =`"),
)  # fmt: skip
case(
    "GX304", "latent_made_a_leaf_between_two_nets", """
    enc, dec = nn.Linear(4, 2), nn.Linear(2, 4)
    opt = torch.optim.SGD([*enc.parameters(), *dec.parameters()], 0.1)
    for x in torch.rand(3, 5, 4):
        z = torch.tensor(enc(x).tolist(), requires_grad=True)  #C
        opt.zero_grad()
        (dec(z) - x).pow(2).mean().backward()  #V
        opt.step()
    """,
    ("torch.tensor(enc(x).tolist(), requires_grad=True)", "enc(x)"),
    text=("`enc.weight`",),
)  # fmt: skip

# --- draws and ranks ------------------------------------------------------------------------------

case(
    "GX304", "latent_drawn_by_normal", """
    mean, spread, dec = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(2, 3)
    opt = torch.optim.SGD([*mean.parameters(), *spread.parameters(), *dec.parameters()], 0.1)
    for x in torch.rand(3, 4, 3):
        z = torch.normal(mean(x), spread(x).exp())  #C
        opt.zero_grad()
        (dec(z) - x).pow(2).mean().backward()  #V
        opt.step()
    """,
    ("torch.normal(mean(x), spread(x).exp())",
     "mean(x) + spread(x).exp() * torch.randn(4, 2)"),
    text=("gradient of zero", "`normal`"),
)  # fmt: skip
case(
    "GX304", "gate_drawn_by_bernoulli", """
    gate, body = nn.Linear(3, 3), nn.Linear(3, 3)
    opt = torch.optim.SGD([*gate.parameters(), *body.parameters()], 0.1)
    def forward(x):
        keep = torch.bernoulli(gate(x).sigmoid())  #C
        return x + keep * body(x)
    for x in torch.rand(3, 4, 3):
        opt.zero_grad()
        forward(x).pow(2).mean().backward()  #V
        opt.step()
    """,
    ("keep = torch.bernoulli(gate(x).sigmoid())",
     "p = gate(x).sigmoid(); keep = torch.bernoulli(p).detach() + p - p.detach()"),
    text=("gradient of zero", "`bernoulli`"),
)  # fmt: skip
case(
    "GX304", "loss_of_ranks_as_a_term", """
    net, scale = nn.Linear(3, 1), nn.Parameter(torch.ones(1))
    opt = torch.optim.SGD([*net.parameters(), scale], 0.1)
    def ranks(x):
        return x.argsort().argsort().float()  #C
    for x in torch.rand(3, 6, 3):
        off = ranks(net(x).squeeze(1)) - torch.arange(6.0)
        loss = scale.pow(2).sum() + off.pow(2).mean()  #V
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("x.argsort().argsort().float()", "torch.sigmoid(9 * (x[:, None] - x)).sum(1)"),
    text=("`net.weight`", "`sort`"),
)  # fmt: skip


@case.broken()
def test_broken(case: Case) -> None:
    ran = check_broken(case)
    assert ran.error is None
    assert {(d.code, d.severity) for d in ran.diagnoses} == {("GX304", "warning")}
    assert len({d.key() for d in ran.diagnoses}) == 1  # one root cause, one warning


@case.broken()
def test_mended(case: Case) -> None:
    check_mended(case)


SILENT = {
    "numbers_that_are_printed": """
    net, log_alpha = nn.Linear(3, 2), nn.Parameter(torch.tensor(0.3))
    opt = torch.optim.SGD([*net.parameters(), log_alpha], 0.1)
    shown = []
    for x in torch.rand(4, 5, 3):
        loss = net(x).pow(2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        shown.append((loss.item(), log_alpha.exp().item()))
    """,
    "temperature_with_a_loss_of_its_own": """
    actor, log_alpha = nn.Linear(3, 2), nn.Parameter(torch.tensor(0.3))
    opt, opt_alpha = torch.optim.SGD(actor.parameters(), 0.1), torch.optim.SGD([log_alpha], 0.1)
    for x in torch.rand(4, 5, 3):
        alpha = log_alpha.exp().item()
        entropy = -(actor(x).softmax(-1) * actor(x).log_softmax(-1)).sum(-1).mean()
        opt.zero_grad()
        (actor(x).pow(2).mean() - alpha * entropy).backward()
        opt.step()
        opt_alpha.zero_grad()
        (log_alpha * entropy.detach()).backward()
        opt_alpha.step()
    """,
    "codebook_started_from_the_encoder": """
    class Coder(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc, self.dec = nn.Linear(3, 2), nn.Linear(2, 3)
            self.book = nn.Parameter(self.enc(torch.rand(4, 3)))
        def forward(self, x):
            z = self.enc(x)
            near = torch.cdist(z, self.book).argmin(1)
            q = self.book[near]
            return self.dec(z + (q - z).detach()), (q - z.detach()).pow(2).mean()
    net = Coder()
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for x in torch.rand(3, 5, 3):
        out, commit = net(x)
        opt.zero_grad()
        ((out - x).pow(2).mean() + commit).backward()
        opt.step()
    """,
    "soft_update_through_data": """
    import copy
    online = nn.Linear(3, 2)
    target = copy.deepcopy(online)
    opt = torch.optim.SGD(online.parameters(), 0.1)
    for x in torch.rand(3, 5, 3):
        loss = (online(x) - target(x).detach()).pow(2).mean() + target(x).mean() * 0
        opt.zero_grad()
        loss.backward()
        opt.step()
        for p, q in zip(online.parameters(), target.parameters()):
            q.data.copy_(0.9 * q + 0.1 * p)
    """,
    "policy_that_draws_and_learns_by_its_score": """
    policy = nn.Linear(3, 2)
    critic = nn.Linear(4, 1)
    opt = torch.optim.SGD([*policy.parameters(), *critic.parameters()], 0.1)
    for s in torch.rand(3, 5, 3):
        mu, spread = policy(s).chunk(2, -1)
        chosen = torch.distributions.Normal(mu, spread.exp())
        action = chosen.sample()
        value = critic(torch.cat([s, action], -1))
        opt.zero_grad()
        (value.pow(2).mean() - (chosen.log_prob(action) * value.detach()).mean()).backward()
        opt.step()
    """,
    "learned_size_under_no_grad": """
    width, net = nn.Parameter(torch.tensor(2.7)), nn.Linear(3, 1)
    opt = torch.optim.SGD([width, *net.parameters()], 0.1)
    for x in torch.rand(3, 5, 6):
        with torch.no_grad():
            k = int(width)
        loss = net(x[:, k:k + 3]).pow(2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    "statistic_of_what_was_detached_for_it": """
    net = nn.Linear(3, 2)
    opt = torch.optim.SGD(net.parameters(), 0.1)
    def spread(values):
        return torch.from_numpy(values.numpy().std(0)).sum()
    for x in torch.rand(3, 5, 3):
        out = net(x)
        loss = out.pow(2).mean() + spread(out.detach())
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    "actions_of_another_agent": """
    one, two = nn.Linear(3, 2), nn.Linear(3, 2)
    opt = torch.optim.SGD([*one.parameters(), *two.parameters()], 0.1)
    for x in torch.rand(3, 4, 3):
        action = two(x).argmax(-1).tolist()
        state = x + torch.tensor(action)[:, None] * 0.25
        loss = one(state.round(decimals=1)).pow(2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    two(torch.rand(4, 3)).pow(2).mean().backward()
    """,
}


@pytest.mark.parametrize("name", SILENT)
def test_silent(name: str) -> None:
    ran = run(textwrap.dedent(SILENT[name]).lstrip("\n"), f"lost-leaves-{name}")
    assert ran.error is None
    assert ran.diagnoses == []


# CPython gives a line another place in its bytecode once it has run it eight times: each of these
# goes on for longer than that.
LOOPS = {
    "float": ("nn.Linear(3, 3)", "float(a.exp()) * net(x)"),
    "size": ("nn.Linear(2, 3)", "net(x[:, : 1 + round(a.item() + 0.3)])"),
    "list": ("nn.Linear(3, 3)", "sum(net(x) * v for v in a.exp()[None].tolist())"),
    "copy": ("nn.Linear(3, 3)", "torch.tensor([a.exp().item(), 0.3]).sum() * net(x)"),
}


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("rounds", [3, 9, 24])
def test_it_is_counted_in_each_round(name: str, rounds: int) -> None:
    net, loss = LOOPS[name]
    text = f"""
    a, net = nn.Parameter(torch.tensor(0.7)), {net}
    opt = torch.optim.SGD([a, *net.parameters()], 0.01)
    def loss_of(x):
        return ({loss}).pow(2).mean()
    for x in torch.rand({rounds}, 4, 3):
        opt.zero_grad()
        loss_of(x).backward()
        opt.step()
    """
    ran = run(textwrap.dedent(text).lstrip("\n"), f"lost-leaves-{name}-{rounds}")
    assert [d.code for d in ran.diagnoses] == ["GX304"] * rounds
