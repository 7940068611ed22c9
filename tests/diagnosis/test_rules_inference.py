"""GX201 to GX203: tensors that were made under inference_mode and used in training."""

from __future__ import annotations

from cases import Case, Cases, check_broken, check_mended

case = Cases()
NO_GRAD = ("torch.inference_mode()", "torch.no_grad()")

# --- saved for backward ---------------------------------------------------------------------------

case(
    "GX201", "rotary_cache_warmed_while_generating", """
    class Rotary(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.register_buffer("freq", 1.0 / 100 ** (torch.arange(0, dim, 2).float() / dim))
            self._cache = {}
        def forward(self, length):
            if length not in self._cache:
                angles = torch.outer(torch.arange(length).float(), self.freq)
                self._cache[length] = torch.cat([angles, angles], -1).cos()  #C
            return self._cache[length]
    class Attention(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.q, self.rope = nn.Linear(dim, dim), Rotary(dim)
        def forward(self, x):
            return self.q(x) * self.rope(x.shape[1])  #V
    model = Attention(4)
    def generate(prompt):
        with torch.inference_mode():
            return model(prompt)
    generate(torch.ones(1, 16, 4))
    model(torch.ones(2, 16, 4)).sum().backward()
    """,
    NO_GRAD,
    text=("`model.rope._cache[16]`", ":9"),
    fix=("no_grad", ":19", "`model.rope._cache[16] = model.rope._cache[16].clone()`"),
)  # fmt: skip
case(
    "GX201", "mask_from_an_lru_cache", """
    import functools
    @functools.lru_cache(maxsize=None)
    def causal_bias(length):
        upper = torch.ones(length, length).triu(1)
        return upper * -10.0 + 1.0  #C
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.qk = nn.Linear(4, 4)
        def forward(self, x):
            scores = self.qk(x) @ x.transpose(1, 2)
            return (scores * causal_bias(x.shape[1])).softmax(-1) @ x  #V
    def evaluate(net, x):
        net.eval()
        with torch.inference_mode():
            net(x)
        net.train()
    net = Block()
    evaluate(net, torch.ones(1, 3, 4))
    for step in range(2):
        net(torch.ones(2, 3, 4)).sum().backward()
    """,
    NO_GRAD,
    text=("`causal_bias.<lru_cache>`",), fix=("no_grad", ":15", "causal_bias.cache_clear()"),
)  # fmt: skip
case(
    "GX201", "relative_position_table_built_lazily", """
    class RelativeBias(nn.Module):
        def __init__(self, heads):
            super().__init__()
            self.heads, self.slopes = heads, None
        def build(self, n):
            steps = torch.arange(n)[None] - torch.arange(n)[:, None]
            return -steps.abs() * torch.full((self.heads, 1, 1), 0.5)  #C
        def forward(self, scores):
            if self.slopes is None or self.slopes.shape[-1] != scores.shape[-1]:
                self.slopes = self.build(scores.shape[-1])
            return scores * self.slopes  #V
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.bias = nn.Linear(5, 5), RelativeBias(2)
        def forward(self, x):
            return self.bias(self.fc(x))
    @torch.inference_mode()
    def sanity_check(net, x):
        return net(x).mean().item()
    net = Net()
    sanity_check(net, torch.ones(2, 5, 5))
    net(torch.ones(2, 5, 5)).mean().backward()
    """,
    NO_GRAD,
    text=("`net.bias.slopes`",), fix=("@torch.no_grad()", ":18"),
)  # fmt: skip
case(
    "GX201", "rollout_observations_in_a_buffer", """
    class Policy(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        def forward(self, obs):
            return self.head(torch.tanh(self.body(obs))).log_softmax(-1)  #V
    class Rollout:
        def __init__(self):
            self.obs, self.actions = [], []
        def add(self, obs, action):
            self.obs.append(obs)
            self.actions.append(action)
        def batch(self):
            return torch.stack(self.obs), torch.stack(self.actions)
    def env_step(obs, action):
        return obs * 0.9 + action.float()  #C
    def collect(policy, rollout, steps):
        obs = torch.ones(3)
        with torch.inference_mode():
            for _ in range(steps):
                action = policy(obs).argmax()
                obs = env_step(obs, action)
                rollout.add(obs, action)
    policy, rollout = Policy(), Rollout()
    collect(policy, rollout, 3)
    for obs, action in zip(rollout.obs, rollout.actions):
        loss = -policy(obs)[int(action)]
        loss.backward()
    """,
    NO_GRAD,
    fix=("no_grad", ":19"),
)  # fmt: skip
case(
    "GX201", "ema_teacher_targets", """
    import copy
    class Distiller:
        def __init__(self, student):
            self.student = student
            self.teacher = copy.deepcopy(student).requires_grad_(False)
        @torch.inference_mode()
        def targets(self, x):
            return (self.teacher(x) / 0.5).softmax(-1)  #C
        def loss(self, x):
            soft = self.targets(x)
            logp = self.student(x).log_softmax(-1)
            return -(soft * logp).sum(-1).mean()  #V
    student = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    distiller = Distiller(student)
    opt = torch.optim.SGD(student.parameters(), 0.1)
    for _ in range(2):
        opt.zero_grad()
        distiller.loss(torch.ones(2, 3)).backward()
        opt.step()
    """,
    NO_GRAD,
    text=("`soft`",), fix=("@torch.no_grad()", ":6", "`soft = soft.clone()`"),
)  # fmt: skip
case(
    "GX201", "loader_transform_in_inference_mode", """
    from torch.utils.data import DataLoader, Dataset
    class Images(Dataset):
        def __len__(self):
            return 4
        def __getitem__(self, index):
            return torch.full((3, 4, 4), float(index)), index % 2
    class Augment(nn.Module):
        def forward(self, x):
            x = x - x.mean((2, 3), keepdim=True)
            return F.pad(x, (1, 1, 1, 1))  #C
    augment = Augment()
    @torch.inference_mode()
    def collate(items):
        images, labels = zip(*items)
        return augment(torch.stack(images)), torch.tensor(labels)
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(32, 2))
    def train(loader):
        for images, labels in loader:
            logits = net(images)  #V
            F.cross_entropy(logits, labels).backward()
    train(DataLoader(Images(), batch_size=2, collate_fn=collate))
    """,
    NO_GRAD,
    fix=("@torch.no_grad()",),
)  # fmt: skip
case(
    "GX201", "prompt_embeddings_encoded_once", """
    class TextEncoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb = nn.Embedding(9, 4)
        def forward(self, ids):
            return self.emb(ids).mean(1)
    class Pipeline:
        def __init__(self):
            self.text = TextEncoder()
            self.embeds = None
        def encode(self, ids):
            with torch.inference_mode():
                embeds = self.text(ids)
                return torch.cat([embeds, embeds * 0])  #C
        def prepare(self, ids):
            self.embeds = self.encode(ids)
    class Unet(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(4, 4)
        def forward(self, x, cond):
            return self.proj(x) * cond  #V
    pipe, unet = Pipeline(), Unet()
    pipe.prepare(torch.arange(3)[None])
    def step(x):
        return F.mse_loss(unet(x, pipe.embeds), torch.zeros(2, 4))
    step(torch.ones(2, 4)).backward()
    """,
    NO_GRAD,
    text=("`cond`", "`pipe.embeds`"), fix=("no_grad", "`pipe.embeds = pipe.embeds.clone()`"),
)  # fmt: skip
case(
    "GX201", "model_built_under_inference_mode", """
    class Head(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(dim))  #C
        def forward(self, x):
            return torch.tanh(x * self.scale)  #V
    @torch.inference_mode()
    def load_model(dim):
        model = Head(dim)
        return model.eval()
    model = load_model(3)
    model.train()
    model(torch.ones(2, 3, requires_grad=True)).sum().backward()
    """,
    NO_GRAD,
    text=("model.scale",), fix=("nn.Parameter(",),
)  # fmt: skip
case(
    "GX201", "cross_attention_memory_computed_by_encoder", """
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(3, 4, batch_first=True)
        def forward(self, x):
            out, _ = self.rnn(x)  #C
            return out
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.k = nn.Linear(4, 4)
        def forward(self, q, memory):
            keys = self.k(memory)  #V
            return (q @ keys.transpose(1, 2)).softmax(-1)
    class Captioner(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc, self.dec = Encoder(), Decoder()
        def forward(self, x, q):
            with torch.inference_mode():
                memory = self.enc(x)
            return self.dec(q, memory)
    net = Captioner()
    net(torch.ones(1, 5, 3), torch.ones(1, 2, 4)).max().backward()
    """,
    NO_GRAD,
    text=("`memory`",), fix=("no_grad", "`memory = memory.clone()`"),
)  # fmt: skip
case(
    "GX201", "class_weights_counted_in_validation", """
    class BalancedLoss:
        _weights = {}
        def weights(self, labels, classes):
            if classes not in self._weights:
                counts = torch.bincount(labels, minlength=classes).float() + 1
                self._weights[classes] = counts.sum() / counts  #C
            return self._weights[classes]
        def __call__(self, logits, labels):
            return F.cross_entropy(logits, labels, self.weights(labels, logits.shape[1]))  #V
    class Trainer:
        def __init__(self):
            self.net, self.criterion = nn.Linear(2, 3), BalancedLoss()
        @torch.inference_mode()
        def validation_step(self, x, y):
            return self.criterion(self.net(x), y)
        def training_step(self, x, y):
            return self.criterion(self.net(x), y)
        def fit(self, x, y):
            self.validation_step(x, y)
            self.training_step(x, y).backward()
    Trainer().fit(torch.ones(4, 2), torch.tensor([0, 1, 2, 1]))
    """,
    NO_GRAD,
    fix=("@torch.no_grad()",),
)  # fmt: skip
case(
    "GX201", "lora_over_cached_base_activations", """
    class Lora(nn.Module):
        def __init__(self, base, rank=1):
            super().__init__()
            self.base = base.requires_grad_(False)
            self.a, self.b = nn.Linear(4, rank, bias=False), nn.Linear(rank, 4, bias=False)
        def hidden(self, x):
            return self.base(x)
        def forward(self, h):
            return h + self.b(self.a(h))  #V
    class Cache:
        def __init__(self, model):
            self.model, self.store = model, {}
        @torch.inference_mode()
        def fill(self, batches):
            for key, x in batches.items():
                self.store[key] = F.normalize(self.model.hidden(x))  #C
    model = Lora(nn.Linear(4, 4))
    cache = Cache(model)
    cache.fill({"a": torch.ones(1, 4), "b": torch.zeros(1, 4)})
    for key in cache.store:
        model(cache.store[key]).sum().backward()
    """,
    NO_GRAD,
    text=("`cache.store['a']`",), fix=("`cache.store['a'] = cache.store['a'].clone()`",),
)  # fmt: skip
case(
    "GX201", "mode_entered_by_hand_and_left_late", """
    class Scaler(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3))
        def forward(self, x):
            return (self.w * x).sum()  #V
    def preprocess(raw):
        guard = torch.inference_mode()
        guard.__enter__()
        clean = (raw - raw.mean()) / raw.std()  #C
        guard.__exit__(None, None, None)
        return clean
    net = Scaler()
    net(preprocess(torch.arange(3.0))).backward()
    """,
    ("guard = torch.inference_mode()", "guard = torch.no_grad()"),
    fix=(":9",),
)  # fmt: skip
case(
    "GX201", "mode_chosen_by_a_flag", """
    import contextlib
    def context(frozen):
        return torch.inference_mode() if frozen else contextlib.nullcontext()
    class Tagger(nn.Module):
        def __init__(self, frozen):
            super().__init__()
            self.frozen = frozen
            self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        def forward(self, x):
            with context(self.frozen):
                h = torch.relu(self.body(x))  #C
            return self.head(h)  #V
    Tagger(True)(torch.ones(2, 3)).sum().backward()
    """,
    NO_GRAD,
    text=("`h`",),
)  # fmt: skip

