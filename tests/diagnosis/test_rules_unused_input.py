"""GX303 where the outputs were computed from the input after all: the line where its path ends."""

from __future__ import annotations

from cases import Case, Cases, check_broken, check_mended, run

case = Cases()

case(
    "GX303", "network_is_fed_a_detached_copy", """
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    def forward(x, t):
        both = torch.cat([x, t], 1).detach()  #C
        return net(both)  #V
    x, t = torch.ones(4, 1, requires_grad=True), torch.ones(4, 1, requires_grad=True)
    u = forward(x, t)
    torch.autograd.grad(u.sum(), t, create_graph=True)  #V
    """,
    (".detach()", ""),
    text=("`t`",), fix=("`both = torch.cat([x, t], 1)`", "allow_unused=True", ":7"),
)  # fmt: skip
case(
    "GX303", "image_is_normalised_in_numpy", """
    net = nn.Linear(2, 1)
    class Normalise:
        def __call__(self, image):
            a = image.detach().numpy()  #C
            return torch.from_numpy((a - a.mean()) / 2)
    def saliency(image):
        image = image.clone().requires_grad_()
        score = net(Normalise()(image)).sum()  #V
        return torch.autograd.grad(score, image)  #V
    saliency(torch.rand(3, 2))
    """,
    (".detach().numpy()", ""), ("torch.from_numpy((a - a.mean()) / 2)", "(a - a.mean()) / 2"),
    text=("`image`", "its path to them ends at"),
)  # fmt: skip
case(
    "GX303", "tokens_from_a_relaxed_input", """
    table, head = nn.Embedding(10, 4), nn.Linear(4, 1)
    def attack(x):
        x = x.requires_grad_()
        ids = (x * 9).long()  #C
        out = head(table(ids)).sum()  #V
        return torch.autograd.grad(out, x)  #V
    attack(torch.rand(3))
    """,
    ("(x * 9).long()", "x * 9"), ("table(ids)", "ids[:, None] * table.weight[0]"),
    fix=("the floating values in place of the cast",),
)  # fmt: skip
case(
    "GX303", "points_encoded_without_grad_mode", """
    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.scale = nn.Linear(3, 1), nn.Parameter(torch.ones(3))
        @torch.no_grad()
        def encode(self, p):
            return torch.sin(p * 3)  #C
        def forward(self, p):
            return self.net(self.encode(p) * self.scale)  #V
    p = torch.rand(5, 3, requires_grad=True)
    sdf = Field()(p)
    torch.autograd.grad(sdf, p, torch.ones_like(sdf), create_graph=True)  #V
    """,
    ("    @torch.no_grad()\n", ""),
    text=("`p`", "`no_grad`"), fix=("take the decorator at", ":5"),
)  # fmt: skip
case(
    "GX303", "penalty_on_the_data_of_a_mixture", """
    disc = nn.Sequential(nn.Linear(2, 4), nn.LeakyReLU(), nn.Linear(4, 1))
    mixed = (torch.rand(3, 1) * torch.rand(3, 2)).requires_grad_()
    score = disc(mixed.data)  #CV
    torch.autograd.grad(score.sum(), mixed, create_graph=True)  #V
    """,
    ("mixed.data", "mixed"),
    text=("`mixed`", "`.data`"), fix=("`score = disc(mixed)`",),
)  # fmt: skip
case(
    "GX303", "fast_weights_are_copies", """
    net = nn.Linear(2, 1)
    fast = [p.detach().clone().requires_grad_() for p in net.parameters()]  #C
    loss = (torch.ones(4, 2) @ fast[0].T + fast[1]).pow(2).mean()  #V
    torch.autograd.grad(loss, list(net.parameters()))  #V
    """,
    ("p.detach().clone().requires_grad_()", "p.clone()"),
    text=("`net.weight`",),
)  # fmt: skip
case(
    "GX303", "gate_by_comparison", """
    w, x = torch.ones(3, requires_grad=True), torch.rand(4, 3, requires_grad=True)
    mask = (x > 0.5).float()  #C
    y = (mask * w).sum()  #V
    torch.autograd.grad(y, x)  #V
    """,
    ("(x > 0.5).float()", "torch.sigmoid(x - 0.5)"),
    text=("the comparison `>`",), fix=("sigmoid of the difference",),
)  # fmt: skip
case(
    "GX303", "another_value_was_detached", """
    enc, net = nn.Linear(2, 2), nn.Linear(2, 1)
    x, probe = torch.rand(3, 2), torch.rand(3, 2, requires_grad=True)
    features = enc(x)
    score = net(features.detach()).sum()  #V
    torch.autograd.grad(score, probe)  #C
    """,
    ("net(features.detach())", "net(features.detach() + probe)"),
    fix=("`probe`",),
)  # fmt: skip


case(
    "GX303", "target_is_detached_beside_the_cut", """
    head = nn.Linear(3, 2)
    def evaluate(e):
        return head(e.data[:, 0])  #C
    def perturb(e, state):
        noise = torch.zeros_like(e).requires_grad_()
        out = evaluate(e.detach() + noise)
        off = F.mse_loss(out, state.softmax(-1).detach())  #V
        return torch.autograd.grad(off, noise)  #V
    e = torch.rand(4, 5, 3)
    perturb(e, evaluate(e))
    """,
    ("e.data[:, 0]", "e[:, 0]"),
    text=("`noise`", "its path to them ends at `.data`"),
)  # fmt: skip
case(
    "GX303", "teacher_is_detached_nearer_to_the_loss", """
    student, teacher = nn.Linear(2, 2), nn.Linear(2, 2)
    class Warp:
        def __call__(self, image, shift):
            moved = image + shift
            return moved.detach()  #C
    shift = torch.zeros(2, requires_grad=True)
    image = torch.rand(6, 2)
    features = student(Warp()(image, shift))  #V
    goal = teacher(image).detach()
    loss = (features - goal).pow(2).sum()
    torch.autograd.grad(loss, shift)  #V
    """,
    ("moved.detach()", "moved"),
    text=("`shift`", "its path to them ends at `.detach()`"),
)  # fmt: skip
case(
    "GX303", "one_of_two_inputs_goes_through_numpy", """
    net = nn.Linear(4, 1)
    def encode(p):
        return torch.from_numpy(p.detach().numpy() * 3)  #C
    p = torch.rand(5, 2, requires_grad=True)
    q = torch.rand(5, 2, requires_grad=True)
    weight = (q * 0.5).detach()
    out = (net(torch.cat([encode(p), q], 1)) * weight.mean()).sum()  #V
    torch.autograd.grad(out, [q, p])  #V
    """,
    ("torch.from_numpy(p.detach().numpy() * 3)", "p * 3"),
    text=("`p`", "its path to them ends at"),
)  # fmt: skip


def test_what_is_not_known_is_not_said() -> None:
    """The leaves behind what was detached are known, and the tensors in between are gone."""
    found = next(c for c in case if c.name == "network_is_fed_a_detached_copy")
    text = found.shown.replace("u = forward(x, t)", "t = t * 2\nu = forward(x, t)")
    (diagnosis,) = run(text, found.name).diagnoses
    assert any("whether `t` did is not known" in note for note in diagnosis.notes)


@case.broken()
def test_broken(case: Case) -> None:
    check_broken(case)


@case.broken()
def test_mended(case: Case) -> None:
    check_mended(case)
