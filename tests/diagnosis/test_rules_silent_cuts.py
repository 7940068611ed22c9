"""GX304: nothing is raised, and a value that should carry a gradient does not."""

from __future__ import annotations

from cases import Case, Cases, check_broken, check_mended

case = Cases()

# --- a loss that was made a leaf ------------------------------------------------------------------

case(
    "GX304", "loss_rebuilt_with_requires_grad", """
    class Trainer:
        def __init__(self):
            self.net = nn.Linear(2, 1)
            self.opt = torch.optim.SGD(self.net.parameters(), 0.1)
        def step(self, batches):
            losses = []
            for x in batches:
                losses.append(self.net(x).pow(2).mean().item())  #C
            loss = torch.tensor(sum(losses), requires_grad=True)  #V
            self.opt.zero_grad()
            loss.backward()
            self.opt.step()
    Trainer().step(list(torch.ones(3, 1, 2)))
    """,
    (".mean().item()", ".mean()"), ("torch.tensor(sum(losses), requires_grad=True)", "sum(losses)"),
    text=("`loss` trains nothing",),
)  # fmt: skip
case(
    "GX304", "variable_style_leaf", """
    from torch.autograd import Variable
    def contrastive(a, b):
        d = (a - b).pow(2).sum(1)
        return Variable(d.mean().data, requires_grad=True)  #CV
    net = nn.Linear(2, 2)
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for x in torch.ones(2, 3, 2):
        opt.zero_grad()
        loss = contrastive(net(x), net(x + 1))
        loss.backward()  #V
        opt.step()
    """,
    ("Variable(d.mean().data, requires_grad=True)", "d.mean()"),
    text=("`.data`",), fix=(":4", "`return d.mean()`"),
)  # fmt: skip
case(
    "GX304", "requires_grad_set_to_stop_an_error", """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 3)
        def forward(self, x):
            return self.fc(x).argmax(1)  #C
    net = Net()
    def step(x, y):
        pred = net(x).float()
        loss = F.l1_loss(pred, y)
        loss.requires_grad_()  #V
        loss.backward()
    step(torch.ones(2, 2), torch.tensor([0.0, 1.0]))
    """,
    ("return self.fc(x).argmax(1)", "return self.fc(x)[:, 0]"),
    ("    loss.requires_grad_()\n", ""),
    text=("argmax",), fix=("`loss.requires_grad_()`",),
)  # fmt: skip
case(
    "GX304", "tensor_of_the_loss_again", """
    net = nn.Linear(2, 1)
    def criterion(x, y):
        loss = F.mse_loss(net(x), y)
        return torch.tensor(loss.item(), requires_grad=True)  #CV
    for _ in range(2):
        criterion(torch.ones(1, 2), torch.zeros(1, 1)).backward()  #V
    """,
    ("torch.tensor(loss.item(), requires_grad=True)", "loss"),
    fix=(":4",),
)  # fmt: skip
case(
    "GX304", "no_grad_loss_made_a_leaf", """
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 1)
        @torch.no_grad()
        def score(self, x):
            return self.fc(x).mean()  #C
    model = Model()
    for x in torch.ones(2, 1, 2):
        loss = model.score(x)
        loss.requires_grad = True  #V
        loss.backward()
    """,
    ("    @torch.no_grad()\n", ""), ("    loss.requires_grad = True\n", ""),
    fix=("`loss.requires_grad = True`",),
)  # fmt: skip
case(
    "GX304", "intermediate_rebuilt_from_numpy", """
    import numpy as np
    def smooth(features):
        kernel = np.array([0.25, 0.5, 0.25])
        rows = [np.convolve(r, kernel, "same") for r in features.detach().numpy()]  #C
        return torch.tensor(np.stack(rows)).float().requires_grad_()  #V
    encoder = nn.Linear(3, 4)
    opt = torch.optim.SGD(encoder.parameters(), 0.1)
    def step(x, y):
        h = smooth(encoder(x))
        loss = F.mse_loss(h * 2, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
    step(torch.ones(2, 3), torch.zeros(2, 4))
    """,
    ("features.detach().numpy()", "[features]"),
    ("[np.convolve(r, kernel, \"same\") for r in [features]]", "[features]"),
    ("torch.tensor(np.stack(rows)).float().requires_grad_()", "torch.stack(rows)[0]"),
    fix=(":4",),
)  # fmt: skip
case(
    "GX304", "logits_through_a_list_and_a_decoder", """
    encoder, decoder = nn.Linear(2, 3), nn.Linear(3, 1)
    decoder.requires_grad_(False)
    opt = torch.optim.Adam(encoder.parameters())
    def encode(x):
        codes = []
        for row in encoder(x):
            codes.append(row.tolist())  #C
        return torch.tensor(codes, requires_grad=True)  #V
    for x in torch.ones(2, 4, 2):
        opt.zero_grad()
        loss = decoder(encode(x)).pow(2).mean()
        loss.backward()
        opt.step()
    """,
    ("row.tolist()", "row"), ("torch.tensor(codes, requires_grad=True)", "torch.stack(codes)"),
)  # fmt: skip