# --- written --------------------------------------------------------------------------------------

case(
    "GX202", "kv_cache_allocated_while_serving", """
    class KVCache:
        def __init__(self):
            self.k, self.pos = None, 0
        def update(self, k):
            if self.k is None:
                self.k = torch.zeros(1, 8, k.shape[-1])  #C
            self.k[:, self.pos : self.pos + k.shape[1]] = k  #V
            self.pos = (self.pos + k.shape[1]) % 8
            return self.k
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.kproj, self.cache = nn.Linear(4, 4), KVCache()
        def forward(self, x):
            return x @ self.cache.update(self.kproj(x)).transpose(1, 2)
    class Server:
        def __init__(self, layer):
            self.layer = layer
        @torch.inference_mode()
        def decode(self, x):
            return self.layer(x)
    layer = Layer()
    Server(layer).decode(torch.ones(1, 2, 4))
    layer(torch.ones(1, 2, 4))
    """,
    NO_GRAD,
    ("self.k = torch.zeros", "pass; self.k = torch.zeros"),
    text=("`layer.cache.k`",), fix=("no_grad", "`self.k = self.k.clone()`"),
)  # fmt: skip
case(
    "GX202", "ema_weights_made_in_evaluation", """
    class Ema:
        def __init__(self, model, decay=0.9):
            self.model, self.decay, self.shadow = model, decay, {}
        def start(self):
            for name, p in self.model.named_parameters():
                self.shadow[name] = p.detach().clone()  #C
        def update(self):
            for name, p in self.model.named_parameters():
                self.shadow[name].mul_(self.decay).add_(p.detach(), alpha=1 - self.decay)  #V
    def evaluate(model, ema, x):
        with torch.inference_mode():
            if not ema.shadow:
                ema.start()
            return model(x).sum()
    model = nn.Linear(2, 1)
    ema = Ema(model)
    opt = torch.optim.SGD(model.parameters(), 0.1)
    evaluate(model, ema, torch.ones(1, 2))
    for _ in range(2):
        model(torch.ones(1, 2)).sum().backward()
        opt.step()
        ema.update()
    """,
    NO_GRAD,
    text=("ema.shadow['weight']",), fix=("no_grad",),
)  # fmt: skip
case(
    "GX202", "running_statistics_of_a_normaliser", """
    class RunningMeanStd:
        def __init__(self, shape):
            self.mean, self.count = torch.zeros(shape), 0
        def update(self, batch):
            self.count += len(batch)
            delta = batch.mean(0) - self.mean
            self.mean = self.mean + delta * len(batch) / self.count  #C
        def merge(self, other):
            self.mean.lerp_(other, 0.5)  #V
    @torch.inference_mode()
    def warm_up(stats):
        for _ in range(3):
            stats.update(torch.ones(4, 2))
    stats = RunningMeanStd(2)
    warm_up(stats)
    stats.merge(torch.zeros(2))
    """,
    NO_GRAD,
    text=("`stats.mean`",), fix=("`self.mean = self.mean.clone()`",),
)  # fmt: skip
case(
    "GX202", "metric_state_reset_after_validation", """
    class Confusion(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.register_buffer("counts", torch.zeros(n, n))
        def update(self, pred, label):
            index = pred.argmax(1) * len(self.counts) + label
            new = torch.bincount(index, minlength=self.counts.numel()).view_as(self.counts)
            self.counts = self.counts + new  #C
        def reset(self):
            self.counts.zero_()  #V
    def validate(net, metric, loader):
        with torch.inference_mode():
            for x, y in loader:
                metric.update(net(x), y)
    net, metric = nn.Linear(2, 2), Confusion(2)
    loader = [(torch.ones(3, 2), torch.tensor([0, 1, 1]))]
    for epoch in range(2):
        metric.reset()
        validate(net, metric, loader)
    """,
    NO_GRAD,
    text=("`metric.counts`",), fix=("no_grad",),
)  # fmt: skip
case(
    "GX203", "weights_assigned_from_an_average", """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 3, bias=False), nn.Linear(3, 1)
        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))
    @torch.inference_mode()
    def averaged(models):
        merged = {}
        for name in models[0].state_dict():
            merged[name] = torch.stack([m.state_dict()[name] for m in models]).mean(0)  #C
        return merged
    soup = Net()
    soup.load_state_dict(averaged([Net(), Net()]), assign=True)  #V
    """,
    NO_GRAD,
    fix=("no_grad",),
)  # fmt: skip
case(
    "GX202", "momentum_queue_filled_in_inference_mode", """
    class MoCo(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Linear(3, 2)
            self.queue, self.ptr = None, 0
        @torch.inference_mode()
        def initialise(self, loader):
            self.queue = torch.cat([self.encoder(x) for x in loader]).T.contiguous()  #C
        def enqueue(self, keys):
            n = keys.shape[0]
            self.queue[:, self.ptr : self.ptr + n] = keys.T  #V
            self.ptr += n
        def forward(self, x):
            logits = self.encoder(x)
            self.enqueue(logits.detach())
            return logits
    moco = MoCo()
    moco.initialise([torch.ones(2, 3)] * 2)
    moco(torch.ones(1, 3)).sum().backward()
    """,
    NO_GRAD,
    text=("`moco.queue`",),
)  # fmt: skip

