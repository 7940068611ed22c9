"""GX301: backward() of a tensor that has no history, and where the way back was cut."""

from __future__ import annotations

from cases import Case, Cases, check_broken, check_mended

case = Cases()

# --- values that went to Python -------------------------------------------------------------------

case(
    "GX301", "losses_collected_as_floats", """
    net = nn.Linear(2, 1)
    def total(batches):
        losses = []
        for x, y in batches:
            loss = F.mse_loss(net(x), y)
            losses.append(loss.item())  #C
        return torch.tensor(losses).mean()  #V
    total([(torch.ones(1, 2), torch.zeros(1, 1))] * 2).backward()  #V
    """,
    ("loss.item()", "loss"), ("torch.tensor(losses)", "torch.stack(losses)"),
    text=("`.item()`", ":6"), fix=(":6",),
)  # fmt: skip
case(
    "GX301", "loss_through_numpy", """
    def dice(logits, mask):
        p = torch.sigmoid(logits).detach().numpy()  #C
        m = mask.numpy()
        return torch.from_numpy(1 - 2 * (p * m).sum(keepdims=True) / (p.sum() + m.sum()))  #V
    def train(net, batches):
        for x, mask in batches:
            loss = dice(net(x), mask).mean()
            loss.backward()  #V
    train(nn.Linear(2, 3), [(torch.ones(1, 2), torch.ones(1, 3))])
    """,
    (".detach().numpy()", ""), ("mask.numpy()", "mask"),
    ("torch.from_numpy(1 - 2 * (p * m).sum(keepdims=True) / (p.sum() + m.sum()))",
     "1 - 2 * (p * m).sum() / (p.sum() + m.sum())"),
    text=("`.detach().numpy()`",), fix=(":2", "compute on with torch", ":4"),
)  # fmt: skip
case(
    "GX301", "rewards_to_tensor_and_back", """
    class Reinforce:
        def __init__(self, policy):
            self.policy, self.log_probs, self.rewards = policy, [], []
        def act(self, obs):
            dist = torch.distributions.Categorical(logits=self.policy(obs))
            action = dist.sample()
            self.log_probs.append(dist.log_prob(action).item())  #C
            self.rewards.append(1.0)
        def loss(self):
            returns = torch.tensor(self.rewards)
            log_probs = torch.tensor(self.log_probs)
            return -(log_probs * returns).sum()
    agent = Reinforce(nn.Linear(2, 3))
    for _ in range(3):
        agent.act(torch.ones(2))
    agent.loss().backward()  #V
    """,
    (".item())", ")"), ("torch.tensor(self.log_probs)", "torch.stack(self.log_probs)"),
    text=("`.item()`",),
)  # fmt: skip
case(
    "GX301", "tensor_of_a_tensor", """
    net = nn.Linear(2, 1)
    def criterion(pred, target):
        error = (pred - target).abs().mean()
        return torch.tensor(error)  #C
    criterion(net(torch.ones(1, 2)), torch.zeros(1, 1)).backward()  #V
    """,
    ("torch.tensor(error)", "error"),
    text=("torch.tensor()",), fix=(":4",),
)  # fmt: skip
case(
    "GX301", "float_of_the_loss", """
    class Meter:
        def __init__(self):
            self.value = 0.0
        def add(self, loss):
            self.value += float(loss)  #C
            return torch.as_tensor(self.value)
    net, meter = nn.Linear(2, 1), Meter()
    loss = net(torch.ones(1, 2)).pow(2).mean()
    meter.add(loss).backward()  #V
    """,
    ("float(loss)", "loss"),
)  # fmt: skip
case(
    "GX301", "list_of_outputs", """
    net = nn.Linear(2, 3)
    def step(x):
        scores = net(x)[0].tolist()  #C
        best = max(scores)
        return torch.tensor(best - sum(scores) / len(scores))
    step(torch.ones(1, 2)).backward()  #V
    """,
    ("[0].tolist()", "[0]"), ("max(scores)", "scores.max()"),
    ("torch.tensor(best - sum(scores) / len(scores))", "best - scores.mean()"),
    text=("`.tolist()`",),
)  # fmt: skip
case(
    "GX301", "numpy_metric_as_loss", """
    import numpy as np
    class SpectralLoss(nn.Module):
        def forward(self, pred, target):
            a = np.abs(np.fft.rfft(pred.detach().cpu().numpy()))  #C
            b = np.abs(np.fft.rfft(target.cpu().numpy()))
            return torch.as_tensor(np.mean((a - b) ** 2))
    def fit(net, criterion, x, y):
        opt = torch.optim.SGD(net.parameters(), 0.1)
        opt.zero_grad()
        loss = criterion(net(x), y)
        loss.backward()  #V
        opt.step()
    fit(nn.Linear(4, 8), SpectralLoss(), torch.ones(1, 4), torch.zeros(1, 8))
    """,
    ("np.abs(np.fft.rfft(pred.detach().cpu().numpy()))", "torch.fft.rfft(pred).abs()"),
    ("np.abs(np.fft.rfft(target.cpu().numpy()))", "torch.fft.rfft(target).abs()"),
    ("torch.as_tensor(np.mean((a - b) ** 2))", "((a - b) ** 2).mean()"),
)  # fmt: skip

