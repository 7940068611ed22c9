"""GX302 and GX303: graphs that were used up, and inputs that the graph does not have."""

from __future__ import annotations

from cases import Case, Cases, check_broken, check_mended

case = Cases()

case(
    "GX302", "backward_twice", """
    x = torch.ones(3, requires_grad=True)
    y = x.exp()  #V
    loss = y.sum()
    loss.backward()  #V
    loss.backward()  #C
    """,
    ("loss.backward()\nloss.backward()", "loss.backward()"),
    fix=("take `loss.backward()` out at", ":5", "retain_graph=True", ":4"),
)  # fmt: skip
case(
    "GX302", "criterion_calls_backward_too", """
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    class Criterion:
        def __call__(self, out, scale):
            loss = out.pow(2).sum()
            (loss * scale).backward()  #V
            return loss
    def step(criterion):
        loss = criterion(net(torch.ones(1, 2)), 2.0)
        loss.backward()  #C
    step(Criterion())
    """,
    ("\n    loss.backward()", ""),
    text=("each call adds the same gradients",), fix=(":9", ":5"),
)  # fmt: skip
case(
    "GX302", "part_of_the_total_differentiated_before", """
    net, aux = nn.Sequential(nn.Linear(2, 2), nn.Tanh()), nn.Linear(2, 1)
    x = torch.ones(1, 2)
    main = net(x).pow(2).sum()
    main.backward()  #C
    total = main + aux(x).sum()
    total.backward()  #V
    """,
    ("main.backward()\n", ""),
    fix=("take `main.backward()` out at", ":4", "computes these gradients too"),
)  # fmt: skip
case(
    "GX302", "part_of_the_total_differentiated_after", """
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    def step(x):
        a, b = net(x).pow(2).sum(), net(x).abs().mean()
        (a + b).backward()  #V
        return a
    loss = step(torch.ones(1, 2))
    loss.backward()  #C
    """,
    ("loss = step(torch.ones(1, 2))\nloss.backward()", "loss = step(torch.ones(1, 2))"),
    fix=(":7", ":4"),
)  # fmt: skip
case(
    "GX302", "second_pass_adds_onto_the_first_loss", """
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    out, loss = net(torch.ones(4, 2)), 0
    for t in range(3):
        loss += out[:, t].pow(2).mean()  #CV
    loss.backward()
    out = net(torch.ones(4, 2) * 2)
    for t in range(3):
        loss += out[:, t].pow(2).mean()  #C
    loss.backward()
    """,
    ("out = net(torch.ones(4, 2) * 2)", "out, loss = net(torch.ones(4, 2) * 2), 0"),
    fix=("loss",),
)  # fmt: skip
case(
    "GX302", "two_calls_for_different_inputs", """
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    x = torch.ones(1, 2, requires_grad=True)
    loss = net(x).pow(2).sum()  #CV
    loss.backward(inputs=[x])  #C
    loss.backward(inputs=list(net.parameters()))
    """,
    ("inputs=[x]", "inputs=[x], retain_graph=True"),
    fix=("retain_graph=True", ":4"),
)  # fmt: skip
case(
    "GX302", "backward_in_a_loop", """
    x = torch.ones(3, requires_grad=True)
    loss = x.exp().sum()  #CV
    for _ in range(2):
        loss.backward()
    """,
    ("loss.backward()", "x.exp().sum().backward()"),
    fix=("compute the loss at", "again"),
)  # fmt: skip
case(
    "GX302", "hidden_state_carried", """
    cell = nn.RNNCell(2, 2)
    h = torch.zeros(1, 2)
    for _ in range(2):
        h = cell(torch.ones(1, 2), h)  #CV
        h.sum().backward()
    """,
    ("h = cell(torch.ones(1, 2), h)", "h = cell(torch.ones(1, 2), h.detach())"),
    fix=("`h = h.detach()`",),
)  # fmt: skip
case(
    "GX302", "lstm_states_carried", """
    lstm = nn.LSTM(2, 2)
    state = None
    for _ in range(2):
        out, state = lstm(torch.ones(1, 1, 2), state)  #CV
        out.sum().backward()
    """,
    ("(torch.ones(1, 1, 2), state)",
     "(torch.ones(1, 1, 2), state and tuple(s.detach() for s in state))"),
    fix=("`state`", ".detach()"),
)  # fmt: skip
case(
    "GX302", "embedding_computed_once", """
    encoder, head = nn.Sequential(nn.Linear(2, 2), nn.Tanh()), nn.Linear(2, 1)
    features = encoder(torch.ones(1, 2))  #CV
    for _ in range(2):
        loss = head(features).sum()
        loss.backward()
    """,
    ("loss = head(features)", "loss = head(encoder(torch.ones(1, 2)))"),
    fix=("`features`", "in each iteration", ":2"),
)  # fmt: skip
case(
    "GX302", "two_losses_of_one_forward", """
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    h = net(torch.ones(1, 2))  #CV
    first, second = h.sum(), (h ** 2).sum()
    first.backward()
    second.backward()
    """,
    ("first.backward()\nsecond.backward()", "(first + second).backward()"),
    fix=("two losses", "retain_graph=True", ":4"),
)  # fmt: skip
case(
    "GX302", "total_loss_accumulated", """
    w = torch.ones(2, requires_grad=True)
    total = 0
    for _ in range(2):
        total = total + (w ** 2).sum()  #CV
        total.backward()
    """,
    ("total.backward()", "pass"),
    fix=("`total = total.detach()`",),
)  # fmt: skip
case(
    "GX302", "total_loss_augmented", """
    w = torch.ones(2, requires_grad=True)
    total = torch.zeros(())
    for _ in range(2):
        total += (w ** 2).sum()  #CV
        total.backward()
    """,
    ("total.backward()", "pass"),
)  # fmt: skip
case(
    "GX302", "grad_then_backward", """
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #CV
    y = h.sum()  #C
    torch.autograd.grad(y, [x])
    y.backward()
    """,
    ("torch.autograd.grad(y, [x])", "torch.autograd.grad(y, [x], retain_graph=True)"),
    fix=("retain_graph=True", ":4"),
)  # fmt: skip
case(
    "GX302", "running_state_of_a_module", """
    class Memory(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.state = nn.Linear(2, 2), torch.zeros(1, 2)
        def forward(self, x):
            self.state = torch.tanh(self.fc(x) + self.state)  #CV
            return self.state
    net = Memory()
    for _ in range(2):
        net(torch.ones(1, 2)).sum().backward()
    """,
    ("+ self.state)", "+ self.state.detach())"),
    fix=("`net.state = net.state.detach()` below",),
)  # fmt: skip
case(
    "GX302", "gan_shares_the_fake", """
    gen, disc = nn.Sequential(nn.Linear(2, 2), nn.Tanh()), nn.Linear(2, 1)
    fake = gen(torch.ones(1, 2))  #CV
    disc(fake).sum().backward()
    (-disc(fake)).sum().backward()
    """,
    ("disc(fake).sum().backward()\n(", "disc(fake.detach()).sum().backward()\n("),
    fix=("`fake`",),
)  # fmt: skip
case(
    "GX302", "reference_to_earlier_batches", """
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    history = []
    for _ in range(2):
        history.append(net(torch.ones(1, 2)))  #CV
        torch.stack(history).sum().backward()
    """,
    ("history.append(net(torch.ones(1, 2)))\n    torch.stack(history)",
     "history.append(net(torch.ones(1, 2)).detach())\n    net(torch.ones(1, 2))"),
)  # fmt: skip
case(
    "GX302", "weight_computed_once_by_a_hypernetwork", """
    hyper = nn.Linear(1, 2)
    weight = hyper(torch.ones(1)).exp()  #CV
    def step(x):
        return (x * weight).sum()
    for _ in range(2):
        step(torch.ones(2)).backward()
    """,
    ("return (x * weight)", "return (x * hyper(torch.ones(1)).exp())"),
    fix=("`weight`",),
)  # fmt: skip
case(
    "GX302", "custom_function_used_up", """
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x
        @staticmethod
        def backward(ctx, g):
            return 2 * g * ctx.saved_tensors[0]
    x = torch.ones(3, requires_grad=True)
    y = Square.apply(x)  #CV
    y.sum().backward()
    y.mean().backward()
    """,
    ("y.sum().backward()", "y.sum().backward(retain_graph=True)"),
)  # fmt: skip
case(
    "GX302", "retain_graph_on_the_first_only", """
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #CV
    a, b, c = h.sum(), h.mean(), h.max()
    a.backward(retain_graph=True)
    b.backward()
    c.backward()
    """,
    ("b.backward()", "b.backward(retain_graph=True)"),
    fix=(":5",),
)  # fmt: skip
case(
    "GX302", "batch_norm_between", """
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    h = net(torch.ones(4, 2))  #CV
    for target in (0.0, 1.0):
        F.mse_loss(h, torch.full((4, 2), target)).backward()
    """,
    ("F.mse_loss(h,", "F.mse_loss(net(torch.ones(4, 2)),"),
)  # fmt: skip
case(
    "GX302", "reentrant_checkpoint_of_an_outer_graph", """
    from torch.utils.checkpoint import checkpoint
    enc = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    h = enc(torch.ones(1, 2))  #CV
    for _ in range(2):
        checkpoint(torch.exp, h, use_reentrant=True).sum().backward()
    """,
    ("checkpoint(torch.exp, h,", "checkpoint(torch.exp, enc(torch.ones(1, 2)),"),
    fix=("`h`",),
)  # fmt: skip

