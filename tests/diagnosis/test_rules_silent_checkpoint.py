"""GX304 of reentrant checkpoints whose inputs need no gradient, beside something that trains."""

from __future__ import annotations

import dataclasses
import functools

import pytest
from cases import Case, Cases, check_broken, check_mended, run

pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs")

HEAD = "from torch.utils.checkpoint import checkpoint, checkpoint_sequential\n"
_cases = Cases()
case = functools.partial(_cases, "GX304")

case(
    "a_trunk_over_data_below_a_head", """
    trunk, head = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 1)
    opt = torch.optim.SGD([*trunk.parameters(), *head.parameters()], 0.1)
    for x in torch.rand(2, 3, 4):
        opt.zero_grad()
        features = checkpoint(trunk, x, use_reentrant=True)  #C
        head(features).square().mean().backward()  #V
        opt.step()
    """,
    ("use_reentrant=True", "use_reentrant=False"),
    text=("trunk[0]",), fix=("use_reentrant=False", "`x.requires_grad_()`"),
)  # fmt: skip
case(
    "adapters_in_blocks_that_are_called_in_a_loop", """
    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.Linear(4, 4).requires_grad_(False)
            self.down, self.up = nn.Linear(4, 2), nn.Linear(2, 4)
        def forward(self, h):
            return self.base(h) + self.up(self.down(h))
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(9, 4).requires_grad_(False)
            self.blocks = nn.ModuleList(Adapted() for _ in range(3))
        def forward(self, ids):
            h = self.table(ids)
            for block in self.blocks:
                h = checkpoint(block, h, use_reentrant=True)  #C
            return h.mean(1)
    encoder, logits = Encoder(), nn.Linear(4, 4)
    out = torch.cat([encoder(torch.randint(0, 9, (3, 5))), logits(torch.rand(3, 4))], 1)
    out.square().sum().backward()  #V
    """,
    ("h = self.table(ids)\n", "h = self.table(ids).requires_grad_()\n"),
    text=("encoder.blocks",), fix=("`h.requires_grad_()`",),
)  # fmt: skip
case(
    "a_term_of_two", """
    a, b = nn.Linear(4, 1), nn.Linear(4, 1)
    def score(net, x):
        return checkpoint(net, x, use_reentrant=True).mean()  #C
    def total(x):
        loss = b(x).square().mean()
        return loss + score(a, x)  #V
    total(torch.rand(3, 4)).backward()
    """,
    ("use_reentrant=True", "use_reentrant=False"), text=("a.weight",),
)  # fmt: skip
case(
    "in_segments_under_a_matmul", """
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    scale = nn.Parameter(torch.rand(4, 4))
    opt = torch.optim.Adam([*net.parameters(), scale])
    y = checkpoint_sequential(net, 2, torch.rand(3, 4), use_reentrant=True)  #C
    y = F.layer_norm(y[:, :4], (4,))
    (y @ scale).logsumexp(-1).sum().backward()  #V
    opt.step()
    """,
    ("use_reentrant=True", "use_reentrant=False"),
)  # fmt: skip


def _with_head(case: Case) -> Case:
    return dataclasses.replace(case, source=HEAD + case.source)


@_cases.broken()
def test_the_call_and_what_it_trains_are_named(case: Case) -> None:
    ran = check_broken(_with_head(case))
    assert {d.severity for d in ran.diagnoses} == {"warning"}
    assert {d.code for d in ran.diagnoses} == {"GX304"}


@_cases.broken()
def test_the_mended_twin_is_silent(case: Case) -> None:
    check_mended(_with_head(case))


FINE = Cases()


def fine(name: str, source: str) -> None:
    FINE("", name, source)


fine("a_frozen_encoder", """
    encoder, head = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).requires_grad_(False), nn.Linear(4, 1)
    features = checkpoint(encoder, torch.rand(3, 4), use_reentrant=True)
    head(features).sum().backward()
    """)  # fmt: skip
fine("an_input_that_requires_grad", """
    trunk, head = nn.Linear(4, 4), nn.Linear(4, 1)
    x = torch.rand(3, 4).requires_grad_()
    head(checkpoint(trunk, x, use_reentrant=True)).sum().backward()
    """)  # fmt: skip
fine("a_constant_is_meant", """
    teacher, net = nn.Linear(4, 4), nn.Linear(4, 4)
    opt = torch.optim.SGD([*teacher.parameters(), *net.parameters()], 0.1)
    x = torch.rand(3, 4)
    target = checkpoint(teacher, x, use_reentrant=True).detach()
    F.mse_loss(net(x), target).backward()
    with torch.no_grad():
        soft = checkpoint(teacher, x, use_reentrant=True).softmax(-1)
    (net(x) * soft).sum().backward()
    hard = checkpoint(teacher, x, use_reentrant=True)
    with torch.no_grad():
        hard = hard.softmax(-1)
    (net(x) * hard).sum().backward()
    """)  # fmt: skip
fine("a_teacher_that_nobody_trains", """
    teacher, net = nn.Linear(4, 4), nn.Linear(4, 4)
    opt = torch.optim.SGD(net.parameters(), 0.1)
    x = torch.rand(3, 4)
    F.mse_loss(net(x), checkpoint(teacher, x, use_reentrant=True)).backward()
    """)  # fmt: skip
fine("weights_that_get_a_gradient_by_another_way", """
    shared, head = nn.Linear(4, 4), nn.Linear(4, 1)
    x = torch.rand(3, 4)
    hint = checkpoint(shared, x, use_reentrant=True)
    head(shared(x) + hint).sum().backward()
    """)  # fmt: skip
fine("a_result_that_no_loss_uses", """
    net, other = nn.Linear(4, 4), nn.Linear(4, 1)
    x = torch.rand(3, 4)
    logged = checkpoint(net, x, use_reentrant=True).mean().item()
    other(x).sum().backward()
    """)  # fmt: skip
fine("the_discriminators_step", """
    make, judge = nn.Linear(4, 4), nn.Linear(4, 1)
    opt = torch.optim.SGD([*make.parameters(), *judge.parameters()], 0.1)
    z = torch.rand(3, 4)
    judge(checkpoint(make, z, use_reentrant=True).detach()).sum().backward()
    judge(checkpoint(make, z.requires_grad_(), use_reentrant=True)).sum().backward()
    """)  # fmt: skip
fine("nested_and_trained", """
    inner, outer = nn.Linear(4, 4), nn.Linear(4, 4)
    def block(h):
        return checkpoint(inner, outer(h), use_reentrant=True)
    x = torch.rand(3, 4, requires_grad=True)
    checkpoint(block, x, use_reentrant=True).sum().backward()
    """)  # fmt: skip


@FINE.broken()
def test_nothing_is_said_where_nothing_is_lost(case: Case) -> None:
    ran = run(HEAD + case.shown, case.name)
    assert ran.error is None
    assert ran.diagnoses == []
