"""GX306 is silent where a parameter gets gradients and is meant to be in no optimizer."""

from __future__ import annotations

import textwrap

import pytest
from cases import run

SILENT = {
    "only_the_head_is_tuned": """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        def forward(self, x):
            return self.head(torch.relu(self.body(x)))
    net = Net()
    opt = torch.optim.Adam(net.head.parameters())
    for x in torch.rand(10, 3, 4):
        opt.zero_grad()
        net(x).pow(2).mean().backward()
        opt.step()
    """,
    "head_exchanged_before": """
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 9))
    first = torch.optim.SGD(net.parameters(), 0.1)
    for x in torch.rand(5, 3, 4):
        first.zero_grad()
        net(x).pow(2).mean().backward()
        first.step()
    net[2] = nn.Linear(4, 3)
    second = torch.optim.SGD(net.parameters(), 0.01)
    for x in torch.rand(9, 3, 4):
        second.zero_grad()
        net(x).pow(2).mean().backward()
        second.step()
    """,
    "teachers_in_a_list": """
    class Student(nn.Module):
        def __init__(self, teachers):
            super().__init__()
            self.body = nn.Linear(4, 2)
            self.teachers = list(teachers)
            self.first = [nn.Linear(4, 2)]
        def forward(self, x):
            return sum((t(x) - self.body(x)).pow(2).mean() for t in self.teachers + self.first)
    net = Student(nn.Linear(4, 2) for _ in range(3))
    opt = torch.optim.Adam(net.parameters())
    for x in torch.rand(10, 3, 4):
        opt.zero_grad()
        net(x).backward()
        opt.step()
    """,
    "frozen_teachers_made_in_a_list": """
    class Student(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 2)
            self.teachers = [nn.Linear(4, 2).requires_grad_(False) for _ in range(3)]
            self.priors = [nn.Linear(4, 2).eval() for _ in range(3)]
        def forward(self, x):
            y = self.body(x)
            return sum((t(x) - y).pow(2).mean() for t in self.teachers + self.priors)
    net = Student()
    opt = torch.optim.Adam(net.parameters())
    for x in torch.rand(10, 3, 4):
        opt.zero_grad()
        net(x).backward()
        opt.step()
    """,
    "averaged_copies_in_a_list": """
    import copy
    class Ema(nn.Module):
        def __init__(self):
            super().__init__()
            self.online = nn.Linear(4, 2)
            self.slow = [copy.deepcopy(self.online), copy.deepcopy(self.online)]
        def forward(self, x):
            return sum((self.online(x) - s(x + 1)).pow(2).mean() for s in self.slow)
    net = Ema()
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for x in torch.rand(10, 3, 4):
        opt.zero_grad()
        net(x).backward()
        opt.step()
        for s in net.slow:
            for p, q in zip(s.parameters(), net.online.parameters()):
                p.data.lerp_(q.data, 0.1)
    """,
    "listed_layers_that_the_optimizer_is_given": """
    class Mlp(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp = nn.Linear(4, 4)
            self.layers = [nn.Linear(4, 4) for _ in range(3)]
        def forward(self, x):
            x = self.inp(x)
            for layer in self.layers:
                x = torch.tanh(layer(x))
            return x
    net = Mlp()
    opt = torch.optim.Adam([*net.parameters(), *(p for l in net.layers for p in l.parameters())])
    for x in torch.rand(10, 3, 4):
        opt.zero_grad()
        net(x).sum().backward()
        opt.step()
    """,
    "listed_layers_that_are_registered_too": """
    class Mlp(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = [nn.Linear(4, 4), nn.Linear(4, 4)]
            for k, layer in enumerate(self.layers):
                self.add_module(f"layer{k}", layer)
            self.by_name = dict(self.named_children())
        def forward(self, x):
            for layer in self.layers:
                x = torch.tanh(layer(x))
            return x
    net = Mlp()
    opt = torch.optim.Adam(net.parameters())
    for x in torch.rand(10, 3, 4):
        opt.zero_grad()
        net(x).sum().backward()
        opt.step()
    """,
    "listed_layers_with_a_second_optimizer": """
    class Mlp(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp = nn.Linear(4, 4)
            self.layers = [nn.Linear(4, 4) for _ in range(3)]
        def forward(self, x):
            x = self.inp(x)
            for layer in self.layers:
                x = torch.tanh(layer(x))
            return x
    net = Mlp()
    opt = torch.optim.Adam(net.parameters())
    def late():
        return torch.optim.SGD([p for l in net.layers for p in l.parameters()], 0.1)
    other = None
    for k, x in enumerate(torch.rand(20, 3, 4)):
        opt.zero_grad()
        net(x).sum().backward()
        opt.step()
        if k == 12:
            other = late()
    """,
    "groups_that_come_later": """
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    opt = torch.optim.SGD(net[2].parameters(), 0.1)
    net.add_module("more", nn.Linear(2, 2))
    for k, x in enumerate(torch.rand(20, 3, 4)):
        if k == 10:
            opt.add_param_group({"params": net.more.parameters()})
        if k == 15:
            opt.add_param_group({"params": net[0].parameters()})
        opt.zero_grad()
        net(x).sum().backward()
        opt.step()
    """,
    "exchanged_layer_whose_group_comes_at_the_end": """
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    opt = torch.optim.SGD(net.parameters(), 0.1)
    net[2] = nn.Linear(4, 3)
    for k, x in enumerate(torch.rand(20, 3, 4)):
        opt.zero_grad()
        net(x).sum().backward()
        opt.step()
    opt.add_param_group({"params": net[2].parameters()})
    """,
    "stepped_by_hand_in_a_list": """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp, self.fast = nn.Linear(4, 4), [nn.Linear(4, 4), nn.Linear(4, 4)]
            self.gain = torch.ones(4, requires_grad=True)
        def forward(self, x):
            return sum(f(self.inp(x)) for f in self.fast) * self.gain
    net = Net()
    opt = torch.optim.Adam(net.parameters())
    for x in torch.rand(12, 3, 4):
        opt.zero_grad()
        net(x).pow(2).mean().backward()
        opt.step()
        with torch.no_grad():
            own = [net.gain, *net.fast[0].parameters()]
            for p in own:
                p -= 0.1 * p.grad
            rest = list(net.fast[1].parameters())
            torch._foreach_add_(rest, [p.grad for p in rest], alpha=-0.1)
    """,
    "stepped_by_data_after_an_exchange": """
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    opt = torch.optim.SGD(net.parameters(), 0.1)
    net[2] = nn.Linear(4, 3)
    for x in torch.rand(12, 3, 4):
        net(x).sum().backward()
        opt.step()
        for p in net[2].parameters():
            p.data -= 0.1 * p.grad
        net.zero_grad()
    """,
    "stepped_by_new_data_after_an_exchange": """
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    opt = torch.optim.SGD(net.parameters(), 0.1)
    net[2].weight = nn.Parameter(torch.zeros(2, 4))
    for x in torch.rand(12, 3, 4):
        net(x).pow(2).sum().backward()
        opt.step()
        net[2].weight.data = net[2].weight.data - 0.1 * net[2].weight.grad
        net.zero_grad()
    """,
    "gan": """
    g, d = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4)), nn.Linear(4, 1)
    of_g = torch.optim.Adam(g.parameters())
    of_d = torch.optim.Adam(d.parameters())
    for z in torch.rand(10, 5, 3):
        of_d.zero_grad()
        (d(torch.rand(5, 4)).mean() - d(g(z).detach()).mean()).backward()
        of_d.step()
        of_g.zero_grad()
        d(g(z)).mean().backward()
        of_g.step()
    """,
    "critic_made_after_the_optimizer_and_never_stepped": """
    g = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4))
    of_g = torch.optim.Adam(g.parameters())
    class Perceptual(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 2)])
        def forward(self, x, y):
            loss = 0
            for block in self.blocks:
                x, y = block(x), block(y)
                loss = loss + (x - y).abs().mean()
            return loss
    criterion = Perceptual()
    both = nn.ModuleDict({"g": g, "criterion": criterion})
    for z in torch.rand(10, 5, 3):
        of_g.zero_grad()
        criterion(g(z), torch.rand(5, 4)).backward()
        of_g.step()
    """,
    "perceptual_blocks_in_a_list": """
    vgg = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.g = nn.Linear(3, 4)
            self.blocks = [vgg[:1], vgg[1:]]
            self.vgg = [vgg]
        def forward(self, x):
            return self.g(x)
        def loss(self, x, y):
            a, b = self(x), y
            for block in self.blocks:
                a, b = block(a), block(b)
            return (a - b).pow(2).mean() + self.vgg[0](a).mean()
    net = Net()
    opt = torch.optim.Adam(net.parameters())
    for x in torch.rand(10, 5, 3):
        opt.zero_grad()
        net.loss(x, torch.rand(5, 4)).backward()
        opt.step()
    """,
    "gradients_of_inputs": """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.last = nn.Linear(4, 4), None
        def forward(self, x):
            self.last = x
            self.hidden = [self.fc(x)]
            return self.hidden[0]
    net = Net()
    opt = torch.optim.SGD(net.parameters(), 0.1)
    x = torch.rand(3, 4, requires_grad=True)
    for _ in range(10):
        opt.zero_grad()
        net(x).pow(2).mean().backward()
        x_adv = (x + 0.1 * x.grad.sign()).detach()
        net(x_adv).pow(2).mean().backward()
        opt.step()
    """,
    "mask_whose_gradient_is_read": """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.mask = torch.ones(4, requires_grad=True)
        def forward(self, x):
            return self.fc(x) * self.mask
    net = Net()
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for x in torch.rand(10, 3, 4):
        opt.zero_grad()
        net(x).pow(2).mean().backward()
        opt.step()
    print(net.mask.grad.abs())
    """,
    "meta_learning": """
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    meta = torch.optim.Adam(net.parameters())
    for x in torch.rand(10, 5, 3):
        fast = dict(net.named_parameters())
        loss = torch.func.functional_call(net, fast, (x,)).pow(2).mean()
        grads = torch.autograd.grad(loss, fast.values(), create_graph=True)
        fast = {k: p - 0.1 * g for (k, p), g in zip(fast.items(), grads)}
        meta.zero_grad()
        torch.func.functional_call(net, fast, (x,)).mean().backward()
        meta.step()
    """,
    "learners_copied_for_each_task": """
    import copy
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    outer = torch.optim.SGD(net.parameters(), 0.1)
    for x in torch.rand(8, 5, 3):
        learner = copy.deepcopy(net)
        inner = torch.optim.SGD(learner.parameters(), 0.1)
        for _ in range(3):
            inner.zero_grad()
            learner(x).pow(2).mean().backward()
            inner.step()
        outer.zero_grad()
        for p, q in zip(net.parameters(), learner.parameters()):
            p.grad = p.detach() - q.detach()
        outer.step()
    """,
    "a_new_model_for_each_fold": """
    def fit(x):
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        net.append(nn.Linear(4, 1))
        opt = torch.optim.Adam(net.parameters())
        for _ in range(6):
            opt.zero_grad()
            net(x).pow(2).mean().backward()
            opt.step()
        return net
    nets = [fit(x) for x in torch.rand(4, 5, 3)]
    """,
    "tied_after_the_optimizer": """
    emb, head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
    lm = nn.ModuleDict({"emb": emb, "head": head})
    opt = torch.optim.AdamW(lm.parameters())
    lm.head.weight = lm.emb.weight
    for t in torch.randint(0, 7, (10, 3, 5)):
        opt.zero_grad()
        F.cross_entropy(head(emb(t)).flatten(0, 1), t.flatten()).backward()
        opt.step()
    """,
    "spectral_norm_and_pruning_after_the_optimizer": """
    import torch.nn.utils.prune
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    opt = torch.optim.SGD(net.parameters(), 0.1)
    torch.nn.utils.prune.l1_unstructured(net[0], "weight", 0.5)
    torch.nn.utils.parametrizations.spectral_norm(net[2])
    for x in torch.rand(10, 3, 4):
        opt.zero_grad()
        net(x).pow(2).mean().backward()
        opt.step()
    """,
    "importances_of_a_copy": """
    import copy
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for x in torch.rand(6, 5, 3):
        opt.zero_grad()
        net(x).pow(2).mean().backward()
        opt.step()
    opt.zero_grad()
    old, fisher = copy.deepcopy(net), 0
    for x in torch.rand(30, 5, 3):
        old.zero_grad()
        old(x).mean().backward()
        fisher = fisher + old[0].weight.grad.pow(2)
    """,
    "gradients_of_a_replica": """
    import copy
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for x in torch.rand(20, 5, 3):
        replica = copy.deepcopy(net)
        replica(x).pow(2).mean().backward()
        for p, q in zip(net.parameters(), replica.parameters()):
            p.grad = q.grad
        opt.step()
        opt.zero_grad()
    """,
    "gradients_of_a_second_model_for_the_first": """
    def build():
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    shared = build()
    opt = torch.optim.SGD(shared.parameters(), 0.1)
    local = build()
    for x in torch.rand(20, 5, 3):
        local.zero_grad()
        local(x).pow(2).mean().backward()
        for p, q in zip(shared.parameters(), local.parameters()):
            p.grad = q.grad.clone()
        opt.step()
        opt.zero_grad()
    """,
    "no_optimizer": """
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    net.extra = [nn.Linear(2, 2), nn.Linear(2, 2)]
    for x in torch.rand(10, 3, 4):
        y = net(x)
        for layer in net.extra:
            y = layer(y)
        y.pow(2).mean().backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.1 * p.grad
    """,
    "an_optimizer_for_each_parameter": """
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    opts = {p: torch.optim.SGD([p], 0.1) for p in net.parameters()}
    def step(p):
        opts[p].step()
        opts[p].zero_grad()
    for p in net.parameters():
        p.register_post_accumulate_grad_hook(step)
    for x in torch.rand(10, 3, 4):
        net(x).pow(2).mean().backward()
    """,
    "sparse_embedding": """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.fc = nn.Embedding(20, 4, sparse=True), nn.Linear(4, 1)
        def forward(self, t):
            return self.fc(self.emb(t))
    net = Net()
    dense = torch.optim.SGD(net.fc.parameters(), 0.1)
    sparse = torch.optim.SparseAdam(net.emb.parameters())
    for t in torch.randint(0, 20, (10, 3)):
        dense.zero_grad(), sparse.zero_grad()
        net(t).mean().backward()
        dense.step(), sparse.step()
    """,
    "master_weights": """
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).bfloat16()
    master = [nn.Parameter(p.detach().float()) for p in net.parameters()]
    opt = torch.optim.Adam(master)
    for x in torch.rand(10, 3, 4).bfloat16():
        net(x).pow(2).mean().backward()
        for m, p in zip(master, net.parameters()):
            m.grad, p.grad = p.grad.float(), None
        opt.step()
        with torch.no_grad():
            for m, p in zip(master, net.parameters()):
                p.copy_(m)
    """,
    "random_projection_made_anew": """
    class Augment(nn.Module):
        def forward(self, x):
            conv = nn.Linear(4, 4).requires_grad_(False)
            return conv(x)
    net = nn.Sequential(Augment(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for x in torch.rand(40, 3, 4):
        opt.zero_grad()
        net(x).pow(2).mean().backward()
        opt.step()
    """,
    "gradient_penalty_and_frozen_layers": """
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    frozen = [*net[0].parameters()]
    opt = torch.optim.SGD(net[2].parameters(), 0.1)
    for x in torch.rand(10, 3, 4):
        x.requires_grad_()
        y = net(x).sum()
        (g,) = torch.autograd.grad(y, x, create_graph=True)
        opt.zero_grad()
        (y + g.pow(2).mean()).backward()
        opt.step()
    """,
}  # fmt: skip


@pytest.mark.parametrize("guard", [False, True], ids=["run", "guard"])
@pytest.mark.parametrize("name", SILENT)
def test_what_is_meant(name: str, guard: bool) -> None:
    ran = run(textwrap.dedent(SILENT[name]).lstrip("\n"), f"trained-{name}", guard=guard)
    assert ran.error is None
    assert ran.diagnoses == []