case(
    "GX302", "old_probabilities_not_detached", """
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    def log_prob(x):
        return net(x).log_softmax(-1)  #V
    old = log_prob(torch.ones(4, 2))  #C
    for _ in range(2):
        ratio = (log_prob(torch.ones(4, 2)) - old).exp()
        ratio.mean().backward()
    """,
    ("- old)", "- old.detach())"),
    fix=("`old = log_prob(torch.ones(4, 2)).detach()`", ":4"),
)  # fmt: skip
case(
    "GX302", "buffer_written_by_slice", """
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("h", torch.zeros(1, 2))
            self.fc = nn.Linear(2, 2)
        def forward(self, x):
            self.h[:] = torch.tanh(self.fc(x) + self.h)  #CV
            return self.h.clone()
    cell = Cell()
    for _ in range(2):
        cell(torch.ones(1, 2)).sum().backward()
    """,
    ("self.h[:] = ", "self.h = self.h.detach(); self.h[:] = "),
    fix=("self.h", ".detach()"),
)  # fmt: skip

# --- what links the two graphs --------------------------------------------------------------------

case(
    "GX302", "linked_by_a_local_of_the_loop", """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = nn.GRU(1, 3, batch_first=True), nn.Linear(3, 1)
        def forward(self, x, state):
            h, state = self.rnn(x, state)  #V
            return self.out(h), state
    def fit(net, opt, x, state):
        pred, new_state = net(x, state)
        opt.zero_grad()
        pred.pow(2).mean().backward()
        opt.step()
        return new_state
    def run(net, opt):
        state = None
        for _ in range(3):
            state = fit(net, opt, torch.ones(1, 4, 1), state)  #C
    net = Net()
    run(net, torch.optim.SGD(net.parameters(), 0.1))
    """,
    ("return new_state", "return new_state.detach()"),
    text=("`state`, a local of run(),",), fix=("`state = state.detach()`",),
)  # fmt: skip
case(
    "GX302", "linked_by_a_buffer", """
    class Lif(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("v", torch.zeros(1, 3))
        def forward(self, current):
            for step in current.unbind(1):
                self.v = 0.9 * self.v * torch.sigmoid(self.v) + step  #CV
            return torch.sigmoid(self.v)
    class Spiking(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.lif, self.b = nn.Linear(2, 3), Lif(), nn.Linear(3, 1)
        def forward(self, x):
            return self.b(self.lif(self.a(x)))
    net = Spiking()
    for _ in range(2):
        net(torch.ones(1, 4, 2)).sum().backward()
    """,
    ("return torch.sigmoid(self.v)",
     "spikes = torch.sigmoid(self.v)\n        self.v = self.v.detach()\n        return spikes"),
    text=("`net.lif.v`, a buffer of Lif,",),
)  # fmt: skip
case(
    "GX302", "linked_by_a_running_sum", """
    class Trainer:
        def __init__(self):
            self.net = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
        def fit(self, batches):
            total_loss = 0.0
            for x in batches:
                loss = self.net(x).pow(2).mean()
                total_loss = total_loss + loss  #CV
                total_loss.backward()
            return total_loss
    Trainer().fit(torch.ones(2, 1, 2))
    """,
    ("total_loss.backward()", "loss.backward()"),
    text=("`total_loss`, a running sum,",), fix=("total_loss",),
)  # fmt: skip
case(
    "GX302", "linked_by_an_average_of_losses", """
    class Balancer:
        def __init__(self, beta):
            self.beta, self.avg = beta, None
        def update(self, loss):
            if self.avg is None:
                self.avg = loss
            self.avg = self.beta * self.avg + (1 - self.beta) * loss  #CV
            return loss / self.avg
    net, balancer = nn.Linear(2, 1), Balancer(0.9)
    for x in torch.rand(3, 4, 2):
        balancer.update(net(x).pow(2).mean()).backward()
    """,
    ("(1 - self.beta) * loss", "(1 - self.beta) * loss.detach()"),
    ("self.avg = loss\n", "self.avg = loss.detach()\n"),
    text=("`self.avg`, an attribute of Balancer,",), fix=("`self.avg = self.avg.detach()`",),
)  # fmt: skip
case(
    "GX302", "linked_by_positions_cached_in_a_module", """
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.mlp, self._pos = nn.Embedding(8, 4), nn.Linear(4, 4), None
        def positions(self, n):
            if self._pos is None:
                self._pos = torch.tanh(self.mlp(self.table.weight[:n]))  #CV
            return self._pos
        def forward(self, x):
            return x * self.positions(x.shape[1])
    enc = Encoder()
    for x in torch.rand(2, 1, 3, 4):
        enc(x).sum().backward()
    """,
    ("if self._pos is None:", "if True:"),
    text=("_pos`, an attribute of",), fix=("in each iteration",),
)  # fmt: skip
case(
    "GX302", "linked_by_a_replay_buffer", """
    class Replay:
        def __init__(self):
            self.items = []
        def push(self, latent):
            self.items.append(latent)
        def sample(self):
            return torch.cat(self.items[-2:])
    enc, head, replay = nn.Sequential(nn.Linear(2, 2), nn.Tanh()), nn.Linear(2, 1), Replay()
    def encode(x):
        return enc(x)  #CV
    for x in torch.rand(3, 1, 2):
        replay.push(encode(x))
        head(replay.sample()).pow(2).mean().backward()
    """,
    ("self.items.append(latent)", "self.items.append(latent.detach())"),
    text=("`replay.items[0]`, an entry of `replay.items`,",),
    fix=("`replay.items = type(replay.items)(t.detach() for t in replay.items)`",),
)  # fmt: skip
case(
    "GX302", "linked_by_a_mask_made_from_a_parameter", """
    class Mask(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(3))
        def forward(self):
            return torch.sigmoid(self.logits)  #V
    def train(mask, net, batches):
        weights = mask()  #C
        for x in batches:
            loss = (net(x) * weights).sum()
            loss.backward()
    train(Mask(), nn.Linear(2, 3), torch.rand(2, 1, 2))
    """,
    ("(net(x) * weights)", "(net(x) * mask())"),
    text=("`weights`, a local of train(),",), fix=("`weights`", "in each iteration"),
)  # fmt: skip

