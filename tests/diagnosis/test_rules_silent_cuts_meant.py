"""GX304 is silent about programs that cut on purpose: nothing may be said of those in SILENT."""

from __future__ import annotations

import textwrap

import pytest
from cases import run

SILENT = {
    "leaves_of_literals_beside_numbers_that_are_compared": """
    def check(a, b):
        worst = (a - b).abs().max().item()
        assert worst < 1, worst

    def case(value):
        x = torch.tensor(0.0, requires_grad=True)
        y = torch.tensor(0.0, requires_grad=True)
        for step in range(3):
            x.backward(torch.tensor(value))
            y.backward(torch.tensor(value))
            check(x, y)
            x.grad = y.grad = None

    for value in (1.0, 3.0, 5.0):
        case(value)
    """,
    "a_leaf_of_a_setting_where_a_loss_was_logged": """
    net = nn.Linear(3, 1)

    def step(x, start):
        seen = net(x).pow(2).mean().item()
        print(f"{seen:.3f}")
        temperature = torch.tensor(start * 2, requires_grad=True)
        temperature.backward()
        return temperature.grad

    for start in (0.3, 0.7):
        step(torch.rand(2, 3), start)
    """,
    "a_leaf_of_a_list_in_the_loop_that_validates": """
    class Check:
        def __init__(self, net, sides):
            self.net, self.sides, self.best = net, sides, 0.0

        def validate(self, x):
            self.best = max(self.best, self.net(x).sigmoid().mean().item())

        def once(self):
            self.validate(torch.rand(2, 3))
            corner = torch.tensor([side * 3 for side in self.sides], requires_grad=True)
            corner.backward(torch.ones(2))
            return corner.grad

    check = Check(nn.Linear(3, 1), [0.3, 0.4])
    for _ in range(3):
        check.once()
    """,
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
