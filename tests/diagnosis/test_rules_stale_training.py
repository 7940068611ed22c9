"""GX101 in training loops: optimizers, parameters, GANs, recurrent state."""

from __future__ import annotations

from cases import Case, Cases, check_broken, check_mended

case = Cases()

_GAN = """
    torch.manual_seed(0)
    gen, disc = nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    gopt = torch.optim.{0}(gen.parameters(), lr=0.1)
    dopt = torch.optim.{0}(disc.parameters(), lr=0.1)
    fake = gen(torch.ones(5, 2))
    score = disc(fake)  #V
    loss_d, loss_g = score.mean(), -score.mean()
    loss_d.backward(retain_graph=True)
    dopt.step()  #C
    loss_g.backward()
    gopt.step()
"""
for _kind in ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam"):
    case(
        "GX101", f"gan_{_kind}", _GAN.format(_kind),
        ("dopt.step()\nloss_g.backward()", "loss_g.backward()\ndopt.step()"),
        fix=("move `dopt.step()`", "backward() at", ":10"), text=("disc[2].weight",),
    )  # fmt: skip
for _flag in ("foreach=True", "foreach=False"):
    case(
        "GX101", f"two_losses_{_flag}", f"""
        net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
        opt = torch.optim.SGD(net.parameters(), lr=0.1, {_flag})
        y = net(torch.ones(2, 3))  #V
        y.mean().backward(retain_graph=True)
        opt.step()  #C
        y.pow(2).mean().backward()
        """,
        ("opt.step()\ny.pow", "y.pow"),
    )  # fmt: skip
