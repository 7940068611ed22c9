"""GX304: parameters that an optimizer has run under no_grad, or are detached, in each round."""

from __future__ import annotations

import textwrap

import pytest
from cases import Cases, named_and_mended, run

from gradext.objects import naming

case = Cases()

case(
    "GX304", "encoder_under_no_grad", """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3)))
            self.head = nn.Linear(6, 2)
        def forward(self, x):
            with torch.no_grad():  #C
                h = self.encoder(x)  #C
            return self.head(h)
    net = Net()
    opt = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for x in torch.rand(4, 16, 6):
        loss = net(x).pow(2).mean()
        opt.zero_grad()
        loss.backward()  #V
        opt.step()
    """,
    ("with torch.no_grad():", "if True:"),
    text=("6 parameters of `net.encoder` were not trained", "`no_grad`", "`opt`", "stepped"),
    fix=("take `with torch.no_grad():` (", "away, and leave `h = self.encoder(x)` ("),
)  # fmt: skip
case(
    "GX304", "embedding_detached_in_front_of_a_scale", """
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.mix = nn.Embedding(11, 6), nn.GRU(6, 6, batch_first=True)
            self.scale = nn.Parameter(torch.ones(6))
        def forward(self, tokens):
            e = self.emb(tokens).detach() * self.scale  #C
            return self.mix(e)[0]
    model = Tokens()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for tokens in torch.randint(0, 11, (3, 4, 7)):
        optimizer.zero_grad(set_to_none=False)
        model(tokens).pow(2).mean().backward()  #V
        optimizer.step()
    """,
    (".detach() * self", " * self"),
    text=("`model.emb.weight` was not trained", "detached by `.detach()`", "`optimizer`"),
    fix=("take `.detach()` out", "self.emb(tokens) * self.scale"),
)  # fmt: skip
case(
    "GX304", "features_of_plain_tensors_by_a_decorated_function", """
    @torch.no_grad()  #C
    def features(points, w, b):
        h = torch.tanh(points @ w + b)  #C
        return h / h.norm(dim=-1, keepdim=True)
    w1, b1, w2 = (torch.randn(s).requires_grad_() for s in ((3, 8), (8,), (8, 1)))
    adam = torch.optim.Adam([w1, b1, w2], lr=0.01)
    for x in torch.rand(4, 8, 3):
        adam.zero_grad()
        loss = (features(x, w1, b1) @ w2).pow(2).mean()
        loss.backward()  #V
        adam.step()
    """,
    ("@torch.no_grad()\n", ""),
    text=("`b1`", "`w1`", "were not trained", "`adam`"),
)  # fmt: skip
case(
    "GX304", "weights_by_their_data_and_groups_of_parameters", """
    class Block(nn.Module):
        def __init__(self, d):
            super().__init__()
            self.w, self.g = nn.Parameter(torch.randn(d, d)), nn.Parameter(torch.ones(d))
        def forward(self, x):
            return x + F.linear(torch.tanh(x), self.w.data) * self.g  #C
    net = nn.Sequential(Block(5), Block(5), nn.Linear(5, 1))
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in net.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    def fit():
        opt = torch.optim.AdamW(groups, lr=1e-2)
        for x in torch.rand(3, 9, 5):
            F.mse_loss(net(x), x[:, :1]).backward()  #V
            opt.step()
            opt.zero_grad()
    fit()
    """,
    ("self.w.data", "self.w"),
    text=("`net[0].w` and `net[1].w` were not trained", "`.data`"), fix=("take `.data` out",),
)  # fmt: skip
case(
    "GX304", "layers_in_a_loop_with_grad_mode_off", """
    layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(5)])
    head = nn.Linear(4, 1)
    opt = torch.optim.RMSprop([*layers.parameters(), *head.parameters()], lr=1e-2)
    def body(x):
        for layer in layers[:3]:
            with torch.set_grad_enabled(False):  #C
                x = torch.tanh(layer(x))  #C
        return head(torch.tanh(layers[4](torch.tanh(layers[3](x)))))
    for step in range(6):
        loss = body(torch.rand(3, 4)).pow(2).mean()
        opt.zero_grad()
        loss.backward()  #V
        opt.step()
    """,
    ("set_grad_enabled(False)", "set_grad_enabled(True)"),
    text=("6 parameters of `layers` were not trained",),
)  # fmt: skip


