"""GX304 is silent about constants that are meant: targets, teachers, masks of what trains."""

from __future__ import annotations

import textwrap

import pytest
from cases import run

SILENT = {
    "the_value_of_a_loss_and_the_gradient_of_a_surrogate": """
    policy = nn.Linear(4, 1)
    opt = torch.optim.SGD(policy.parameters(), 0.1)
    for x in torch.randn(3, 6, 4):
        out = policy(x).squeeze(-1)
        surrogate = (out * out.detach().exp()).mean()
        loss = out.pow(2).mean() + (surrogate - surrogate.item())
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    "losses_that_are_shown_as_one": """
    a, b = nn.Linear(4, 2), nn.Linear(4, 2)
    for x in torch.randn(2, 6, 4):
        first, second = a(x).pow(2).mean(), b(x).abs().mean()
        total = first + second - float(first) + 1e-3 * (second + first.tolist())
        total.backward()
    """,
    "a_control_variate_of_its_own_value": """
    net = nn.Linear(4, 1)
    terms = [net(x).mean() for x in torch.randn(5, 6, 4)]
    sum(t - t.detach().numpy().item() for t in terms).backward()
    """,
    "the_support_of_a_uniform": """
    low, high = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(5.0))
    opt = torch.optim.SGD([low, high], 0.01)
    for x in torch.rand(3, 10) + 1:
        loss = -torch.distributions.Uniform(low, high).log_prob(x).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    "a_likelihood_with_a_support": """
    mu = nn.Parameter(torch.tensor(0.3))
    x = torch.randn(5)
    inside = (x > mu - 100).float().log()
    (0.5 * (x - mu).pow(2).sum() - inside.sum()).backward()
    """,
    "a_point_mass": """
    loc, v = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(3))
    seen = v.detach().clone()
    score = (seen == v).type(seen.dtype).log().sum()
    ((loc - v).pow(2).sum() - score).backward()
    """,
    "an_array_that_is_given_twice": """
    import numpy as np
    x = np.arange(12, dtype="float32").reshape(3, 4)
    def given():
        t = torch.from_numpy(x)
        t.requires_grad = True
        return t
    turned = given().t().detach().numpy()
    again = given()
    again.t().sum().backward()
    """,
    "a_number_that_is_none": """
    w = nn.Parameter(torch.tensor([float("nan"), 1.0]))
    print((w * 2).max().item())
    x = torch.tensor(0.0, requires_grad=True)
    x.backward(torch.tensor(3.0))
    """,
    "arrays_of_one_size_in_two_functions": """
    import numpy as np
    net = nn.Linear(4, 3)
    def shown(x):
        return net(torch.from_numpy(x)).detach().numpy()
    def slope(x):
        t = torch.from_numpy(x).requires_grad_()
        t.pow(2).sum().backward()
        return t.grad
    shown(np.ones((3, 4), "float32"))
    slope(np.ones((3, 3), "float32"))
    """,
    "teacher_by_numpy_without_an_optimizer": """
    teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
    x = torch.randn(16, 4)
    with torch.no_grad():
        soft = teacher(x).softmax(-1).numpy()
    F.mse_loss(student(x), torch.from_numpy(soft)).backward()
    """,
    "teacher_by_detach_and_numpy": """
    teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
    opt = torch.optim.SGD(student.parameters(), 0.1)
    for x in torch.randn(3, 6, 4):
        soft = teacher(x).softmax(-1).detach().numpy() * 0.9
        loss = F.mse_loss(student(x).softmax(-1), torch.from_numpy(soft))
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    "two_critics_on_one_numpy_target": """
    a, b = nn.Linear(4, 1), nn.Linear(4, 1)
    opts = [torch.optim.SGD(net.parameters(), 0.1) for net in (a, b)]
    for s, s2 in zip(torch.rand(3, 6, 4), torch.rand(3, 6, 4)):
        low = torch.min(a(s2), b(s2)).detach().numpy()
        target = torch.from_numpy(1.0 + 0.9 * low)
        for net, opt in zip((a, b), opts):
            loss = F.mse_loss(net(s), target)
            opt.zero_grad()
            loss.backward()
            opt.step()
    """,
    "advantages_by_numpy_and_a_critic_of_its_own": """
    actor, critic = nn.Linear(4, 2), nn.Linear(4, 1)
    pi, vf = (torch.optim.SGD(net.parameters(), 0.1) for net in (actor, critic))
    for obs in torch.rand(3, 6, 4):
        dist = torch.distributions.Categorical(logits=actor(obs))
        act = dist.sample()
        ret = act.float().numpy() + 1
        adv = ret - critic(obs).squeeze(-1).detach().numpy()
        adv = (adv - adv.mean()) / (adv.std() + 1e-8)
        pg = -(dist.log_prob(act) * torch.as_tensor(adv)).mean()
        pi.zero_grad()
        pg.backward()
        pi.step()
        v = F.mse_loss(critic(obs).squeeze(-1), torch.as_tensor(ret))
        vf.zero_grad()
        v.backward()
        vf.step()
    """,
    "ppo_beside_another_model": """
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    other_opt = torch.optim.SGD(other.parameters(), 0.1)
    net = nn.Linear(4, 3)
    opt = torch.optim.SGD(net.parameters(), 0.1)
    obs = torch.rand(8, 4)
    out = net(obs)
    dist = torch.distributions.Categorical(logits=out[:, :2])
    act = dist.sample()
    old, val = dist.log_prob(act).detach().numpy(), out[:, 2].detach().numpy()
    ret = torch.from_numpy(val * 0.9 + 1)
    for _ in range(3):
        out = net(obs)
        dist = torch.distributions.Categorical(logits=out[:, :2])
        ratio = (dist.log_prob(act) - torch.from_numpy(old)).exp()
        adv = ret - torch.from_numpy(val)
        loss = -(ratio * adv).mean() + (out[:, 2] - ret).pow(2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    "parameters_hashed_before_a_replay_batch": """
    import hashlib
    import numpy as np
    net, aux = nn.Linear(4, 4), nn.Linear(4, 4)
    opt = torch.optim.SGD([*net.parameters(), *aux.parameters()], 0.1)
    def digest(model):
        found = hashlib.sha256()
        for p in model.parameters():
            found.update(p.detach().numpy().tobytes())
        return found.hexdigest()
    rng = np.random.default_rng(0)
    for _ in range(3):
        before = digest(net), digest(aux)
        batch = torch.from_numpy(rng.random((4, 4), dtype="float32"))
        loss = net(batch).pow(2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    "arrays_that_are_only_compared": """
    import numpy as np
    net, unused = nn.Linear(4, 4), nn.Linear(4, 4)
    opt = torch.optim.SGD([*net.parameters(), *unused.parameters()], 0.1)
    def to_numpy(t):
        return t.detach().cpu().numpy()
    def from_numpy(a):
        return torch.from_numpy(np.asarray(a, dtype="float32"))
    x = np.ones((4, 4))
    for _ in range(2):
        same = np.allclose(to_numpy(unused.weight), to_numpy(net.weight))
        loss = net(from_numpy(x)).pow(2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    "mapped_data_beside_an_output": """
    import mmap
    import numpy as np
    net, aux = nn.Linear(4, 3), nn.Linear(3, 4)
    opt = torch.optim.SGD([*net.parameters(), *aux.parameters()], 0.1)
    memory = mmap.mmap(-1, 6 * 4 * 4)
    rows = np.frombuffer(memory, dtype=np.float32).reshape(6, 4)
    x = torch.frombuffer(memory, dtype=torch.float32).view(6, 4)
    for number in range(3):
        rows[:] = np.random.rand(6, 4)
        seen = aux(net(x)).detach().numpy()
        error = np.abs(rows - seen).mean()
        loss = net(x).pow(2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    "accuracy_beside_the_loss": """
    net = nn.Linear(4, 3)
    opt = torch.optim.SGD(net.parameters(), 0.1)
    right = 0.0
    for x in torch.rand(3, 6, 4):
        y = torch.arange(6) % 3
        out = net(x)
        right += (out.argmax(1) == y).float().mean().item()
        loss = F.cross_entropy(out, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    "hard_examples": """
    net = nn.Linear(4, 1)
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for x in torch.rand(3, 8, 4):
        each = net(x).pow(2).squeeze(-1)
        hard = (each > each.mean()).float()
        worst = each.topk(3).indices
        loss = (each * hard).sum() / hard.sum() + each[worst].mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    "top_k_routing_with_weights": """
    gate, experts = nn.Linear(4, 3), nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
    opt = torch.optim.SGD([*gate.parameters(), *experts.parameters()], 0.1)
    for x in torch.rand(3, 6, 4):
        weight, pick = gate(x).softmax(-1).topk(2, dim=-1)
        out = sum(
            (weight * (pick == k)).sum(-1, keepdim=True) * e(x) for k, e in enumerate(experts)
        )
        loss = (out - x).pow(2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    "vector_quantiser": """
    enc, dec, book = nn.Linear(4, 2), nn.Linear(2, 4), nn.Embedding(5, 2)
    opt = torch.optim.SGD([*enc.parameters(), *dec.parameters(), *book.parameters()], 0.1)
    for x in torch.rand(3, 6, 4):
        z = enc(x)
        index = torch.cdist(z, book.weight).argmin(-1)
        q = book(index)
        loss = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
        q = z + (q - z).detach()
        loss = loss + F.mse_loss(dec(q), x)
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    "straight_through_gate": """
    score, body = nn.Linear(4, 3), nn.Linear(4, 3)
    opt = torch.optim.SGD([*score.parameters(), *body.parameters()], 0.1)
    for x in torch.rand(3, 6, 4):
        soft = score(x).sigmoid()
        hard = (soft > 0.5).float()
        loss = ((hard + soft - soft.detach()) * body(x)).pow(2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    "policy_gradient_with_one_hot_actions_into_a_critic": """
    policy, critic = nn.Linear(4, 3), nn.Linear(7, 1)
    pi, vf = (torch.optim.SGD(net.parameters(), 0.1) for net in (policy, critic))
    for s in torch.rand(3, 6, 4):
        dist = torch.distributions.Categorical(logits=policy(s))
        act = dist.sample()
        q = critic(torch.cat([s, F.one_hot(act, 3).float()], 1)).squeeze(-1)
        vf.zero_grad()
        (q - 1).pow(2).mean().backward()
        vf.step()
        pi.zero_grad()
        (-dist.log_prob(act) * q.detach()).mean().backward()
        pi.step()
    """,
    "pseudo_labels_of_a_teacher_without_no_grad": """
    teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
    for x in torch.rand(2, 6, 4):
        logits = teacher(x)
        sure = (logits.softmax(-1).amax(-1) > 0.3).float()
        loss = (F.cross_entropy(student(x), logits.argmax(1), reduction="none") * sure).mean()
        loss.backward()
    """,
    "mask_of_the_data": """
    net = nn.Linear(4, 4)
    x = torch.rand(6, 4, requires_grad=True)
    keep = (x > 0.5).float()
    (net(x) * keep).sum().backward()
    """,
    "early_stopping_and_logging": """
    net = nn.Linear(4, 1)
    opt = torch.optim.SGD(net.parameters(), 0.1)
    best, total, history = float("inf"), 0.0, []
    for k in range(4):
        loss = net(torch.rand(6, 4)).pow(2).mean() + 1e-3
        opt.zero_grad()
        loss.backward()
        opt.step()
        total += float(loss)
        history.append(loss.item())
        if loss.item() < best:
            best = loss.item()
        print(round(loss.item(), 3), end="")
    """,
    "flooding_at_a_level": """
    net, level = nn.Linear(4, 1), 0.02
    for x in torch.rand(3, 6, 4):
        loss = net(x).pow(2).mean()
        seen = loss.item()
        ((loss - level).abs() + level).backward()
    """,
    "distance_to_a_running_mean": """
    net, mean = nn.Linear(4, 1), 0.0
    for x in torch.rand(3, 6, 4):
        loss = net(x).pow(2).mean()
        mean = 0.9 * mean + 0.1 * loss.item()
        (loss - mean).pow(2).backward()
    """,
    "target_network_by_numpy": """
    import copy
    net = nn.Linear(4, 2)
    target = copy.deepcopy(net)
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for s in torch.rand(4, 6, 4):
        best = target(s).max(1)[0].detach().numpy()
        y = torch.tensor(1 + 0.9 * best)
        loss = F.smooth_l1_loss(net(s).max(1)[0], y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        target.load_state_dict(net.state_dict())
    """,
    "class_weights_of_the_last_predictions": """
    import numpy as np
    net = nn.Linear(4, 3)
    opt = torch.optim.SGD(net.parameters(), 0.1)
    weights = np.ones(3, dtype="float32")
    for x in torch.rand(3, 6, 4):
        out, y = net(x), torch.arange(6) % 3
        loss = F.cross_entropy(out, y, weight=torch.from_numpy(weights))
        counts = np.bincount(out.detach().numpy().argmax(1), minlength=3)
        opt.zero_grad()
        loss.backward()
        opt.step()
        weights = (counts / counts.sum() + 0.1).astype("float32")
    """,
    "frozen_teacher_that_requires_grad_as_a_term": """
    teacher, net = nn.Linear(4, 1), nn.Linear(4, 1)
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for x in torch.rand(2, 6, 4):
        base = teacher(x).pow(2).mean().item()
        loss = net(x).pow(2).mean() - base
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    "generator_detached_for_the_critic": """
    gen, disc = nn.Linear(2, 4), nn.Linear(4, 1)
    g_opt, d_opt = (torch.optim.SGD(net.parameters(), 0.1) for net in (gen, disc))
    for z in torch.rand(3, 6, 2):
        fake = torch.from_numpy(gen(z).detach().numpy().copy())
        d_opt.zero_grad()
        (disc(fake).mean() - disc(torch.rand(6, 4)).mean()).backward()
        d_opt.step()
        g_opt.zero_grad()
        (-disc(gen(z)).mean()).backward()
        g_opt.step()
    """,
    "interpolation_by_floor_and_rest": """
    where = nn.Parameter(torch.rand(6) * 3)
    table = torch.rand(5)
    low = where.floor()
    rest = where - low
    i = low.long()
    (table[i] * (1 - rest) + table[i + 1] * rest).sum().backward()
    """,
    "learned_threshold_by_sigmoid_and_a_count_of_it": """
    net, cut = nn.Linear(4, 1), nn.Parameter(torch.zeros(1))
    opt = torch.optim.SGD([*net.parameters(), cut], 0.1)
    for x in torch.rand(3, 6, 4):
        s = net(x)
        soft = torch.sigmoid(10 * (s - cut))
        share = (s > cut).float().mean()
        loss = (soft * x).pow(2).mean() / (share + 1)
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    "priors_and_guides_built_by_one_function": """
    D = torch.distributions
    loc = torch.zeros((), requires_grad=True)
    def build(mean, width):
        return D.Normal(mean, width)
    def terms():
        guide = build(loc, 1)
        z = guide.sample()
        prior, seen = build(0, 1), build((z * 100).clamp(0, 1), 1)
        return guide.log_prob(z), prior.log_prob(z) + seen.log_prob(torch.tensor(0.0))
    def evaluate():
        log_q, log_p = terms()
        return log_p.item() - log_q.item()
    first = evaluate()
    for _ in range(3):
        log_q, log_p = terms()
        (-(log_p + (log_p - log_q).detach() * log_q)).backward()
    """,
    "distributions_made_by_a_metaclass": """
    D = torch.distributions
    class Meta(type(D.Laplace)):
        def __call__(cls, *args, **kwargs):
            return super().__call__(*args, **kwargs)
    class Laplace(D.Laplace, metaclass=Meta):
        pass
    raw = nn.Parameter(torch.zeros(()))
    seen = []
    for _ in range(3):
        guide = Laplace(raw, 1)
        z = guide.sample()
        log_q, log_p = guide.log_prob(z), Laplace(0, 2).log_prob(z)
        seen.append(log_q.item())
        (-(log_p + (log_p - log_q).detach() * log_q)).backward()
    """,
    "wrapped_distributions_through_partial": """
    import functools
    D = torch.distributions
    class Guide(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2))
            self.kind = functools.partial(D.Normal, validate_args=True)
        def dist(self, mean, width):
            return D.Independent(self.kind(mean, width), 1)
        def forward(self):
            own = self.dist(self.loc, 1)
            z = own.sample()
            return own.log_prob(z), self.dist(torch.zeros(2), 1).log_prob(z)
    guide = Guide()
    opt = torch.optim.SGD(guide.parameters(), 0.1)
    print(sum(term.item() for term in guide()))
    for _ in range(3):
        log_q, log_p = guide()
        opt.zero_grad()
        (-(log_p + (log_p - log_q).detach() * log_q)).backward()
        opt.step()
    """,
}
SILENT = {name: textwrap.dedent(text).lstrip("\n") for name, text in SILENT.items()}


@pytest.mark.parametrize("name", SILENT)
def test_silent(name: str) -> None:
    ran = run(SILENT[name], f"constant-{name}")
    assert ran.error is None
    assert ran.diagnoses == []