# --- ops without a derivative ---------------------------------------------------------------------

case(
    "GX301", "accuracy_instead_of_cross_entropy", """
    net = nn.Linear(2, 3)
    def accuracy(logits, labels):
        hits = logits.argmax(1) == labels  #C
        return hits.float().mean()
    for x, y in [(torch.ones(2, 2), torch.tensor([0, 1]))]:
        loss = 1 - accuracy(net(x), y)
        loss.backward()  #V
    """,
    ("1 - accuracy(net(x), y)", "F.cross_entropy(net(x), y)"),
    text=("argmax",), fix=("softmax", ":3"),
)  # fmt: skip
case(
    "GX301", "threshold_by_comparison", """
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)
        def forward(self, x):
            keep = (torch.sigmoid(self.fc(x)) > 0.5).float()  #C
            return x * keep
    gate = Gate()
    out = gate(torch.ones(2, 3))
    F.mse_loss(out, torch.zeros(2, 3)).backward()  #V
    """,
    ("(torch.sigmoid(self.fc(x)) > 0.5).float()", "torch.sigmoid(self.fc(x))"),
    fix=("sigmoid",),
)  # fmt: skip
case(
    "GX301", "coordinates_cast_to_integers", """
    grid = torch.linspace(0, 1, 9)
    regressor = nn.Linear(2, 1)
    def sample(x):
        where = (torch.sigmoid(regressor(x)) * 8).long()  #C
        return grid[where]
    loss = (sample(torch.ones(1, 2)) - 0.3).pow(2).sum()
    loss.backward()  #V
    """,
    ("(torch.sigmoid(regressor(x)) * 8).long()", "torch.sigmoid(regressor(x))"),
    ("return grid[where]", "return where"),
)  # fmt: skip
case(
    "GX301", "function_marks_its_output", """
    class Quantise(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            y = torch.round(x)
            ctx.mark_non_differentiable(y)  #C
            return y
        @staticmethod
        def backward(ctx, g):
            return g
    net = nn.Linear(2, 2)
    def forward(x):
        return Quantise.apply(net(x))  #C
    forward(torch.ones(1, 2)).sum().backward()  #V
    """,
    ("        ctx.mark_non_differentiable(y)\n", ""),
    fix=("mark_non_differentiable",),
)  # fmt: skip
case(
    "GX301", "function_returns_indices", """
    class Assign(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, codes):
            return (x[:, None] - codes[None]).pow(2).sum(-1).argmin(1)
        @staticmethod
        def backward(ctx, g):
            return None, None
    enc, codes = nn.Linear(2, 2), torch.eye(2)
    def quantise(x):
        z = enc(x)
        return codes[Assign.apply(z, codes)]  #C
    quantise(torch.ones(3, 2)).sum().backward()  #V
    """,
    ("codes[Assign.apply(z, codes)]", "z"),
)  # fmt: skip
case(
    "GX301", "sampled_token_embedded_again", """
    class Generator(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb = nn.Embedding(5, 3).requires_grad_(False)
            self.rnn, self.out = nn.GRUCell(3, 4), nn.Linear(4, 5)
        def forward(self, h):
            logits = self.out(h)
            token = torch.multinomial(logits.softmax(-1), 1)[:, 0]  #C
            return self.emb(token)
    gen, critic = Generator(), nn.Linear(3, 1).requires_grad_(False)
    score = critic(gen(torch.ones(2, 4)))
    score.mean().backward()  #V
    """,
    ("torch.multinomial(logits.softmax(-1), 1)[:, 0]", "F.gumbel_softmax(logits)"),
    ("self.emb(token)", "token @ self.emb.weight"),
)  # fmt: skip

# --- detach and modes -----------------------------------------------------------------------------