test_the_line_is_named, test_the_mended_script_is_silent = named_and_mended(case)


SILENT = {
    "frozen": """
    encoder, head = nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 2)
    opt = torch.optim.SGD([*encoder.parameters(), *head.parameters()], 0.1)
    for x in torch.rand(5, 3, 4):
        with torch.no_grad():
            h = encoder(x)
        opt.zero_grad()
        head(h).sum().backward()
        opt.step()
    """,
    "generator_and_discriminator_in_one_optimizer": """
    both = nn.ModuleDict({"g": nn.Linear(4, 3), "d": nn.Linear(3, 1)})
    opt = torch.optim.Adam(both.parameters())
    for i in range(90):
        opt.zero_grad()
        fake = both["g"](torch.rand(5, 4))
        if i < 80:
            both["d"](fake.detach()).mean().backward()
        else:
            (-both["d"](fake).mean()).backward()
        opt.step()
    """,
    "generator_that_has_not_stepped": """
    g, d = nn.Linear(4, 3), nn.Linear(3, 1)
    of_g, of_d = torch.optim.Adam(g.parameters()), torch.optim.Adam(d.parameters())
    for x in torch.rand(6, 5, 4):
        of_d.zero_grad()
        d(g(x).detach()).mean().backward()
        of_d.step()
    """,
    "teacher_that_is_averaged_and_in_the_optimizer": """
    class Byol(nn.Module):
        def __init__(self):
            super().__init__()
            self.online, self.head = nn.Linear(4, 4), nn.Linear(4, 4)
            self.target = copy.deepcopy(self.online)
        def forward(self, a, b):
            with torch.no_grad():
                goal = self.target(b)
            return (self.head(self.online(a)) - goal).pow(2).mean()
    model = Byol()
    opt = torch.optim.SGD(model.parameters(), 0.1)
    for a, b in torch.rand(6, 2, 3, 4):
        opt.zero_grad()
        model(a, b).backward()
        opt.step()
        for p, q in zip(model.target.parameters(), model.online.parameters()):
            p.data.mul_(0.9).add_(q.data, alpha=0.1)
    """,
    "target_network": """
    q, actor = nn.Linear(4, 2), nn.Linear(4, 2)
    target = copy.deepcopy(q)
    opt = torch.optim.Adam([*q.parameters(), *actor.parameters()])
    for k, x in enumerate(torch.rand(8, 5, 4)):
        with torch.no_grad():
            y = 0.9 * target(x).max(1).values
        advantage = (q(x).max(1).values - y).detach()
        loss = (q(x)[:, 0] - y).pow(2).mean() - (actor(x).log_softmax(1)[:, 0] * advantage).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        if k % 3 == 2:
            target.load_state_dict(q.state_dict())
    """,
    "codebook_that_the_program_moves": """
    encoder, decoder, book = nn.Linear(6, 4), nn.Linear(4, 6), nn.Embedding(8, 4)
    opt = torch.optim.Adam([*encoder.parameters(), *decoder.parameters(), *book.parameters()])
    for x in torch.rand(6, 16, 6):
        z = encoder(x)
        index = torch.cdist(z, book.weight).argmin(1)
        with torch.no_grad():
            q = book(index)
        loss = F.mse_loss(decoder(z + (q - z).detach()), x) + F.mse_loss(z, q)
        opt.zero_grad()
        loss.backward()
        opt.step()
        with torch.no_grad():
            book.weight.index_add_(0, index, 0.1 * (z.detach() - q))
    """,
    "warm_up_of_the_head": """
    body, head = nn.Linear(4, 4), nn.Linear(4, 1)
    opt = torch.optim.SGD([*body.parameters(), *head.parameters()], 0.1)
    for epoch in range(3):
        for x in torch.rand(4, 3, 4):
            with torch.set_grad_enabled(epoch == 2):
                h = body(x)
            opt.zero_grad()
            head(h).pow(2).mean().backward()
            opt.step()
    """,
    "a_head_that_is_not_used": """
    body, head, other = nn.Linear(4, 4), nn.Linear(4, 1), nn.Linear(4, 1)
    opt = torch.optim.Adam([*body.parameters(), *head.parameters(), *other.parameters()])
    for x in torch.rand(4, 3, 4):
        opt.zero_grad()
        head(body(x)).pow(2).mean().backward()
        opt.step()
        with torch.no_grad():
            other(body(x)).mean().item()
    """,
    "gradients_that_the_program_sets_itself": """
    base, a, b = nn.Linear(4, 4).requires_grad_(False), *torch.rand(2, 4, 4)
    a, b, prompt = nn.Parameter(a), nn.Parameter(b), nn.Parameter(torch.zeros(4))
    opt = torch.optim.Adam([a, b, prompt], 1e-2)
    for x in torch.rand(5, 8, 4):
        with torch.no_grad():
            e = torch.randn(4)
            slope = base(x + prompt + e).pow(2).mean() - base(x + prompt - e).pow(2).mean()
        opt.zero_grad()
        (base(x + prompt.detach()) + x @ a @ b).pow(2).mean().backward()
        prompt.grad = slope * e
        opt.step()
    """,
    "layers_that_a_number_freezes": """
    layers, head = nn.ModuleList([nn.Linear(4, 4) for _ in range(5)]), nn.Linear(4, 1)
    opt = torch.optim.RMSprop([*layers.parameters(), *head.parameters()], lr=1e-2)
    for x in torch.rand(6, 3, 4):
        for k, layer in enumerate(layers):
            with torch.set_grad_enabled(k >= 3):
                x = torch.tanh(layer(x))
        opt.zero_grad()
        head(x).pow(2).mean().backward()
        opt.step()
    """,
    "warm_up_that_does_not_end": """
    body, head = nn.Linear(4, 4), nn.Linear(4, 1)
    opt = torch.optim.SGD([*body.parameters(), *head.parameters()], 0.1)
    for epoch in range(3):
        for x in torch.rand(4, 3, 4):
            with torch.set_grad_enabled(epoch >= 5):
                h = body(x)
            opt.zero_grad()
            head(h).pow(2).mean().backward()
            opt.step()
    """,
    "context_manager_that_says_so": """
    import contextlib
    @contextlib.contextmanager
    def constant():
        with torch.no_grad():
            yield
    body, head = nn.Linear(4, 4), nn.Linear(4, 1)
    opt = torch.optim.SGD([*body.parameters(), *head.parameters()], 0.1)
    for x in torch.rand(8, 3, 4):
        with constant():
            h = body(x)
        opt.zero_grad()
        head(h).pow(2).mean().backward()
        opt.step()
    """,
    "one_pass": """
    body, head = nn.Linear(4, 4), nn.Linear(4, 1)
    opt = torch.optim.Adam([*body.parameters(), *head.parameters()])
    with torch.no_grad():
        h = body(torch.rand(3, 4))
    head(h).pow(2).mean().backward()
    opt.step()
    """,
}  # fmt: skip


@pytest.mark.parametrize("name", SILENT)
def test_what_is_meant(name: str) -> None:
    ran = run("import copy\n" + textwrap.dedent(SILENT[name]).lstrip("\n"), f"held-{name}")
    assert ran.error is None
    assert ran.diagnoses == []


def test_all_objects_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be a million of them, and the backwards that are looked at are many."""
    asked: list[int] = []
    every = naming.every
    monkeypatch.setattr(naming, "every", lambda *kinds: asked.append(1) or every(*kinds))
    text = """
    encoder, head = nn.Linear(4, 4), nn.Linear(4, 2)
    opt = torch.optim.SGD([*encoder.parameters(), *head.parameters()], 0.1)
    for x in torch.rand(60, 3, 4):
        with torch.no_grad():
            h = encoder(x)
        opt.zero_grad()
        head(h).pow(2).sum().backward()
        opt.step()
    """
    ran = run(textwrap.dedent(text).lstrip("\n"), "many_rounds")
    assert [d.code for d in ran.diagnoses] == ["GX304"]
    assert len(asked) == 1
