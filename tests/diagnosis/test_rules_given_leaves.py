"""GX304: a value with a history is written into a parameter, which takes none of it over."""

from __future__ import annotations

import textwrap

import pytest
from cases import Cases, named_and_mended, run

case = Cases()

case(
    "GX304", "generated_weight_copied_through_data", """
    class Hyper(nn.Module):
        def __init__(self):
            super().__init__()
            self.code, self.make = nn.Parameter(torch.randn(3)), nn.Linear(3, 8)
        def forward(self):
            return self.make(self.code).view(2, 4)
    hyper, main, out = Hyper(), nn.Linear(4, 2, bias=False), nn.Linear(2, 1)
    opt = torch.optim.Adam([*hyper.parameters(), *out.parameters()])
    def predict(x):
        main.weight.data.copy_(hyper())  #C
        return out(main(x))
    for x in torch.rand(3, 6, 4):
        opt.zero_grad()
        predict(x).pow(2).mean().backward()  #V
        opt.step()
    """,
    ("    main.weight.data.copy_(hyper())\n", ""),
    ("main(x)", "F.linear(x, hyper())"),
    text=("`hyper.code`", "get no gradient", "`copy_()`", "into a leaf"), fix=("functional_call",),
)  # fmt: skip
case(
    "GX304", "generated_weights_copied_in_a_no_grad_block", """
    gen, nets = nn.Linear(2, 6), nn.ModuleList([nn.Linear(3, 1, bias=False) for _ in range(2)])
    head = nn.Linear(2, 1)
    opt = torch.optim.SGD([*gen.parameters(), *head.parameters()], 0.1)
    for x in torch.rand(3, 5, 3):
        made = gen(torch.ones(2)).view(2, 1, 3)
        with torch.no_grad():
            for net, weight in zip(nets, made):
                net.weight.copy_(weight)  #C
        loss = head(torch.cat([net(x) for net in nets], -1)).pow(2).mean()
        opt.zero_grad()
        loss.backward()  #V
        opt.step()
    """,
    ("torch.cat([net(x) for net in nets], -1)", "torch.cat([x @ w.t() for w in made], -1)"),
    text=("`gen.weight` and `gen.bias` get no gradient",),
)  # fmt: skip
case(
    "GX304", "learned_update_added_to_the_parameters", """
    class Updater(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(0.1))
        def apply_to(self, p, g):
            p.data.sub_(torch.sigmoid(self.rate) * g)  #C
    net, updater = nn.Linear(3, 1), Updater()
    opt = torch.optim.SGD([*updater.parameters(), net.bias], 0.1)
    for x in torch.rand(3, 5, 3):
        g = torch.autograd.grad(net(x).pow(2).mean(), net.weight)[0]
        updater.apply_to(net.weight, g)
        opt.zero_grad()
        net(x).pow(2).mean().backward()
        opt.step()
    """,
    ("p.data.sub_(torch.sigmoid(self.rate) * g)", "return p - torch.sigmoid(self.rate) * g"),
    ("    updater.apply_to(net.weight, g)\n", ""),
    ("    net(x).pow(2).mean().backward()",
     "    F.linear(x, updater.apply_to(net.weight, g), net.bias).pow(2).mean().backward()"),
    text=("`updater.rate` gets no gradient", "`sub_()`"),
)  # fmt: skip
case(
    "GX304", "rows_of_a_table_filled_by_an_encoder", """
    encoder, table = nn.Linear(3, 2), nn.Embedding(4, 2)
    opt = torch.optim.SGD([*encoder.parameters(), *table.parameters()], 0.1)
    for x in torch.rand(3, 2, 3):
        with torch.enable_grad():
            rows = encoder(x)
        table.weight.data[1:3] = rows  #C
        loss = table(torch.tensor([1, 2, 3])).pow(2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("table.weight.data[1:3] = rows", "pass"),
    ("table(torch.tensor([1, 2, 3]))", "torch.cat([rows, table(torch.tensor([3]))])"),
    text=("`encoder.weight` and `encoder.bias` get no gradient",),
)  # fmt: skip


test_the_line_is_named, test_the_mended_script_is_silent = named_and_mended(case)


SILENT = {
    "averages_and_target_networks": """
    import copy
    net = nn.Linear(3, 1)
    target = copy.deepcopy(net)
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for x in torch.rand(3, 5, 3):
        loss = F.mse_loss(net(x), target(x).detach() + 1)
        opt.zero_grad()
        loss.backward()
        opt.step()
        for t, p in zip(target.parameters(), net.parameters()):
            t.data.copy_(0.9 * t.data + 0.1 * p)
        with torch.no_grad():
            for t, p in zip(target.parameters(), net.parameters()):
                t.mul_(0.9).add_(p, alpha=0.1)
    """,
    "initialised_and_tied_by_copies": """
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    with torch.no_grad():
        a.weight.copy_(torch.eye(3) + 0.1 * torch.randn(3, 3))
        b.weight.copy_(a.weight.t())
    b.bias.data.copy_(a.bias)
    opt = torch.optim.SGD([*a.parameters(), *b.parameters()], 0.1)
    for x in torch.rand(3, 5, 3):
        opt.zero_grad()
        b(a(x).relu()).pow(2).mean().backward()
        opt.step()
        a.weight.data.clamp_(-1, 1)
        b.weight.data.copy_(b.weight / b.weight.norm().clamp(min=1))
    """,
    "outer_steps_of_reptile": """
    import copy
    meta = nn.Linear(3, 1)
    for x in torch.rand(3, 5, 3):
        fast = copy.deepcopy(meta)
        opt = torch.optim.SGD(fast.parameters(), 0.1)
        for _ in range(2):
            opt.zero_grad()
            fast(x).pow(2).mean().backward()
            opt.step()
        for p, q in zip(meta.parameters(), fast.parameters()):
            p.data.copy_(p + 0.5 * (q - p))
    """,
    "descent_written_by_hand": """
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    for x in torch.rand(3, 5, 3):
        net(x).pow(2).mean().backward()
        for p in net.parameters():
            p.data.copy_(p - 0.1 * p.grad)
            p.grad = None
        net(x).pow(2).mean().backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.1 * p.grad
                p.grad = None
    """,
    "inputs_stepped_by_what_is_learned_elsewhere": """
    net = nn.Linear(3, 1)
    opt = torch.optim.SGD(net.parameters(), 0.1)
    image = torch.rand(1, 3, requires_grad=True)
    for x in torch.rand(3, 5, 3):
        g = torch.autograd.grad(net(image).sum(), image)[0]
        image.data.add_(0.1 * net(image).sign() * g)
        opt.zero_grad()
        net(x).pow(2).mean().backward()
        opt.step()
    """,
}


@pytest.mark.parametrize("name", SILENT)
def test_values_that_are_meant(name: str) -> None:
    ran = run(textwrap.dedent(SILENT[name]).lstrip("\n"), name)
    assert ran.error is None
    assert ran.diagnoses == []
