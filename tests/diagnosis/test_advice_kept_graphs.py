"""What GX302 prints as help for what was made once, or kept in a list, typed where it says."""

from __future__ import annotations

from advice import Advice, Advices, check

once, listed, asked = Advices(), Advices(), Advices()

once(
    "matrix_made_by_the_constructor", """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(3, 3)
            self.edges = nn.Parameter(torch.ones(3, 3))
            self.adjacency = self.normalised()
        def normalised(self):
            return self.edges / self.edges.sum(1, keepdim=True)
        def forward(self, x):
            return self.adjacency @ self.lin(x)
    graph = Net()
    leaves = list(graph.lin.parameters())
    for _ in range(2):
        graph(torch.ones(3, 3)).exp().sum().backward()
    """,
    ("self.adjacency = self.normalised()", "self.adjacency = self.normalised().detach()"),
    never=("graph.adjacency = graph.adjacency.detach()",),
    twin=(("self.adjacency = self.normalised()", "self.adjacency = self.normalised().data"),),
)  # fmt: skip
once(
    "direction_that_a_property_keeps", """
    from functools import cached_property
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows = nn.Parameter(torch.arange(6.0).view(2, 3) + 1)
        @cached_property
        def unit(self):
            return self.rows / self.rows.norm(dim=1, keepdim=True)
        def forward(self, x):
            return x @ self.unit.t()
    head = Head()
    leaves = list(head.parameters())
    def fit(model):
        for _ in range(2):
            model(torch.ones(4, 3)).exp().sum().backward()
    fit(head)
    """,
    ("@cached_property", "@property"),
    words=("`@property` in place of `@cached_property`, at direction_that_a_property_keeps.py:6",
           "`return (self.rows / self.rows.norm(dim=1, keepdim=True)).detach()` there"),
    twin=(("model(torch.ones(4, 3)).exp().sum().backward()",
           "vars(model).pop('unit', None)\nmodel(torch.ones(4, 3)).exp().sum().backward()"),),
)  # fmt: skip
once(
    "tables_of_a_function_with_a_cache", """
    import functools
    freq = torch.ones(3, requires_grad=True)
    leaves = [freq]
    @functools.lru_cache(maxsize=8)
    def tables(n):
        angles = torch.outer(torch.arange(n).float(), freq)
        return angles.cos()
    for _ in range(2):
        (torch.ones(4, 3) * tables(4)).sum().backward()
    """,
    ("@functools.lru_cache(maxsize=8)", "# nothing"),
    words=("tables() without `@functools.lru_cache(maxsize=8)`, at "
           "tables_of_a_function_with_a_cache.py:4", "`return angles.cos().detach()` there"),
    twin=(("(torch.ones(4, 3) * tables(4)).sum().backward()",
           "tables.cache_clear()\n(torch.ones(4, 3) * tables(4)).sum().backward()"),),
)  # fmt: skip
once(
    "weights_that_are_no_leaf", """
    import math
    def xavier(fan_in, fan_out):
        return torch.ones(fan_in, fan_out, requires_grad=True) / math.sqrt(fan_in)
    weight = xavier(4, 2)
    leaves = [weight]
    for _ in range(2):
        (torch.ones(3, 4) @ weight).exp().sum().backward()
    """,
    ("return torch.ones(fan_in, fan_out, requires_grad=True) / math.sqrt(fan_in)",
     "return (torch.ones(fan_in, fan_out) / math.sqrt(fan_in)).requires_grad_()"),
    never=("detach()",),
    twin=(("return torch.ones(fan_in, fan_out, requires_grad=True) / math.sqrt(fan_in)",
           "return torch.full((fan_in, fan_out), 1 / math.sqrt(fan_in), requires_grad=True)"),),
)  # fmt: skip
once(
    "code_that_is_optimised", """
    decoder = nn.Linear(2, 3)
    decoder.requires_grad_(False)
    code = torch.ones(1, 2).requires_grad_() * 0.1
    leaves = [code]
    for _ in range(2):
        decoder(code).exp().sum().backward()
    """,
    ("code = torch.ones(1, 2).requires_grad_() * 0.1",
     "code = (torch.ones(1, 2) * 0.1).requires_grad_()"),
    never=("detach()",),
    twin=(("code = torch.ones(1, 2).requires_grad_() * 0.1",
           "code = torch.full((1, 2), 0.1, requires_grad=True)"),),
)  # fmt: skip
listed(
    "log_probabilities_of_all_episodes", """
    class Policy:
        def __init__(self):
            self.lin = nn.Linear(2, 2)
            self.logs, self.rewards = [], []
        def act(self, k):
            self.logs.append(self.lin(torch.ones(2) * k).log_softmax(0)[0])
            self.rewards.append(float(k))
    def finish(agent):
        loss = torch.stack([-l * r for l, r in zip(agent.logs, agent.rewards)]).sum()
        loss.backward()
        agent.rewards.clear()
    policy = Policy()
    leaves = list(policy.lin.parameters())
    for episode in range(3):
        for k in range(2):
            policy.act(1 + k + episode)
        finish(policy)
    """,
    ("loss.backward()", "loss.backward()\nagent.logs.clear()"),
    words=("`agent.logs.clear()` below log_probabilities_of_all_episodes.py:10",),
    twin=(("finish(policy)", "finish(policy)\npolicy.logs = []"),),
)  # fmt: skip
listed(
    "losses_that_a_loop_adds_up", """
    w = torch.ones(3, requires_grad=True)
    leaves = [w]
    losses = []
    for epoch in range(2):
        for k in range(3):
            losses.append((w * k).exp().sum())
        total = 0
        for loss in losses:
            total = total + loss
        total.backward()
    """,
    ("total.backward()", "total.backward()\nlosses.clear()"),
    words=("`losses.clear()` below losses_that_a_loop_adds_up.py:10",),
    twin=(("losses = []", "losses, older = [], []"),
          ("total.backward()", "total.backward()\nlosses = []")),
)  # fmt: skip
listed(
    "tracker_of_a_mean", """
    class Tracker:
        def __init__(self):
            self.losses = []
        def add(self, value):
            self.losses.append(value)
        def mean(self):
            return torch.stack(self.losses).mean()
    w = torch.ones(3, requires_grad=True)
    leaves = [w]
    tracker = Tracker()
    def step(k):
        tracker.add((w * k).exp().sum())
        tracker.mean().backward()
    for k in range(3):
        step(k)
    """,
    ("tracker.mean().backward()", "tracker.mean().backward()\ntracker.losses.clear()"),
    words=("`tracker.losses.clear()` below tracker_of_a_mean.py:13", "the earlier ones are to"),
    twin=(("step(k)", "step(k)\ntracker.losses = []"),),
)  # fmt: skip
listed(
    "last_state_of_a_list", """
    cell = nn.RNNCell(2, 3)
    leaves = list(cell.parameters())
    states = [torch.zeros(1, 3)]
    for _ in range(3):
        states.append(cell(torch.ones(1, 2), states[-1]))
        states[-1].sum().backward()
    """,
    ("states[-1].sum().backward()",
     "states[-1].sum().backward()\nstates[:] = [t.detach() for t in states]"),
    words=("`states[:] = [t.detach() for t in states]` below",),
    never=("clear()",),
    twin=(("states[-1].sum().backward()",
           "states[-1].sum().backward()\nstates = [torch.tensor(states[-1].tolist())]"),),
)  # fmt: skip
asked(
    "norms_of_each_loss", """
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    leaves = list(net.parameters())
    out = net(torch.ones(4, 2))
    losses = [out.pow(2).mean(), out.exp().mean()]
    norms = []
    for loss in losses:
        (g,) = torch.autograd.grad(loss, net[0].weight, retain_graph=loss is losses[0])
        norms.append(g.norm())
    total = sum(loss / norm for loss, norm in zip(losses, norms))
    total.backward()
    """,
    ("(g,) = torch.autograd.grad(loss, net[0].weight, retain_graph=loss is losses[0])",
     "(g,) = torch.autograd.grad(loss, net[0].weight, retain_graph=True)"),
    words=("keep the graph at norms_of_each_loss.py:7", "`retain_graph=True`"),
    never=("add them", "backward() once"),
    twin=(("norms.append(g.norm())",
           "norms.append(g.norm()); out = net(torch.ones(4, 2)); "
           "losses[:] = [out.pow(2).mean(), out.exp().mean()]"),),
)  # fmt: skip
asked(
    "saliency_before_the_loss", """
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    leaves = list(net.parameters())
    x = torch.ones(4, 2, requires_grad=True)
    score = net(x).exp()
    saliency = torch.autograd.grad(score.sum(), x)[0]
    (score * saliency.abs().sum(1, keepdim=True)).mean().backward()
    """,
    ("saliency = torch.autograd.grad(score.sum(), x)[0]",
     "saliency = torch.autograd.grad(score.sum(), x, retain_graph=True)[0]"),
    words=("keep the graph at saliency_before_the_loss.py:5", "`retain_graph=True`"),
    never=("add them",),
    twin=(("saliency = torch.autograd.grad(score.sum(), x)[0]",
           "saliency = torch.autograd.grad(net(x).exp().sum(), x)[0]"),),
)  # fmt: skip
asked(
    "gradient_asked_for_after_the_backward", """
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    leaves = list(net.parameters())
    z = net(torch.ones(4, 2))
    loss = z.exp().mean()
    loss.backward()
    slope = torch.autograd.grad((z * 2).sigmoid().sum(), net[0].bias)
    """,
    ("loss.backward()", "loss.backward(retain_graph=True)"),
    words=("keep the graph at gradient_asked_for_after_the_backward.py:5",
           "`retain_graph=True`"),
    never=("add them",),
    twin=(("loss.backward()", "net(torch.ones(4, 2)).exp().mean().backward()"),),
)  # fmt: skip


@asked.each()
def test_gradients_that_were_asked_for(each: Advice) -> None:
    check(each, "GX302")


@once.each()
def test_made_once(each: Advice) -> None:
    check(each, "GX302")


@listed.each()
def test_kept_in_a_list(each: Advice) -> None:
    check(each, "GX302")
