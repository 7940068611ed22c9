"""GX304: nothing is raised, and a value that should carry a gradient does not. And what is meant.

`SILENT` holds programs that cut on purpose, of which nothing may be said.
"""

from __future__ import annotations

import textwrap

import pytest
from cases import Case, Cases, check_broken, check_mended, run

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

# --- what is meant --------------------------------------------------------------------------------

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

SILENT = {
    "critic_read_in_a_long_loop_and_trained_by_another_term": """
    actor, critic = nn.Linear(2, 1), nn.Linear(2, 1)
    opt = torch.optim.SGD([*actor.parameters(), *critic.parameters()], 0.1)
    values = []
    for x in torch.rand(40, 2):
        values.append(critic(x).sigmoid().item())
    off = actor(torch.rand(40, 2)).squeeze(1) - torch.tensor(values)
    loss = (off ** 2).mean() + (critic(torch.rand(40, 2)) ** 2).mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
    """,
    "hungarian_matching": """
    net = nn.Linear(3, 4)
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for x in torch.rand(3, 4, 3):
        cost = net(x)
        columns = cost.detach().numpy().argmin(1)
        loss = cost[torch.arange(4), torch.as_tensor(columns)].sum()
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    "refined_targets": """
    net = nn.Linear(3, 3)
    opt = torch.optim.SGD(net.parameters(), 0.1)
    x = torch.rand(4, 3)
    for _ in range(3):
        out = net(x)
        target = torch.from_numpy(out.detach().numpy() * 0.9)
        loss = F.mse_loss(out, target)
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    "logged_losses_and_new_data": """
    net = nn.Linear(3, 1)
    opt = torch.optim.SGD(net.parameters(), 0.1)
    seen = []
    for k in range(4):
        x = torch.tensor([[float(k), 1.5, 2.5]])
        loss = net(x).pow(2).sum() + torch.tensor(0.25)
        opt.zero_grad()
        loss.backward()
        opt.step()
        seen.append(loss.item())
    torch.tensor(seen).mean().item()
    """,
    "fgsm": """
    net = nn.Linear(4, 2)
    x = torch.rand(1, 4)
    x.requires_grad = True
    F.cross_entropy(net(x), torch.tensor([1])).backward()
    adv = (x + 0.1 * x.grad.sign()).detach().clamp(0, 1)
    F.cross_entropy(net(adv), torch.tensor([1])).backward()
    """,
    "pgd": """
    def pgd(net, x, y, steps=3):
        delta = torch.zeros_like(x).uniform_(-0.1, 0.1).requires_grad_()
        for _ in range(steps):
            loss = F.cross_entropy(net(x + delta), y)
            g, = torch.autograd.grad(loss, delta)
            delta = (delta + 0.02 * g.sign()).clamp(-0.1, 0.1).detach().requires_grad_()
        return (x + delta).detach()
    net = nn.Linear(4, 2)
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(2):
        x, y = torch.rand(3, 4), torch.tensor([0, 1, 0])
        adv = pgd(net, x, y)
        opt.zero_grad()
        F.cross_entropy(net(adv), y).backward()
        opt.step()
    """,
    "deep_dream": """
    import numpy as np
    net = nn.Conv2d(3, 4, 3, padding=1)
    image = np.ones((1, 3, 8, 8), dtype="float32")
    for octave in range(2):
        x = torch.from_numpy(image).requires_grad_()
        for _ in range(2):
            net(x).norm().backward()
            x.data += 0.1 * x.grad / x.grad.abs().mean()
            x.grad.zero_()
        image = x.detach().numpy()
    """,
    "grad_cache": """
    enc = nn.Linear(3, 2)
    chunks = list(torch.rand(2, 4, 3))
    with torch.no_grad():
        reps = [enc(c) for c in chunks]
    leaves = [r.detach().requires_grad_() for r in reps]
    all_reps = torch.cat(leaves)
    F.cross_entropy(all_reps @ all_reps.T, torch.arange(8)).backward()
    for chunk, leaf in zip(chunks, leaves):
        enc(chunk).backward(gradient=leaf.grad)
    """,
    "straight_through": """
    enc, dec = nn.Linear(2, 2), nn.Linear(2, 2)
    z = enc(torch.rand(3, 2))
    hard = torch.round(z)
    q = z + (hard - z).detach()
    loss = F.mse_loss(dec(q), torch.rand(3, 2)) + 0.25 * F.mse_loss(z, hard.detach())
    loss.backward()
    """,
    "dice_magic_box": """
    def magic_box(x):
        return torch.exp(x - x.detach())
    policy = nn.Linear(2, 3)
    dist = torch.distributions.Categorical(logits=policy(torch.ones(4, 2)))
    action = dist.sample()
    reward = action.float()
    (-(magic_box(dist.log_prob(action)) * reward).mean()).backward()
    """,
    "vqgan_adaptive_weight": """
    dec, disc = nn.Linear(3, 4), nn.Linear(4, 1)
    out = dec(torch.rand(2, 3))
    nll, g_loss = (out - 1).abs().mean(), -disc(out).mean()
    a = torch.autograd.grad(nll, dec.weight, retain_graph=True)[0]
    b = torch.autograd.grad(g_loss, dec.weight, retain_graph=True)[0]
    d_weight = (a.norm() / (b.norm() + 1e-4)).clamp(0, 1e4).detach()
    (nll + d_weight * g_loss).backward()
    """,
    "fomaml_with_vectors": """
    w, b = torch.ones(2, 1, requires_grad=True), torch.zeros(1, requires_grad=True)
    meta = torch.optim.SGD([w, b], 0.1)
    for _ in range(2):
        fast = [w, b]
        for _ in range(2):
            loss = (torch.ones(3, 2) @ fast[0] + fast[1]).pow(2).mean()
            grads = torch.autograd.grad(loss, fast)
            fast = [p - 0.1 * g for p, g in zip(fast, grads)]
        meta.zero_grad()
        (torch.ones(3, 2) @ fast[0] + fast[1] - 1).pow(2).mean().backward()
        meta.step()
    """,
    "fomaml_with_a_scalar": """
    theta = torch.tensor(0.5, requires_grad=True)
    for _ in range(2):
        inner = (theta * 2 - 1) ** 2
        g, = torch.autograd.grad(inner, theta)
        fast = theta - 0.1 * g
        ((fast * 3 - 1) ** 2).backward()
    """,
    "fomaml_scalar_in_two_steps": """
    theta = torch.tensor(0.5, requires_grad=True)
    fast = theta
    for _ in range(3):
        g, = torch.autograd.grad((fast * 2 - 1) ** 2, fast)
        fast = fast - 0.1 * g
    ((fast * 3 - 1) ** 2).backward()
    """,
    "maml": """
    net = nn.Linear(2, 1)
    names = [n for n, _ in net.named_parameters()]
    params = list(net.parameters())
    loss = net(torch.ones(2, 2)).pow(2).mean()
    grads = torch.autograd.grad(loss, params, create_graph=True)
    fast = {n: p - 0.1 * g for n, p, g in zip(names, params, grads)}
    torch.func.functional_call(net, fast, torch.ones(2, 2)).pow(2).mean().backward()
    """,
    "reptile": """
    import copy
    net = nn.Linear(2, 1)
    for _ in range(2):
        task = copy.deepcopy(net)
        opt = torch.optim.SGD(task.parameters(), 0.1)
        for _ in range(2):
            opt.zero_grad()
            task(torch.ones(1, 2)).pow(2).sum().backward()
            opt.step()
        with torch.no_grad():
            for p, q in zip(net.parameters(), task.parameters()):
                p.add_(q - p, alpha=0.5)
    """,
    "truncated_bptt": """
    cell = nn.RNNCell(2, 3)
    opt = torch.optim.SGD(cell.parameters(), 0.1)
    h = torch.zeros(1, 3)
    for window in torch.rand(3, 2, 1, 2):
        h = h.detach().requires_grad_()
        out = h
        for x in window:
            out = cell(x, out)
        opt.zero_grad()
        out.pow(2).sum().backward()
        opt.step()
        h = out
    """,
    "distillation": """
    student, teacher = nn.Linear(2, 3), nn.Linear(2, 3)
    opt = torch.optim.SGD(student.parameters(), 0.1)
    for x in torch.rand(2, 4, 2):
        with torch.no_grad():
            soft = teacher(x).softmax(-1)
        loss = F.kl_div(student(x).log_softmax(-1), soft) + 0.1 * student(x).pow(2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    "byol_with_ema": """
    import copy
    online = nn.Linear(2, 2)
    target = copy.deepcopy(online).requires_grad_(False)
    opt = torch.optim.SGD(online.parameters(), 0.1)
    for x in torch.rand(2, 4, 2):
        p, z = F.normalize(online(x)), F.normalize(target(x)).detach()
        loss = 2 - 2 * (p * z).sum(-1).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        for q, t in zip(online.parameters(), target.parameters()):
            t.data.mul_(0.9).add_(q.data, alpha=0.1)
    """,
    "actor_critic_with_item": """
    actor, critic = nn.Linear(2, 3), nn.Linear(2, 1)
    opt = torch.optim.SGD([*actor.parameters(), *critic.parameters()], 0.1)
    for obs in torch.rand(3, 2):
        dist = torch.distributions.Categorical(logits=actor(obs))
        action, value = dist.sample(), critic(obs)
        advantage = 1.0 - value.item()
        loss = -dist.log_prob(action) * advantage + (1.0 - value).pow(2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    "advantages_from_python_numbers": """
    actor, critic = nn.Linear(2, 3), nn.Linear(2, 1)
    logps, values = [], []
    for obs in torch.rand(4, 2):
        dist = torch.distributions.Categorical(logits=actor(obs))
        logps.append(dist.log_prob(dist.sample()))
        values.append(critic(obs).squeeze())
    rewards = [1.0, 0.0, 1.0, 1.0]
    adv = torch.tensor([r - v.item() for r, v in zip(rewards, values)])
    adv = (adv - adv.mean()) / adv.std()
    loss = -(torch.stack(logps) * adv).mean()
    loss = loss + F.mse_loss(torch.stack(values), torch.tensor(rewards))
    loss.backward()
    """,
    "learned_temperature": """
    net = nn.Linear(2, 2)
    temperature = torch.tensor(1.0, requires_grad=True)
    opt = torch.optim.SGD([*net.parameters(), temperature], 0.1)
    for x in torch.rand(2, 3, 2):
        loss = F.cross_entropy(net(x) / temperature, torch.tensor([0, 1, 0]))
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    "calibration_after_training": """
    net = nn.Linear(2, 3)
    net(torch.ones(1, 2)).sum().item()
    with torch.no_grad():
        logits = net(torch.rand(5, 2))
    t = nn.Parameter(torch.ones(1))
    opt = torch.optim.LBFGS([t], max_iter=3)
    def closure():
        opt.zero_grad()
        loss = F.cross_entropy(logits / t, torch.tensor([0, 1, 2, 0, 1]))
        loss.backward()
        return loss
    opt.step(closure)
    """,
    "lagrange_multiplier": """
    net = nn.Linear(2, 1)
    log_alpha = torch.zeros(1, requires_grad=True)
    opt, dual = torch.optim.SGD(net.parameters(), 0.1), torch.optim.SGD([log_alpha], 0.1)
    for x in torch.rand(2, 3, 2):
        constraint = net(x).pow(2).mean()
        loss = net(x).mean() + log_alpha.exp().item() * constraint
        opt.zero_grad()
        loss.backward()
        opt.step()
        alpha_loss = -(log_alpha.exp() * (constraint.detach() - 0.1)).mean()
        dual.zero_grad()
        alpha_loss.backward()
        dual.step()
    """,
    "gradient_accumulation_with_logging": """
    net = nn.Linear(2, 2)
    opt = torch.optim.SGD(net.parameters(), 0.1)
    running, history = 0.0, []
    for step, x in enumerate(torch.rand(4, 3, 2)):
        labels = torch.tensor([step % 2, 1, 0])
        loss = F.cross_entropy(net(x), labels) / 2
        loss.backward()
        running += loss.item()
        history.append(loss.detach())
        if step % 2:
            opt.step()
            opt.zero_grad()
    mean = torch.tensor(running) / 4 + torch.stack(history).mean()
    """,
    "loss_scaled_by_its_running_mean": """
    net = nn.Linear(2, 1)
    mean = None
    for x in torch.rand(3, 4, 2):
        loss = net(x).pow(2).mean()
        mean = loss.item() if mean is None else 0.9 * mean + 0.1 * loss.item()
        (loss / (mean + 1e-6)).backward()
    """,
    "uncertainty_logged_and_weighted": """
    net = nn.Linear(2, 1)
    weights = torch.ones(2)
    for x in torch.rand(3, 4, 2):
        losses = torch.stack([net(x).pow(2).mean(), net(x).abs().mean()])
        weights = torch.tensor([1 / (l + 1e-3) for l in losses.tolist()])
        (losses * weights).sum().backward()
    """,
    "validation_under_inference_mode": """
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    opt = torch.optim.SGD(net.parameters(), 0.1)
    best = float("inf")
    for epoch in range(2):
        net.train()
        opt.zero_grad()
        net(torch.rand(4, 2)).pow(2).mean().backward()
        opt.step()
        net.eval()
        with torch.inference_mode():
            score = net(torch.rand(4, 2)).mean()
        best = min(best, score.item())
    """,
    "saliency": """
    net = nn.Linear(4, 2).requires_grad_(False)
    image = torch.rand(1, 4).requires_grad_()
    net(image)[0, 1].backward()
    saliency = image.grad.abs()
    """,
    "style_transfer": """
    features = nn.Conv2d(3, 4, 3).requires_grad_(False)
    def gram(f):
        return f.flatten(2) @ f.flatten(2).transpose(1, 2)
    content, style = torch.rand(1, 3, 6, 6), torch.rand(1, 3, 6, 6)
    target = gram(features(style)).detach()
    image = content.clone().requires_grad_()
    opt = torch.optim.LBFGS([image], max_iter=3)
    def closure():
        with torch.no_grad():
            image.clamp_(0, 1)
        opt.zero_grad()
        loss = F.mse_loss(gram(features(image)), target) + F.mse_loss(image, content)
        loss.backward()
        return loss
    opt.step(closure)
    """,
    "latent_from_an_encoder_optimised": """
    enc, dec = nn.Linear(3, 2), nn.Linear(2, 3).requires_grad_(False)
    image = torch.rand(1, 3)
    w = enc(image).detach().clone().requires_grad_()
    opt = torch.optim.SGD([w], 0.1)
    for _ in range(2):
        opt.zero_grad()
        F.mse_loss(dec(w), image).backward()
        opt.step()
    """,
    "euler_steps_of_an_ode": """
    field = nn.Linear(2, 2)
    opt = torch.optim.SGD(field.parameters(), 0.1)
    for _ in range(2):
        z, t = torch.ones(1, 2), 0.0
        while t < 1:
            dz = field(z)
            dt = min(0.25, 0.5 / (dz.norm().item() + 1e-3))
            z, t = z + dt * dz, t + max(dt, 0.2)
        opt.zero_grad()
        z.pow(2).sum().backward()
        opt.step()
    """,
    "reentrant_checkpoint": """
    from torch.utils.checkpoint import checkpoint
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    h = a(torch.ones(1, 2))
    h = checkpoint(b, h, use_reentrant=True)
    h.pow(2).sum().backward()
    """,
    "split_learning_boundary": """
    client, server = nn.Linear(2, 3), nn.Linear(3, 1)
    acts = client(torch.ones(2, 2))
    cut = acts.detach().requires_grad_()
    server(cut).pow(2).sum().backward()
    acts.backward(cut.grad)
    """,
    "grad_norm_logged": """
    net = nn.Linear(2, 1)
    loss = net(torch.ones(1, 2)).pow(2).sum()
    grads = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
    loss.backward()
    """,
    "sharpness_aware": """
    net = nn.Linear(2, 1)
    opt = torch.optim.SGD(net.parameters(), 0.1)
    x = torch.ones(1, 2)
    grads = torch.autograd.grad(net(x).pow(2).sum(), list(net.parameters()))
    norm = torch.stack([g.norm() for g in grads]).norm()
    with torch.no_grad():
        for p, g in zip(net.parameters(), grads):
            p.add_(g, alpha=0.05 / norm.item())
    net(x).pow(2).sum().backward()
    opt.step()
    """,
    "langevin_sampling": """
    energy = nn.Linear(2, 1)
    x = torch.rand(4, 2)
    for _ in range(3):
        x = x.detach().requires_grad_()
        g, = torch.autograd.grad(energy(x).sum(), x)
        x = x - 0.1 * g + 0.01 * torch.randn_like(x)
    loss = energy(torch.rand(4, 2)).mean() - energy(x.detach()).mean()
    loss.backward()
    """,
    "ignored_by_a_comment": """
    net = nn.Linear(2, 1)
    scale = torch.tensor(1.0, requires_grad=True)
    inner = (net(torch.ones(1, 2)) * scale).pow(2).mean()
    g, = torch.autograd.grad(inner, scale, retain_graph=True)  # gradext: ignore[GX304]
    (inner + g ** 2).backward()
    """,
}
SILENT = {name: textwrap.dedent(text).lstrip("\n") for name, text in SILENT.items()}


@case.broken()
def test_broken(case: Case) -> None:
    ran = check_broken(case)
    assert ran.error is None
    assert ran.diagnoses[0].severity == "warning"


@case.broken()
def test_mended(case: Case) -> None:
    check_mended(case)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name: str) -> None:
    ran = run(SILENT[name], f"meant-{name}")
    assert ran.error is None
    assert ran.diagnoses == []


def test_only_the_comment_silences() -> None:
    text = SILENT["ignored_by_a_comment"].replace("  # gradext: ignore[GX304]", "")
    assert [d.code for d in run(text, "without-the-comment").diagnoses] == ["GX304"]
    other = SILENT["ignored_by_a_comment"].replace("GX304", "GX401")
    assert [d.code for d in run(other, "another-code").diagnoses] == ["GX304"]
