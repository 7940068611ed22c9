"""GX304: grad mode is still off by mistake while a part of the loss is computed."""

from __future__ import annotations

import textwrap

import pytest
from cases import Cases, named_and_mended, run

case = Cases()

case(
    "GX304", "switched_off_by_a_validation_that_raises", """
    class Trainer:
        def __init__(self):
            self.net, self.head = nn.Linear(4, 3), nn.Linear(3, 1)
            self.opt = torch.optim.SGD([*self.net.parameters(), *self.head.parameters()], 0.1)
        def validate(self, x):
            torch.set_grad_enabled(False)  #C
            self.net(x).topk(9)
            torch.set_grad_enabled(True)
        def step(self, x):
            h = self.net(x)
            torch.set_grad_enabled(True)
            loss = self.head(h).pow(2).mean()
            self.opt.zero_grad()
            loss.backward()  #V
            self.opt.step()
    t = Trainer()
    for x in torch.rand(3, 5, 4):
        try:
            t.validate(x)
        except RuntimeError:
            pass
        t.step(x)
    """,
    ("        torch.set_grad_enabled(False)\n        self.net(x).topk(9)\n"
     "        torch.set_grad_enabled(True)\n",
     "        with torch.no_grad():\n            self.net(x).topk(9)\n"),
    text=("`t.net.weight` and `t.net.bias` get no gradient", "still off"),
    fix=("with torch.no_grad():",),
)  # fmt: skip
case(
    "GX304", "generator_that_waits_within_no_grad", """
    embed, head = nn.Linear(3, 3), nn.Linear(3, 1)
    opt = torch.optim.SGD([*embed.parameters(), *head.parameters()], 0.1)
    def batches():
        with torch.no_grad():  #C
            for x in torch.rand(3, 5, 3):
                yield x * 2
    for x in batches():
        h = embed(x)
        with torch.enable_grad():
            loss = head(h).pow(2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("    with torch.no_grad():\n        for x in torch.rand(3, 5, 3):\n            yield x * 2",
     "    for x in torch.rand(3, 5, 3):\n        yield x * 2"),
    text=("`embed.weight` and `embed.bias` get no gradient", "waits within its block"),
    fix=("before it yields",),
)  # fmt: skip
case(
    "GX304", "hook_that_switches_off_and_never_on", """
    body, head = nn.Sequential(nn.Linear(3, 3), nn.Tanh()), nn.Linear(3, 1)
    opt = torch.optim.Adam([*body.parameters(), *head.parameters()])
    def quiet(module, inputs):
        torch.set_grad_enabled(False)  #C
    body.register_forward_pre_hook(quiet)
    def train(x):
        h = body(x)
        torch.set_grad_enabled(True)
        return head(h).pow(2).mean()
    for x in torch.rand(3, 5, 3):
        opt.zero_grad()
        train(x).backward()
        opt.step()
    """,
    ("    torch.set_grad_enabled(False)", "    pass"),
    text=("`body[0].weight` and `body[0].bias` get no gradient",),
)  # fmt: skip
case(
    "GX304", "early_return_before_it_is_switched_on", """
    encoder, scorer = nn.Linear(3, 2), nn.Linear(2, 1)
    opt = torch.optim.SGD([*encoder.parameters(), *scorer.parameters()], 0.1)
    def statistics(x, wanted):
        torch.set_grad_enabled(False)  #C
        mean = x.mean()
        if not wanted:
            return None
        torch.set_grad_enabled(True)
        return mean
    for k, x in enumerate(torch.rand(3, 5, 3)):
        statistics(x, wanted=False)
        code = encoder(x)
        with torch.set_grad_enabled(True):
            loss = scorer(code).pow(2).mean()
            opt.zero_grad()
            loss.backward()
        opt.step()
    """,
    ("    if not wanted:\n        return None\n    torch.set_grad_enabled(True)\n    return mean",
     "    torch.set_grad_enabled(True)\n    return mean if wanted else None"),
    text=("`encoder.weight` and `encoder.bias` get no gradient",),
)  # fmt: skip


test_the_line_is_named, test_the_mended_script_is_silent = named_and_mended(case)


SILENT = {
    "frozen_backbone_between_two_calls": """
    backbone, head = nn.Linear(3, 3), nn.Linear(3, 1)
    opt = torch.optim.SGD(head.parameters(), 0.1)
    for x in torch.rand(3, 5, 3):
        torch.set_grad_enabled(False)
        h = backbone(x)
        torch.set_grad_enabled(True)
        opt.zero_grad()
        head(h).pow(2).mean().backward()
        opt.step()
    """,
    "targets_of_the_same_network": """
    net = nn.Linear(3, 3)
    opt = torch.optim.SGD(net.parameters(), 0.1)
    def target(x):
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        try:
            return net(x)
        finally:
            torch.set_grad_enabled(before)
    for x in torch.rand(3, 5, 3):
        opt.zero_grad()
        F.mse_loss(net(x + 1), target(x)).backward()
        opt.step()
    """,
    "context_managers_of_the_programs": """
    import contextlib
    @contextlib.contextmanager
    def frozen(module):
        with torch.no_grad():
            yield module
    class Quiet:
        def __enter__(self):
            self.was = torch.is_grad_enabled()
            torch.set_grad_enabled(False)
        def __exit__(self, *args):
            torch.set_grad_enabled(self.was)
    a, b, head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)
    opt = torch.optim.SGD([*a.parameters(), *b.parameters(), *head.parameters()], 0.1)
    for k, x in enumerate(torch.rand(4, 5, 3)):
        with frozen(a) as net:
            h = net(x)
        with Quiet():
            g = b(x)
        opt.zero_grad()
        head(h + g).pow(2).mean().backward()
        opt.step()
    """,
    "generator_of_features_that_is_meant": """
    backbone, head = nn.Linear(3, 3), nn.Linear(3, 1)
    opt = torch.optim.SGD(head.parameters(), 0.1)
    @torch.no_grad()
    def features():
        for x in torch.rand(3, 5, 3):
            yield backbone(x)
    def others():
        for x in torch.rand(3, 5, 3):
            with torch.no_grad():
                h = backbone(x)
            yield h
    for source in (features, others):
        for h in source():
            opt.zero_grad()
            head(h).pow(2).mean().backward()
            opt.step()
    """,
    "evaluation_between_two_epochs": """
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    opt = torch.optim.SGD(net.parameters(), 0.1)
    best = None
    for x in torch.rand(3, 5, 3):
        for mode in (False, True):
            torch.set_grad_enabled(mode)
            loss = net(x).pow(2).mean()
            if mode:
                opt.zero_grad()
                (loss / best.clamp(min=0.1)).backward()
                opt.step()
            else:
                best = loss if best is None else torch.minimum(best, loss)
    """,
}


@pytest.mark.parametrize("name", SILENT)
def test_modes_that_are_meant(name: str) -> None:
    ran = run(textwrap.dedent(SILENT[name]).lstrip("\n"), name)
    assert ran.error is None
    assert ran.diagnoses == []