# --- other uses -----------------------------------------------------------------------------------

case(
    "GX203", "adversarial_noise_made_while_evaluating", """
    class Attack:
        def __init__(self, net, eps):
            self.net, self.eps = net, eps
        def start(self, x):
            return x + self.eps * torch.sign(x)  #C
        def gradient(self, x):
            x.requires_grad_(True)  #V
            return torch.autograd.grad(self.net(x).sum(), x)[0]
    def robustness(net, x):
        attack = Attack(net, 0.1)
        with torch.inference_mode():
            clean = net(x)
            start = attack.start(x)
        return attack.gradient(start) + clean
    robustness(nn.Linear(2, 1), torch.ones(1, 2))
    """,
    NO_GRAD,
    fix=("no_grad", ".clone()"),
)  # fmt: skip
case(
    "GX203", "latent_optimised_after_encoding", """
    class Inverter:
        def __init__(self, enc, dec):
            self.enc, self.dec = enc, dec
        @torch.inference_mode()
        def encode(self, image):
            return self.enc(image) * 0.5  #C
        def invert(self, image, steps=2):
            w = self.encode(image)
            w.requires_grad = True  #V
            opt = torch.optim.SGD([w], 0.1)
            for _ in range(steps):
                opt.zero_grad()
                F.mse_loss(self.dec(w), image).backward()
                opt.step()
            return w
    Inverter(nn.Linear(3, 2), nn.Linear(2, 3)).invert(torch.ones(1, 3))
    """,
    NO_GRAD,
    text=("`w`",), fix=("`w = w.clone()`",),
)  # fmt: skip
case(
    "GX203", "version_asked_of_a_cached_tensor", """
    class Watcher:
        def __init__(self):
            self.seen = {}
        def note(self, name, tensor):
            self.seen[name] = tensor._version  #V
    def features(net, x):
        with torch.inference_mode():
            return torch.relu(net(x))  #C
    feats = features(nn.Linear(2, 2), torch.ones(1, 2))
    Watcher().note("feats", feats)
    """,
    NO_GRAD,
)  # fmt: skip


@case.broken()
def test_broken(case: Case) -> None:
    check_broken(case)


@case.broken()
def test_mended(case: Case) -> None:
    check_mended(case)