case(
    "GX101", "the_other_optimizer_is_not_blamed", """
    a, b = nn.Linear(3, 3), nn.Linear(3, 1)
    opt_a = torch.optim.SGD(a.parameters(), lr=0.1)
    opt_b = torch.optim.SGD(b.parameters(), lr=0.1)
    h = a(torch.ones(2, 3))
    y = b(h)  #V
    y.mean().backward(retain_graph=True)
    opt_a.step()
    opt_b.step()  #C
    y.sum().backward()
    """,
    ("opt_b.step()", "pass"),
    fix=("`opt_b.step()`",),
)  # fmt: skip
case(
    "GX101", "own_optimizer_class", """
    class Plain(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {})
        @torch.no_grad()
        def step(self):
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.add_(p.grad, alpha=-0.1)  #C
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    opt = Plain(net.parameters())
    y = net(torch.ones(2, 3))  #V
    y.mean().backward(retain_graph=True)
    opt.step()
    y.sum().backward()
    """,
    ("opt.step()\ny.sum", "y.sum"),
    fix=("move `opt.step()`",),
)  # fmt: skip
case(
    "GX101", "lbfgs_closure_without_forward", """
    w = torch.ones(3, requires_grad=True)
    opt = torch.optim.LBFGS([w], lr=0.1, max_iter=3)
    loss = (w ** 3).sum()  #V
    def closure():
        opt.zero_grad()
        loss.backward(retain_graph=True)
        return loss
    opt.step(closure)  #C
    """,
    ("opt.zero_grad()\n    loss", "opt.zero_grad()\n    loss = (w ** 3).sum()\n    loss"),
    fix=("inside the closure",),
)  # fmt: skip
case(
    "GX101", "grad_scaler_step", """
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    y = net(torch.ones(2, 3))  #V
    scaler.scale(y.mean()).backward(retain_graph=True)
    scaler.step(opt)  #C
    scaler.update()
    y.sum().backward()
    """,
    ("y.sum().backward()", "pass"),
    fix=("`scaler.step(opt)`",),
)  # fmt: skip
case(
    "GX101", "graph_carried_past_the_step", """
    cell = nn.RNNCell(2, 2)
    opt = torch.optim.SGD(cell.parameters(), lr=0.1)
    h = torch.zeros(1, 2)
    for _ in range(3):
        h = cell(torch.ones(1, 2), h)  #V
        opt.zero_grad()
        h.sum().backward(retain_graph=True)
        opt.step()  #C
    """,
    ("h = cell(torch.ones(1, 2), h)", "h = cell(torch.ones(1, 2), h.detach())"),
    fix=("`h = h.detach()`", "earlier iteration"),
)  # fmt: skip
case(
    "GX101", "weight_clipped_between", """
    critic = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    y = critic(torch.ones(2, 3))  #V
    y.mean().backward(retain_graph=True)
    with torch.no_grad():
        for p in critic.parameters():
            p.clamp_(-0.01, 0.01)  #C
    y.sum().backward()
    """,
    ("p.clamp_(-0.01, 0.01)", "pass"),
    fix=("below the backward() at", ":7"),
)  # fmt: skip
case(
    "GX101", "load_state_dict_between", """
    q, target = nn.Linear(3, 1), nn.Linear(3, 1)
    x = torch.ones(2, 3, requires_grad=True)
    loss = (q(x) - target(x)).pow(2).mean()  #V
    target.load_state_dict(q.state_dict())  #C
    loss.backward()
    """,
    ("target.load_state_dict(q.state_dict())\nloss.backward()",
     "loss.backward()\ntarget.load_state_dict(q.state_dict())"),
    fix=("move `target.load_state_dict(q.state_dict())`", "below the backward() at"),
    text=("target.weight",),
)  # fmt: skip
case(
    "GX101", "init_between", """
    net = nn.Linear(3, 1)
    x = torch.ones(2, 3, requires_grad=True)
    y = net(x).sum()  #V
    nn.init.zeros_(net.weight)  #C
    y.backward()
    """,
    ("nn.init.zeros_(net.weight)\ny.backward()", "y.backward()\nnn.init.zeros_(net.weight)"),
    fix=("move `nn.init.zeros_(net.weight)`",), text=("`net.weight",),
)  # fmt: skip
case(
    "GX101", "soft_update_between", """
    q, target = nn.Linear(3, 1), nn.Linear(3, 1)
    x = torch.ones(2, 3, requires_grad=True)
    loss = (q(x) - target(x)).mean()  #V
    with torch.no_grad():
        for p, t in zip(q.parameters(), target.parameters()):
            t.lerp_(p, 0.1)  #C
    loss.backward()
    """,
    ("t.lerp_(p, 0.1)", "pass"),
)  # fmt: skip
case(
    "GX101", "averaged_model_updated_between", """
    q = nn.Linear(3, 1)
    mean = torch.optim.swa_utils.AveragedModel(q)
    mean.update_parameters(q)
    x = torch.ones(2, 3, requires_grad=True)
    loss = (q(x) - mean(x)).mean()  #V
    mean.update_parameters(q)  #C
    loss.backward()
    """,
    ("mean.update_parameters(q)\nloss", "loss"),
)  # fmt: skip
case(
    "GX101", "weight_renormalised_in_forward", """
    class Unit(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(2, 3))
        def forward(self, x):
            with torch.no_grad():
                self.w.div_(self.w.norm())  #C
            return x @ self.w.t()  #V
    net = Unit()
    x = torch.ones(2, 3, requires_grad=True)
    (net(x) * net(x)).sum().backward()
    """,
    ("self.w.div_(self.w.norm())\n", "pass\n"),
)  # fmt: skip
case(
    "GX101", "buffer_of_running_statistics", """
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.ones(3))
        def forward(self, x):
            self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)  #C
            return x * self.mean  #V
    net = Norm()
    x = torch.ones(2, 3, requires_grad=True)
    (net(x) + net(x)).sum().backward()
    """,
    ("return x * self.mean", "return x * self.mean.clone()"),
    text=("`net.mean`",),
)  # fmt: skip
case(
    "GX101", "queue_of_keys_rotated", """
    class Queue(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("keys", torch.ones(4, 3))
        def push(self, k):
            self.keys[:2] = k.detach()  #C
    queue = Queue()
    x = torch.ones(2, 3, requires_grad=True)
    logits = x @ queue.keys.t()  #V
    queue.push(x)
    logits.sum().backward()
    """,
    ("queue.keys.t()", "queue.keys.clone().t()"),
)  # fmt: skip
case(
    "GX101", "embedding_max_norm", """
    table = nn.Embedding(4, 3, max_norm=0.5)
    all_rows = table.weight * 2
    scores = table.weight @ torch.ones(3, 2, requires_grad=True)  #V
    row = table(torch.tensor([1]))  #C
    (scores.sum() + row.sum()).backward()
    """,
    ("table.weight @ torch", "table.weight.clone() @ torch"),
    fix=("max_norm", ".clone()"),
)  # fmt: skip
case(
    "GX101", "gradient_accumulated_with_create_graph", """
    w = torch.ones(3, requires_grad=True)
    (w ** 3).sum().backward(create_graph=True)
    penalty = (w.grad ** 2).sum()  #V
    w.grad.zero_()  #C
    penalty.backward()
    """,
    ("w.grad.zero_()", "w.grad = None"),
)  # fmt: skip
case(
    "GX101", "zero_grad_set_to_none_false", """
    w = torch.ones(3, requires_grad=True)
    opt = torch.optim.SGD([w], lr=0.1)
    (w ** 3).sum().backward(create_graph=True)
    penalty = (w.grad ** 2).sum()  #V
    opt.zero_grad(set_to_none=False)  #C
    penalty.backward()
    """,
    ("set_to_none=False", "set_to_none=True"),
    fix=("set_to_none=True",),
)  # fmt: skip
case(
    "GX101", "gradient_clipped_with_create_graph", """
    w = torch.ones(3, requires_grad=True)
    (w ** 3).sum().backward(create_graph=True)
    penalty = (w.grad ** 2).sum()  #V
    nn.utils.clip_grad_norm_([w], 0.1)  #C
    penalty.backward()
    """,
    ("nn.utils.clip_grad_norm_([w], 0.1)\npenalty.backward()",
     "penalty.backward()\nnn.utils.clip_grad_norm_([w], 0.1)"),
)  # fmt: skip
case(
    "GX101", "double_backward_then_write", """
    x = torch.ones(3, requires_grad=True)
    scale = torch.ones(3)
    y = ((x * scale) ** 3).sum()  #V
    (g,) = torch.autograd.grad(y, [x], create_graph=True)  #V
    scale.mul_(2)  #C
    g.sum().backward()
    """,
    ("scale.mul_(2)", "scale = scale.mul(2)"),
)  # fmt: skip
case(
    "GX101", "second_derivative_saves_the_gradient", """
    x = torch.ones(3, requires_grad=True)
    (g,) = torch.autograd.grad((x ** 3).sum(), [x], create_graph=True)
    e = g.exp()  #V
    g2 = torch.autograd.grad(e.sum(), [x], create_graph=True)[0]
    e.add_(1)  #C
    g2.sum().backward()
    """,
    ("e.add_(1)", "e = e.add(1)"),
)  # fmt: skip
case(
    "GX101", "autograd_grad_call", """
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #V
    h.add_(1)  #C
    torch.autograd.grad(h.sum(), [x])
    """,
    ("h.add_(1)", "h = h.add(1)"),
)  # fmt: skip
case(
    "GX101", "actor_critic_step_between", """
    actor, critic = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    opt = torch.optim.Adam(critic.parameters())
    def act(state):
        return torch.tanh(actor(state))
    state = torch.ones(1, 2)
    value = critic(act(state))  #V
    critic_loss = (value - 1).pow(2).mean()
    def update(loss, optimizer, keep=True):
        optimizer.zero_grad()
        loss.backward(retain_graph=keep)
        optimizer.step()  #C
    update(critic_loss, opt)
    (-value).mean().backward()
    """,
    ("update(critic_loss, opt)\n(-value).mean().backward()",
     "(-value).mean().backward(retain_graph=True)\nupdate(critic_loss, opt)"),
    fix=("move `(-value).mean().backward()`", "above actor_critic_step_between.py:12"),
)  # fmt: skip