# --- terms that are constants ---------------------------------------------------------------------

case(
    "GX304", "gradient_penalty_without_create_graph", """
    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        def forward(self, x):
            return self.net(x)
    def gradient_penalty(critic, real, fake):
        alpha = torch.rand(len(real), 1)
        mixed = (alpha * real + (1 - alpha) * fake).requires_grad_()
        score = critic(mixed)
        grads = torch.autograd.grad(score.sum(), mixed, retain_graph=True)[0]  #C
        return ((grads.norm(2, dim=1) - 1) ** 2).mean()
    critic = Critic()
    opt = torch.optim.Adam(critic.parameters())
    for _ in range(2):
        real, fake = torch.ones(3, 2), torch.zeros(3, 2)
        loss = critic(fake).mean() - critic(real).mean() + 10 * gradient_penalty(critic, real, fake)
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("retain_graph=True", "create_graph=True"),
    text=("create_graph",), fix=("`create_graph=True`", ":11"),
)  # fmt: skip
case(
    "GX304", "r1_penalty_on_its_own_line", """
    disc = nn.Sequential(nn.Linear(2, 3), nn.Softplus(), nn.Linear(3, 1))
    def r1(scores, real):
        (g,) = torch.autograd.grad(outputs=scores.sum(), inputs=real, retain_graph=True)  #C
        return g.pow(2).flatten(1).sum(1).mean()
    real = torch.ones(2, 2, requires_grad=True)
    scores = disc(real)
    loss = F.softplus(-scores).mean()
    loss = loss + 0.5 * r1(scores, real)
    loss.backward()
    """,
    ("retain_graph=True", "create_graph=True"),
    fix=("create_graph=True",),
)  # fmt: skip
case(
    "GX304", "irm_penalty", """
    def irm_penalty(logits, y):
        scale = torch.tensor(1.0, requires_grad=True)
        loss = F.binary_cross_entropy_with_logits(logits * scale, y)
        grad = torch.autograd.grad(loss, [scale], retain_graph=True)[0]  #C
        return (grad ** 2).sum()
    class Irm:
        def __init__(self, net):
            self.net = net
        def update(self, envs):
            nll, penalty = 0.0, 0.0
            for x, y in envs:
                logits = self.net(x)
                nll = nll + F.binary_cross_entropy_with_logits(logits, y)
                penalty = penalty + irm_penalty(logits, y)
            loss = nll / len(envs) + 100.0 * penalty / len(envs)
            loss.backward()
    Irm(nn.Linear(2, 1)).update([(torch.ones(2, 2), torch.ones(2, 1))] * 2)
    """,
    ("retain_graph=True", "create_graph=True"),
    fix=("create_graph=True", ":4"),
)  # fmt: skip
case(
    "GX304", "penalties_stacked", """
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    def norms(x):
        found = []
        for row in x:
            row = row.clone().requires_grad_()
            g, = torch.autograd.grad(net(row).sum(), row)  #C
            found.append(g.pow(2).sum())
        return torch.stack(found).mean()
    x = torch.ones(3, 2)
    loss = net(x).pow(2).mean()
    total = torch.stack([loss, 0.1 * norms(x)]).sum()
    total.backward()
    """,
    ("net(row).sum(), row)", "net(row).sum(), row, create_graph=True)"),
    fix=("create_graph=True",),
)  # fmt: skip
case(
    "GX304", "hessian_trace_of_constants", """
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    def divergence(x):
        x = x.clone().requires_grad_()
        score = torch.autograd.grad(net(x).sum(), x, create_graph=True)[0]
        trace = 0
        for i in range(2):
            column = score[:, i].sum()
            trace = trace + torch.autograd.grad(column, x, retain_graph=True)[0][:, i]  #C
        return 0.5 * score.pow(2).sum(1).mean() + trace.mean()
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for x in torch.ones(2, 3, 2):
        loss = divergence(x)
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("retain_graph=True", "create_graph=True"),
    fix=("create_graph=True", ":8"),
)  # fmt: skip
case(
    "GX304", "gradient_agreement_of_two_tasks", """
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    params = list(net.parameters())
    def grads(loss):
        found = torch.autograd.grad(loss, params, retain_graph=True)  #C
        return torch.cat([g.flatten() for g in found])
    first, second = net(torch.ones(1, 2)).pow(2).sum(), (net(-torch.ones(1, 2)) - 1).pow(2).sum()
    agreement = F.cosine_similarity(grads(first), grads(second), dim=0)
    (first + second - 0.1 * agreement).backward()
    """,
    ("retain_graph=True", "create_graph=True"),
    fix=("create_graph=True",),
)  # fmt: skip
case(
    "GX304", "regulariser_rebuilt_from_numbers", """
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 1)
        def forward(self, x):
            return self.b(torch.relu(self.a(x)))
        def l2(self):
            norms = [p.norm().item() for p in self.parameters()]  #C
            return torch.tensor(norms).pow(2).sum()
    model = Model()
    for x in torch.ones(2, 1, 2):
        loss = model(x).pow(2).mean() + 1e-2 * model.l2()
        loss.backward()
    """,
    ("p.norm().item()", "p.norm()"), ("torch.tensor(norms)", "torch.stack(norms)"),
    fix=(":8",),
)  # fmt: skip
case(
    "GX304", "penalty_multiplied_into_the_loss", """
    critic = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    class Loss(nn.Module):
        def lipschitz(self, x):
            x = x.detach().requires_grad_(True)
            out = critic(x)
            grad = torch.autograd.grad(out, x, grad_outputs=torch.ones_like(out))[0]  #C
            return F.relu(grad.norm(dim=1) - 1).mean()
        def forward(self, real, fake):
            terms = {"adv": critic(fake).mean() - critic(real).mean()}
            terms["lip"] = 10 * self.lipschitz(real)
            return sum(terms.values())
    Loss()(torch.ones(2, 2), torch.zeros(2, 2)).backward()
    """,
    ("torch.ones_like(out))[0]", "torch.ones_like(out), create_graph=True)[0]"),
    fix=("create_graph=True",),
)  # fmt: skip

