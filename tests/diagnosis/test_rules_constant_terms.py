"""GX304 of a term that is a constant by itself: of `.data` of weights, or of a choice."""

from __future__ import annotations

import pytest
from cases import Case, Cases, check_broken, check_mended, run

case = Cases()

case(
    "GX304", "norm_of_the_data_of_each_weight", """
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    opt = torch.optim.SGD(net.parameters(), 0.1)
    def penalty(model, strength):
        total = 0.0
        for p in model.parameters():
            total = total + strength * p.data.norm(1)  #C
        return total
    for x in torch.rand(3, 5, 3):
        loss = net(x).pow(2).mean() + penalty(net, 0.01)  #V
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("p.data.norm(1)", "p.norm(1)"),
    text=("is a number: `.data`",), fix=("total = total + strength * p.norm(1)",),
)  # fmt: skip
case(
    "GX304", "orthogonality_of_a_weight_that_is_data", """
    class Projector(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 4))
        def forward(self, x):
            return x @ self.w.t()
        def regulariser(self):
            gram = self.w.data @ self.w.data.t()  #C
            return (gram - torch.eye(3)).square().sum()
    net = Projector()
    loss = net(torch.rand(5, 4)).square().mean()
    loss = loss + 0.5 * net.regulariser()  #V
    loss.backward()
    """,
    ("self.w.data @ self.w.data.t()", "self.w @ self.w.t()"),
)  # fmt: skip
case(
    "GX304", "smoothness_of_a_table_in_place", """
    table = nn.Embedding(6, 2)
    def objective(ids, y):
        loss = F.mse_loss(table(ids), y)
        rows = table.weight.data  #C
        loss += (rows[1:] - rows[:-1]).abs().sum()  #V
        return loss
    objective(torch.tensor([0, 3]), torch.zeros(2, 2)).backward()
    """,
    ("table.weight.data", "table.weight"),
)  # fmt: skip
case(
    "GX304", "penalty_of_labels_that_disagree", """
    net = nn.Linear(4, 6)
    def dependency(logits):
        first, second = logits[:, :3].argmax(1), logits[:, 3:].argmax(1)  #C
        return torch.where(first == second, 0.0, 1.0).sum()
    x, y = torch.rand(8, 4), torch.arange(8) % 6
    logits = net(x)
    loss = F.cross_entropy(logits, y) + 0.8 * dependency(logits)  #V
    loss.backward()
    """,
    ("logits[:, :3].argmax(1), logits[:, 3:].argmax(1)",
     "logits[:, :3].softmax(1), logits[:, 3:].softmax(1)"),
    ("torch.where(first == second, 0.0, 1.0).sum()", "(1 - (first * second).sum(1)).sum()"),
    text=("`argmax`", "has no derivative"),
)  # fmt: skip
case(
    "GX304", "count_of_open_gates", """
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gates, self.fc = nn.Parameter(torch.rand(4)), nn.Linear(4, 2)
        def forward(self, x):
            return self.fc(x * self.gates.sigmoid())
        def sparsity(self):
            return (self.gates > 0.5).float().sum()  #C
    net = Gated()
    for x in torch.rand(2, 5, 4):
        loss = net(x).pow(2).mean()
        loss = loss + 0.1 * net.sparsity()  #V
        loss.backward()
    """,
    ("(self.gates > 0.5).float().sum()", "self.gates.sigmoid().sum()"),
    text=("`>`",),
)  # fmt: skip
case(
    "GX304", "rounded_length_as_a_cost", """
    net = nn.Linear(3, 1)
    def cost(x):
        steps = net(x).exp()
        return steps.mean(), torch.floor(steps).long().float().mean()  #C
    fit, length = cost(torch.rand(5, 3))
    loss = fit - 0.2 * length  #V
    loss.backward()
    """,
    ("torch.floor(steps).long().float().mean()", "steps.mean()"),
)  # fmt: skip


@case.broken()
def test_broken(case: Case) -> None:
    assert check_broken(case).error is None


@case.broken()
def test_mended(case: Case) -> None:
    check_mended(case)


QUIET = {
    "proximal_term_to_a_snapshot": """