case(
    "GX301", "wrong_side_detached", """
    class Byol(nn.Module):
        def __init__(self):
            super().__init__()
            self.online, self.target = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
        def forward(self, a, b):
            p = F.normalize(self.online(a), dim=-1).detach()  #C
            z = F.normalize(self.target(b), dim=-1)
            return 2 - 2 * (p * z).sum(-1).mean()
    Byol()(torch.ones(1, 2), torch.ones(1, 2)).backward()  #V
    """,
    ("dim=-1).detach()", "dim=-1)"),
    text=("`.detach()`", ":6"), fix=(":6", "`p = F.normalize(self.online(a), dim=-1)`"),
)  # fmt: skip
case(
    "GX301", "data_of_the_prediction", """
    net = nn.Linear(2, 2)
    def predict(x):
        out = net(x)
        return out.data.clamp(0, 1)  #C
    def step(x, y):
        loss = F.l1_loss(predict(x), y)
        loss.backward()  #V
    step(torch.ones(1, 2), torch.zeros(1, 2))
    """,
    ("out.data.clamp", "out.clamp"),
    text=("`.data`",), fix=("`return out.clamp(0, 1)`",),
)  # fmt: skip
case(
    "GX301", "hidden_state_detached_in_place", """
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.RNNCell(2, 3)
        def forward(self, xs):
            h = torch.zeros(1, 3)
            for x in xs:
                h = self.cell(x, h)
                h.detach_()  #C
            return h
    Encoder()([torch.ones(1, 2)] * 3).sum().backward()  #V
    """,
    ("            h.detach_()\n", ""),
    text=("`.detach_()`",), fix=("`h.detach_()`",),
)  # fmt: skip
case(
    "GX301", "forward_decorated_for_evaluation", """
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 1)
        @torch.no_grad()  #C
        def predict(self, x):
            self.eval()
            return torch.sigmoid(self.fc(x))  #C
    def train(model, batches):
        for x, y in batches:
            loss = F.binary_cross_entropy(model.predict(x), y)
            loss.backward()  #V
    train(Model(), [(torch.ones(2, 2), torch.ones(2, 1))])
    """,
    ("    @torch.no_grad()\n", ""),
    text=("`no_grad`",), fix=("decorator", ":5"),
)  # fmt: skip
case(
    "GX301", "grad_mode_left_off_after_validation", """
    def validate(net, x):
        torch.set_grad_enabled(False)  #C
        net.eval()
        score = net(x).mean().item()
        net.train()
        return score
    def fit(net, x):
        for epoch in range(2):
            loss = net(x).pow(2).mean()  #V
            loss.backward()  #V
            validate(net, x)
    fit(nn.Linear(2, 1), torch.ones(1, 2))
    """,
    ("net.train()", "net.train(); torch.set_grad_enabled(True)"),
    text=("set_grad_enabled",), fix=("torch.set_grad_enabled(True)", ":2"),
)  # fmt: skip
case(
    "GX301", "no_grad_entered_by_hand", """
    class Evaluator:
        def __enter__(self):
            self.guard = torch.no_grad()
            self.guard.__enter__()  #C
            return self
        def __exit__(self, *info):
            return False
    net = nn.Linear(2, 1)
    with Evaluator():
        baseline = net(torch.ones(1, 2))
    loss = (net(torch.ones(1, 2)) - baseline).pow(2).mean()
    loss.backward()  #V
    """,
    ("        return False", "        return self.guard.__exit__(*info)"),
    fix=(":4",),
)  # fmt: skip
case(
    "GX301", "no_grad_around_a_closure_that_has_one_too", """
    def evaluate(net, x):
        with torch.no_grad():
            return net(x).mean()
    net, x = nn.Linear(3, 1), torch.ones(1, 3)
    with torch.no_grad():
        with torch.enable_grad():
            evaluate(net, x)
        loss = net(x).sum()  #C
    loss.backward()  #V
    """,
    ("with torch.no_grad():\n    with torch.enable", "if True:\n    with torch.enable"),
    text=("`no_grad`",), fix=("begins at", ":5"),
)  # fmt: skip
case(
    "GX301", "features_computed_in_a_no_grad_block", """
    class Tracker(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = nn.Linear(3, 4), nn.Linear(4, 2).requires_grad_(False)
        def forward(self, x):
            with torch.no_grad():
                h = self.backbone(x)  #C
                h = torch.relu(h)
            return self.head(h)
    net = Tracker()
    net(torch.ones(1, 3)).sum().backward()  #V
    """,
    ("with torch.no_grad():", "if True:"),
    text=("`no_grad`",), fix=(":6",),
)  # fmt: skip
case(
    "GX301", "input_gradient_of_an_unmarked_image", """
    def saliency(net, image, label):
        net.eval()
        score = net(image.flatten(1))[0, label]
        score.backward()  #V
        return image.grad.abs().max(1)[0]
    net = nn.Linear(12, 2).requires_grad_(False)
    image = torch.rand(1, 3, 2, 2)  #C
    saliency(net, image, 1)
    """,
    ("torch.rand(1, 3, 2, 2)", "torch.rand(1, 3, 2, 2, requires_grad=True)"),
    text=("`image`",), fix=("`image.requires_grad_()`",),
)  # fmt: skip
case(
    "GX301", "plain_tensor_weights_in_an_optimizer", """
    class LogReg:
        def __init__(self, n):
            self.w = torch.zeros(n)  #C
            self.b = torch.zeros(1)  #C
        def __call__(self, x):
            return torch.sigmoid(x @ self.w + self.b)
    model = LogReg(2)
    opt = torch.optim.SGD([model.w, model.b], 0.1)
    for _ in range(2):
        opt.zero_grad()
        loss = F.binary_cross_entropy(model(torch.ones(3, 2)), torch.ones(3))
        loss.backward()  #V
        opt.step()
    """,
    ("torch.zeros(n)", "torch.zeros(n, requires_grad=True)"),
    text=("`model.w`",), fix=("requires_grad=True",),
)  # fmt: skip
case(
    "GX301", "plain_tensor_attribute_of_a_module", """
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.ones(2)  #C
        def forward(self, x):
            return x * self.gain
    net = Scale()
    for x in torch.ones(2, 1, 2):
        loss = net(x).pow(2).sum()
        loss.backward()  #V
    """,
    ("self.gain = torch.ones(2)", "self.gain = nn.Parameter(torch.ones(2))"),
    fix=("nn.Parameter",),
)  # fmt: skip
case(
    "GX301", "everything_frozen", """
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        def forward(self, x):
            return self.head(torch.relu(self.body(x)))
    def freeze(module):
        for p in module.parameters():
            p.requires_grad_(False)  #C
        return module
    net = freeze(Classifier())
    F.cross_entropy(net(torch.ones(2, 3)), torch.tensor([0, 1])).backward()  #V
    """,
    ("freeze(Classifier())", "Classifier()\nfreeze(net.body)"),
    text=("switched off",), fix=(":9",),
)  # fmt: skip
case(
    "GX301", "head_not_replaced_after_freezing", """
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    net.requires_grad_(False)  #C
    head = nn.Linear(4, 5)
    opt = torch.optim.SGD(head.parameters(), 0.1)
    def step(x, y):
        opt.zero_grad()
        F.cross_entropy(net(x), y).backward()  #V
    step(torch.ones(2, 3), torch.tensor([0, 1]))
    """,
    ("head = nn.Linear(4, 5)", "net[2] = head = nn.Linear(4, 5)"),
    fix=("`head.weight`",),
)  # fmt: skip
case(
    "GX301", "prompt_tuning_with_a_detached_copy", """
    class PromptTuned(nn.Module):
        def __init__(self, length):
            super().__init__()
            self.prompt = nn.Parameter(torch.zeros(length, 3))
            self.lm = nn.Linear(3, 5).requires_grad_(False)
            self.emb = nn.Embedding(5, 3).requires_grad_(False)
        def forward(self, ids):
            prefix = self.prompt.detach().expand(len(ids), -1, -1)  #C
            h = torch.cat([prefix, self.emb(ids)], 1)
            return self.lm(h)[:, self.prompt.shape[0] :]
    net = PromptTuned(2)
    opt = torch.optim.Adam([net.prompt])
    ids = torch.tensor([[1, 2, 3]])
    F.cross_entropy(net(ids)[0], ids[0]).backward()  #V
    """,
    ("self.prompt.detach()", "self.prompt"),
    text=("`.detach()`",),
    fix=("`prefix = self.prompt.expand(len(ids), -1, -1)`",),
)  # fmt: skip
case(
    "GX301", "reentrant_checkpoint_of_plain_inputs", """
    import warnings
    from torch.utils.checkpoint import checkpoint
    warnings.simplefilter("ignore")
    class Lora(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.Linear(3, 3).requires_grad_(False)
            self.a, self.b = nn.Linear(3, 1, bias=False), nn.Linear(1, 3, bias=False)
        def forward(self, x):
            return self.base(x) + self.b(self.a(x))
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([Lora(), Lora()])
        def forward(self, pixels):
            h = pixels / 255  #V
            for layer in self.layers:
                h = checkpoint(layer, h, use_reentrant=True)  #C
            return h
    Stack()(torch.ones(2, 3)).sum().backward()
    """,
    ("use_reentrant=True", "use_reentrant=False"),
    text=(":18",), fix=("use_reentrant=False",),
)  # fmt: skip
case(
    "GX301", "input_of_grad_is_a_plain_tensor", """
    def penalty(critic, real, fake):
        alpha = torch.rand(len(real), 1)
        mixed = alpha * real + (1 - alpha) * fake.detach()  #C
        score = critic(mixed)
        grad, = torch.autograd.grad(score.sum(), mixed, create_graph=True)  #V
        return (grad.norm(2, 1) - 1).pow(2).mean()
    critic, gen = nn.Linear(2, 1), nn.Linear(3, 2)
    penalty(critic, torch.ones(4, 2), gen(torch.ones(4, 3))).backward()
    """,
    ("fake.detach()\n", "fake.detach()\n    mixed.requires_grad_()\n"),
    text=("`mixed`",), fix=("`mixed.requires_grad_()`", ":3"),
)  # fmt: skip
case(
    "GX301", "loss_under_inference_mode", """
    class Trainer:
        def __init__(self):
            self.net = nn.Linear(2, 1)
        @torch.inference_mode()  #C
        def compute_loss(self, x, y):
            return F.mse_loss(self.net(x), y)  #C
        def step(self, x, y):
            loss = self.compute_loss(x, y)
            loss.backward()  #V
    Trainer().step(torch.ones(1, 2), torch.zeros(1, 1))
    """,
    ("    @torch.inference_mode()\n", ""),
    text=("`inference_mode`",), fix=(":4",),
)  # fmt: skip
case(
    "GX301", "running_loss_logged_then_used", """
    class Logger:
        def __init__(self):
            self.sums = {}
        def log(self, name, value):
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()  #C
        def mean(self, name, n):
            return self.sums[name] / n
    net, logger = nn.Linear(2, 1), Logger()
    for x in torch.ones(3, 1, 2):
        logger.log("mse", net(x).pow(2).mean())
    logger.mean("mse", 3).backward()  #V
    """,
    ("value.detach()", "value"),
)  # fmt: skip
case(
    "GX301", "soft_targets_from_the_student", """
    def distil(student, teacher, x):
        with torch.no_grad():
            t = teacher(x).softmax(-1)
            s = student(x).log_softmax(-1)  #C
        return F.kl_div(s, t, reduction="batchmean")
    student, teacher = nn.Linear(2, 3), nn.Linear(2, 3).requires_grad_(False)
    opt = torch.optim.SGD(student.parameters(), 0.1)
    for x in torch.ones(2, 1, 2):
        loss = distil(student, teacher, x)
        loss.backward()  #V
    """,
    ("        s = student(x)", "    s = student(x)"),
    text=("`no_grad`",), fix=("move `s = student(x).log_softmax(-1)`",),
)  # fmt: skip
case(
    "GX301", "maml_weights_rebuilt_from_data", """
    def adapt(params, grads, lr):
        return [(p - lr * g).data for p, g in zip(params, grads)]  #C
    def forward(x, params):
        return x @ params[0] + params[1]
    params = [torch.ones(2, 1, requires_grad=True), torch.zeros(1, requires_grad=True)]
    meta = torch.optim.SGD(params, 0.1)
    inner = forward(torch.ones(3, 2), params).pow(2).mean()
    fast = adapt(params, torch.autograd.grad(inner, params, create_graph=True), 0.1)
    outer = forward(torch.ones(3, 2), fast).pow(2).mean()
    outer.backward()  #V
    """,
    ("(p - lr * g).data", "p - lr * g"),
    text=("`.data`",),
)  # fmt: skip
case(
    "GX301", "mixup_of_a_rounded_label", """
    def mixed(net, x, y, lam):
        soft = net(x).softmax(-1)
        hard = soft.round().int()  #C
        return (lam * hard + (1 - lam) * F.one_hot(y, 2)).float().sum()
    mixed(nn.Linear(2, 2), torch.ones(1, 2), torch.tensor([0]), 0.3).backward()  #V
    """,
    ("soft.round().int()", "soft"),
)  # fmt: skip


@case.broken()
def test_broken(case: Case) -> None:
    check_broken(case)


@case.broken()
def test_mended(case: Case) -> None:
    check_mended(case)