case(
    "GX101", "forward_outside_the_training_loop", """
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    opt = torch.optim.Adam(net.parameters())
    y = net(torch.ones(1, 2))  #V
    for _ in range(2):
        opt.zero_grad()
        y.pow(2).sum().backward(retain_graph=True)
        opt.step()  #C
    """,
    ("y.pow(2)", "net(torch.ones(1, 2)).pow(2)"),
    fix=("`y` is made once", ":3", "`opt.step()`"),
)  # fmt: skip
case(
    "GX101", "old_probabilities_kept_with_their_graph", """
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    def log_prob(x):
        return net(x).log_softmax(-1)  #V
    old = log_prob(torch.ones(4, 2))
    for _ in range(2):
        loss = (log_prob(torch.ones(4, 2)) - old).exp().mean()
        loss.backward(retain_graph=True)
        opt.step()  #C
    """,
    ("- old)", "- old.detach())"),
    fix=("`old = old.detach()`", ":5"),
)  # fmt: skip

case(
    "GX101", "state_detached_in_place", """
    cell = nn.RNNCell(2, 2)
    h = torch.zeros(1, 2)
    total = 0
    for _ in range(2):
        h = cell(torch.ones(1, 2), h)
        total = total + (h * h).sum()  #V
        h.detach_()  #C
    total.backward()
    """,
    ("h.detach_()", "h = h.detach()"),
    fix=("`h = h.detach()`",), text=("detach_()",),
)  # fmt: skip


@case.broken()
def test_broken(case: Case) -> None:
    check_broken(case)


@case.broken()
def test_mended(case: Case) -> None:
    check_mended(case)