# --- GX303 ----------------------------------------------------------------------------------------

case(
    "GX303", "slice_taken_afterwards", """
    data = torch.ones(4, 2, requires_grad=True)
    x = data[:, :1]  #C
    u = (data ** 2).sum()  #V
    torch.autograd.grad(u, [x])  #V
    """,
    ("u = (data ** 2).sum()", "u = (x ** 2).sum()"),
    text=("`x`",), fix=("`x`", ":2", ":3"),
)  # fmt: skip
case(
    "GX303", "unused_parameter", """
    net = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    y = net[0](torch.ones(1, 2)).sum()  #V
    torch.autograd.grad(y, list(net.parameters()))  #C
    """,
    ("list(net.parameters())", "list(net[0].parameters())"),
    text=("`net[1].weight`", "`net[1].bias`"), fix=("allow_unused",),
)  # fmt: skip
case(
    "GX303", "leaf_that_was_copied", """
    x = torch.ones(3)
    y_in = x.clone().requires_grad_()
    x.requires_grad_()
    loss = (y_in * 2).sum()  #V
    (g,) = torch.autograd.grad(loss, x)  #C
    """,
    ("(y_in * 2)", "(x * 2)"),
    text=("`x`",),
)  # fmt: skip
case(
    "GX303", "second_of_three_inputs", """
    a, b, c = (torch.ones(2, requires_grad=True) for _ in range(3))
    loss = (a * c).sum()  #V
    torch.autograd.grad(loss, (a, b, c))  #C
    """,
    ("(a, b, c))", "(a, c))"),
    text=("`b` is",),
)  # fmt: skip
case(
    "GX303", "gradient_penalty_on_another_batch", """
    critic = nn.Linear(2, 1)
    def penalty(real, fake):
        mixed = (0.5 * real + 0.5 * fake).requires_grad_()
        score = critic(fake)  #V
        return torch.autograd.grad(score.sum(), mixed)[0].norm()  #C
    penalty(torch.ones(1, 2), torch.zeros(1, 2))
    """,
    ("critic(fake)", "critic(mixed)"),
    text=("`mixed`",),
)  # fmt: skip
case(
    "GX303", "input_reshaped_after_the_forward", """
    x = torch.ones(4, requires_grad=True)
    y = x.exp().sum()  #V
    x = x.view(2, 2)  #C
    torch.autograd.grad(y, [x])
    """,
    ("y = x.exp().sum()\nx = x.view(2, 2)", "x = x.view(2, 2)\ny = x.exp().sum()"),
)  # fmt: skip


@case.broken()
def test_broken(case: Case) -> None:
    check_broken(case)


@case.broken()
def test_mended(case: Case) -> None:
    check_mended(case)