net = nn.Linear(3, 1)
start = [p.data.clone() for p in net.parameters()]
loss = net(torch.rand(4, 3)).pow(2).mean()
loss = loss + 0.1 * sum((p - s).pow(2).sum() for p, s in zip(net.parameters(), start))
loss.backward()
""",
    "linear_loss_beside_an_averaged_target": """
q, target = nn.Linear(3, 1), nn.Linear(3, 1)
for p, t in zip(q.parameters(), target.parameters()):
    t.requires_grad_(False)
    t.data.mul_(0.9).add_(p.data, alpha=0.1)
loss = q(torch.rand(4, 3)).mean() - target(torch.rand(4, 3)).mean()
loss.backward()
""",
    "scale_by_the_size_of_a_weight": """
net = nn.Linear(3, 1)
loss = net(torch.rand(4, 3)).pow(2).mean() * net.weight.data.norm() / net.bias.data.abs().sum()
loss.backward()
""",
    "spectral_scale_of_data": """
net = nn.Linear(3, 3)
sigma = torch.linalg.svdvals(net.weight.data)[0]
out = F.linear(torch.rand(4, 3), net.weight / sigma, net.bias)
(out.pow(2).mean() + out.mean()).backward()
""",
    "mean_over_what_was_chosen": """
net = nn.Linear(3, 4)
logits = net(torch.rand(6, 3))
sure = logits.softmax(1).amax(1) > 0.2
per_row = F.cross_entropy(logits, logits.argmax(1), reduction="none")
loss = (per_row * sure).sum() / sure.sum().clamp(min=1) + logits.pow(2).mean()
loss.backward()
""",
    "prior_of_what_was_drawn": """
enc, dec = nn.Linear(3, 4), nn.Embedding(4, 3)
x = torch.rand(6, 3)
q = torch.distributions.Categorical(logits=enc(x))
prior = torch.distributions.Categorical(logits=torch.zeros(4))
z = q.sample()
log_p = -(dec(z) - x).pow(2).sum(1)
elbo = log_p.mean() + prior.log_prob(z).mean()
score = (q.log_prob(z) * (log_p.detach() - q.log_prob(z).detach())).mean()
(-(elbo + score)).backward()
""",
    "averages_of_weights_looked_at": """
net, opt_lr = nn.Linear(3, 1), 0.1
for x in torch.rand(3, 4, 3):
    norm = sum(p.data.norm() for p in net.parameters())
    loss = net(x).pow(2).mean()
    net.zero_grad()
    loss.backward()
    for p in net.parameters():
        p.data.sub_(p.grad / norm, alpha=opt_lr)
""",
    "detached_term_for_the_log": """
net = nn.Linear(3, 1)
out = net(torch.rand(4, 3))
loss = out.pow(2).mean()
total = loss + 0.1 * net.weight.detach().norm()
total.backward()
""",
}


@pytest.mark.parametrize("name", QUIET)
def test_constants_that_are_meant(name: str) -> None:
    ran = run(QUIET[name].lstrip(), name)
    assert ran.error is None
    assert not ran.diagnoses, [*map(str, ran.diagnoses)]


@pytest.mark.parametrize("draw", ["torch.normal(mu, sd)", "torch.normal(mean=mu, std=sd)"])
def test_a_normal_draw_is_not_passed_straight_through(draw: str) -> None:
    """`mu + (draw - mu).detach()` would train nothing of the deviation."""
    text = (
        "mu, log_sd = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))\n"
        "sd, net = log_sd.exp(), nn.Linear(3, 1)\n"
        f"loss = net({draw}).pow(2).mean()\n"
        "loss.backward()\n"
    )
    found = run(text, "draws").diagnoses[0]
    assert found.code == "GX304"
    assert "`mean + std * torch.randn_like(std)` in place of the draw" in found.fix
    assert ".detach()" not in found.fix