# --- gradients, exits and loops -------------------------------------------------------------------

case(
    "GX304", "penalty_added_in_place", """
    def r1(scores, real):
        (g,) = torch.autograd.grad(scores.sum(), real, retain_graph=True)  #C
        return g.pow(2).sum()
    judge = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    real = torch.ones(3, 2, requires_grad=True)
    scores = judge(real)
    loss = F.softplus(-scores).mean()
    loss += 0.5 * r1(scores, real)  #V
    loss.backward()
    """,
    ("retain_graph=True", "create_graph=True"),
    fix=("create_graph=True",),
)  # fmt: skip
case(
    "GX304", "residual_of_a_differential_equation", """
    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        def residual(self, x, t):
            u = self.net(torch.cat([x, t], 1))
            u_t = torch.autograd.grad(u.sum(), t, retain_graph=True)[0]  #C
            u_x = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
            return u_t + u * u_x  #V
    field = Field()
    x, t = (torch.rand(5, 1, requires_grad=True) for _ in range(2))
    field.residual(x, t).pow(2).mean().backward()
    """,
    ("retain_graph=True", "create_graph=True"),
)  # fmt: skip
case(
    "GX304", "constant_for_each_sample", """
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
    def score_matching(x):
        score = net(x)
        (trace,) = torch.autograd.grad(score[:, 0].sum(), x, retain_graph=True)  #C
        return (0.5 * score.pow(2).sum(1) + trace[:, 0]).mean()  #V
    score_matching(torch.rand(5, 2, requires_grad=True)).backward()
    """,
    ("retain_graph=True", "create_graph=True"),
)  # fmt: skip
case(
    "GX304", "encoder_whose_output_went_through_numpy", """
    import numpy
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.decode = nn.Linear(4, 3), nn.Linear(3, 4)
        def smooth(self, h):
            h = h.detach().numpy()  #C
            return torch.from_numpy(numpy.convolve(h.ravel(), [0.2, 0.6, 0.2], "same")
                                    .reshape(h.shape).astype("float32"))
        def forward(self, x):
            return self.decode(self.smooth(self.encode(x)))  #V
    model = Model()
    opt = torch.optim.SGD(model.parameters(), 0.1)
    x = torch.rand(5, 4)
    opt.zero_grad()
    F.mse_loss(model(x), x).backward()
    opt.step()
    """,
    ("h.detach().numpy()", "h"),
    ('torch.from_numpy(numpy.convolve(h.ravel(), [0.2, 0.6, 0.2], "same")', "h.clone()"),
    ('                                .reshape(h.shape).astype("float32"))\n', ""),
    text=("rebuilt from numbers",),
)  # fmt: skip
case(
    "GX304", "tensor_of_a_list_of_losses", """
    net = nn.Linear(2, 1)
    losses = [net(x).pow(2).mean() for x in torch.rand(3, 4, 2)]
    total = torch.tensor(losses, requires_grad=True)  #CV
    total.mean().backward()
    """,
    ("torch.tensor(losses, requires_grad=True)", "torch.stack(losses)"),
    fix=("torch.stack",),
)  # fmt: skip

case(
    "GX304", "critic_read_number_by_number_in_a_long_loop", """
    actor, critic = nn.Linear(2, 1), nn.Linear(2, 1)
    opt = torch.optim.SGD([*actor.parameters(), *critic.parameters()], 0.1)
    def play(rounds):
        values = []
        for x in torch.rand(rounds, 2):
            values.append(critic(x).sigmoid().item())  #C
        return torch.tensor(values)
    target = play(40)
    off = actor(torch.rand(40, 2)).squeeze(1) - target  #V
    opt.zero_grad()
    (off ** 2).mean().backward()
    opt.step()
    """,
    (".sigmoid().item()", ".sigmoid()"), ("torch.tensor(values)", "torch.cat(values)"),
    text=("rebuilt from numbers",),
)  # fmt: skip


@case.broken()
def test_broken(case: Case) -> None:
    ran = check_broken(case)
    assert ran.error is None
    assert ran.diagnoses[0].severity == "warning"


@case.broken()
def test_mended(case: Case) -> None:
    check_mended(case)
