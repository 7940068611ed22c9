"""GX306: parameters that get gradients and that no optimizer has."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from pathlib import Path

import pytest
import torch
from cases import Case, Cases, named_and_mended, run
from torch import nn
from torch.optim import optimizer

from gradext.recording.recording import Recording
from gradext.rules import judge

case = Cases()

# --- what took the place of a parameter after its optimizer was made ---
case(
    "GX306", "head_of_another_size", """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))
            self.fc = nn.Linear(8, 1000)
        def forward(self, x):
            return self.fc(self.body(x))
    model = Net()
    opt = torch.optim.Adam(model.parameters(), lr=1e-3)  #V
    model.fc = nn.Linear(8, 10)  #C
    for x in torch.rand(8, 5, 6):
        loss = F.cross_entropy(model(x), torch.arange(5))
        opt.zero_grad()
        loss.backward()  #V
        opt.step()
    """,
    ("opt = torch.optim.Adam(model.parameters(), lr=1e-3)\n", ""),
    ("    model.fc = nn.Linear(8, 10)\n".lstrip(),
     "model.fc = nn.Linear(8, 10)\nopt = torch.optim.Adam(model.parameters(), lr=1e-3)\n"),
    text=("`model.fc.weight` and `model.fc.bias` are not trained", "`opt`"),
    fix=("move `opt = torch.optim.Adam(model.parameters(), lr=0.001)` (", "below line"),
)  # fmt: skip
case(
    "GX306", "layers_exchanged_by_a_function_in_the_middle_of_a_run", """
    class Lora(nn.Module):
        def __init__(self, base, r):
            super().__init__()
            self.base, self.a = base, nn.Parameter(torch.randn(r, base.in_features) * 0.1)
            self.b = nn.Parameter(torch.zeros(base.out_features, r))
        def forward(self, x):
            return self.base(x) + x @ self.a.t() @ self.b.t()
    def inject(net):
        for block in net:
            block.q = Lora(block.q, 2)  #C
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.v = nn.Linear(6, 6), nn.Linear(6, 6)
        def forward(self, x):
            return x + torch.tanh(self.q(x)) * self.v(x)
    def step(net, opt, x):
        net(x).pow(2).mean().backward()  #V
        opt.step()
        opt.zero_grad()
    def main():
        net = nn.Sequential(Block(), Block())
        optimizer = torch.optim.AdamW(net.parameters())  #V
        for x in torch.rand(3, 4, 6):
            step(net, optimizer, x)
        inject(net)
        for x in torch.rand(12, 4, 6):
            step(net, optimizer, x)
    main()
    """,
    ("inject(net)\n    for",
     "inject(net)\n    optimizer = torch.optim.AdamW(net.parameters())\n    for"),
    text=("`net[0].q.a`, `net[0].q.b`", "are not trained", "in the place of"),
    fix=("below line 26: `optimizer = torch.optim.AdamW(net.parameters())`",),
)  # fmt: skip
case(
    "GX306", "weights_made_anew_in_each_epoch", """
    class Ring(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.out = nn.Linear(5, 5), nn.Linear(5, 1)
        def restart(self):
            self.mix.weight = nn.Parameter(torch.eye(5) + 0.1 * torch.randn(5, 5))  #C
        def forward(self, x):
            return self.out(torch.tanh(self.mix(x)))
    net = Ring()
    sgd = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)  #V
    for epoch in range(3):
        net.restart()
        for x in torch.rand(8, 3, 5):
            sgd.zero_grad()
            net(x).pow(2).mean().backward()
            sgd.step()
    """,
    ("self.mix.weight = nn.Parameter(torch.eye(5) + 0.1 * torch.randn(5, 5))",
     "with torch.no_grad(): self.mix.weight.copy_(torch.eye(5) + 0.1 * torch.randn(5, 5))"),
    text=("`net.mix.weight` is not trained",),
    fix=("with torch.no_grad(): self.mix.weight.copy_(torch.eye(5) + 0.1 * torch.randn(5, 5))",),
)  # fmt: skip
case(
    "GX306", "weight_norm_after_the_optimizer", """
    net = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 3))
    opt = torch.optim.RMSprop(net.parameters(), lr=1e-3)  #V
    for layer in (net[0], net[2]):
        torch.nn.utils.weight_norm(layer)  #C
    for x in torch.rand(9, 2, 3, 12):
        opt.zero_grad()
        net(x).pow(2).mean().backward()
        opt.step()
    """,
    ("opt = torch.optim.RMSprop(net.parameters(), lr=1e-3)\n", ""),
    ("for x in torch", "opt = torch.optim.RMSprop(net.parameters(), lr=1e-3)\nfor x in torch"),
    text=("weight_g",),
    fix=("move `opt = torch.optim.RMSprop(net.parameters(), lr=0.001)` (",),
)  # fmt: skip
case(
    "GX306", "layer_that_the_first_forward_makes", """
    class Head(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.conv, self.classes, self.fc = nn.Conv2d(1, 2, 3), classes, None
        def forward(self, x):
            h = torch.relu(self.conv(x)).flatten(1)
            if self.fc is None:
                self.fc = nn.Linear(h.shape[1], self.classes)  #C
            return self.fc(h)
    def train(model, optimizer, steps):
        for _ in range(steps):
            loss = model(torch.rand(2, 1, 6, 6)).pow(2).mean()
            loss.backward()  #V
            optimizer.step()
            optimizer.zero_grad()
    model = Head(3)
    train(model, torch.optim.Adam(model.parameters()), 8)  #V
    """,
    ("model = Head(3)", "model = Head(3)\nmodel(torch.rand(2, 1, 6, 6))"),
    text=("`model.fc.weight` and `model.fc.bias` are not trained", "forward pass"),
    fix=("in `Head.__init__`",),
)  # fmt: skip
case(
    "GX306", "layer_made_in_each_forward", """
    class Mixer(nn.Module):
        def __init__(self, d):
            super().__init__()
            self.d, self.out = d, nn.Linear(d, 1)
        def forward(self, x):
            proj = nn.Linear(x.shape[-1], self.d)  #C
            return self.out(F.gelu(proj(x)))
    model = Mixer(4)
    opt = torch.optim.AdamW(model.parameters())
    for x in torch.rand(40, 3, 5):
        loss = model(x).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("self.d, self.out = d, nn.Linear(d, 1)",
     "self.d, self.out = d, nn.Linear(d, 1)\n        self.layer = nn.Linear(5, d)"),
    ("proj = nn.Linear(x.shape[-1], self.d)", "proj = self.layer"),
    text=("`Linear`", "each forward pass"), fix=("`Mixer.__init__`",),
)  # fmt: skip

# --- in a plain list or dict ---
case(
    "GX306", "layers_in_a_list", """
    class Mlp(nn.Module):
        def __init__(self, d, n):
            super().__init__()
            self.inp, self.out = nn.Linear(4, d), nn.Linear(d, 1)
            self.layers = [nn.Linear(d, d) for _ in range(n)]  #C
        def forward(self, x):
            x = self.inp(x)
            for layer in self.layers:
                x = x + torch.relu(layer(x))
            return self.out(x)
    net = Mlp(6, 3)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)  #V
    for x in torch.rand(10, 5, 4):
        loss = net(x).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()  #V
        optimizer.step()
    """,
    ("[nn.Linear(d, d) for _ in range(n)]", "nn.ModuleList([nn.Linear(d, d) for _ in range(n)])"),
    text=("6 parameters of `net.layers` are not trained", "plain list", "`net.parameters()`"),
    fix=("`self.layers = nn.ModuleList([nn.Linear(d, d) for _ in range(n)])`",),
)  # fmt: skip
case(
    "GX306", "experts_appended_in_a_nested_module", """
    class Expert(nn.Module):
        def __init__(self, d):
            super().__init__()
            self.up, self.down = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)
        def forward(self, x):
            return self.down(F.silu(self.up(x)))
    class Moe(nn.Module):
        def __init__(self, d, n):
            super().__init__()
            self.gate = nn.Linear(d, n)
            self.experts = []  #C
            for _ in range(n):
                expert = Expert(d)
                self.experts.append(expert)
        def forward(self, x):
            g = self.gate(x).softmax(-1)
            return sum(g[..., k : k + 1] * e(x) for k, e in enumerate(self.experts))
    class Lm(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.blocks = nn.Embedding(9, 4), nn.ModuleList([Moe(4, 2), Moe(4, 2)])
            self.head = nn.Linear(4, 9)
        def forward(self, t):
            x = self.emb(t)
            for block in self.blocks:
                x = x + block(x)
            return self.head(x)
    class Trainer:
        def __init__(self):
            self.model = Lm()
            self.opt = torch.optim.AdamW(self.model.parameters())
        def fit(self):
            for t in torch.randint(0, 9, (12, 2, 5)):
                self.opt.zero_grad(set_to_none=True)
                F.cross_entropy(self.model(t).flatten(0, 1), t.flatten()).backward()
                self.opt.step()
    Trainer().fit()
    """,
    ("self.experts = []", "self.experts = nn.ModuleList()"),
    text=("experts",), fix=("`self.experts = nn.ModuleList()`",),
)  # fmt: skip
case(
    "GX306", "heads_in_a_dict_that_a_function_makes", """
    def head(d, k):
        return nn.Sequential(nn.LayerNorm(d), nn.Linear(d, k))
    class Multi(torch.nn.Module):
        def __init__(self, tasks):
            super().__init__()
            self.trunk = torch.nn.Linear(5, 4)
            heads = {}
            for name, k in tasks.items():
                heads[name] = head(4, k)
            self.heads = heads  #C
        def forward(self, x):
            h = torch.tanh(self.trunk(x))
            return {name: f(h) for name, f in self.heads.items()}
    model = Multi({"age": 1, "sex": 2})
    opt = torch.optim.SGD(model.parameters(), 0.1)
    for x in torch.rand(10, 3, 5):
        for accumulated in x.split(1):
            sum(y.pow(2).mean() for y in model(accumulated).values()).backward()
        opt.step()
        opt.zero_grad()
    """,
    ("self.heads = heads", "self.heads = nn.ModuleDict(heads)"),
    text=("`model.heads`", "plain dict"), fix=("`self.heads = nn.ModuleDict(heads)`",),
)  # fmt: skip
case(
    "GX306", "parameters_in_a_list", """
    class Factors(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.Parameter(torch.randn(4, 4))
            self.ws = [nn.Parameter(0.1 * torch.randn(4, 4)) for _ in range(2)]  #C
        def forward(self, x):
            w = self.base
            for other in self.ws:
                w = w + other @ other.t()
            return x @ w
    f = Factors()
    opt = torch.optim.LBFGS(f.parameters(), lr=0.1, max_iter=3)
    x = torch.rand(6, 4)
    def closure():
        opt.zero_grad()
        loss = F.mse_loss(f(x), x)
        loss.backward()
        return loss
    for _ in range(4):
        opt.step(closure)
    """,
    ("[nn.Parameter(0.1 * torch.randn(4, 4)) for _ in range(2)]",
     "nn.ParameterList([nn.Parameter(0.1 * torch.randn(4, 4)) for _ in range(2)])"),
    text=("`f.ws[0]` and `f.ws[1]` are not trained",), fix=("nn.ParameterList([nn.Parameter(0.1",),
)  # fmt: skip
case(
    "GX306", "lists_in_a_list", """
    class Grid(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells = [[nn.Linear(3, 3) for _ in "ab"] for _ in "xy"]  #C
            self.out = nn.Linear(3, 1)
        def forward(self, x):
            for row in self.cells:
                x = torch.tanh(sum(cell(x) for cell in row))
            return self.out(x)
    net = Grid()
    opt = torch.optim.Adam(net.parameters())
    for x in torch.rand(9, 2, 3):
        opt.zero_grad()
        net(x).sum().backward()
        opt.step()
    """,
    ('[[nn.Linear(3, 3) for _ in "ab"] for _ in "xy"]',
     "nn.ModuleList(nn.ModuleList(row) for row in "
     "[[nn.Linear(3, 3) for _ in 'ab'] for _ in 'xy'])"),
    fix=("`self.cells = nn.ModuleList(nn.ModuleList(row) for row in "
         "[[nn.Linear(3, 3) for _ in 'ab'] for _ in 'xy'])`",),
)  # fmt: skip

# --- no parameter at all ---
case(
    "GX306", "parameter_that_was_converted", """
    class Scaled(nn.Module):
        def __init__(self, d, dtype):
            super().__init__()
            self.fc = nn.Linear(d, d, dtype=dtype)
            self.w = nn.Parameter(torch.ones(d)).to(dtype)  #C
        def forward(self, x):
            return self.fc(x) * self.w
    net = Scaled(4, torch.float64)
    opt = torch.optim.Adam(net.parameters())
    for x in torch.rand(8, 3, 4, dtype=torch.float64):
        opt.zero_grad()
        net(x).pow(2).mean().backward()  #V
        opt.step()
    """,
    ("nn.Parameter(torch.ones(d)).to(dtype)", "nn.Parameter(torch.ones(d).to(dtype))"),
    text=("`net.w` is not trained",), fix=("`self.w = nn.Parameter(torch.ones(d).to(dtype))`",),
)  # fmt: skip
case(
    "GX306", "parameter_plus_a_number_in_a_stack_of_layers", """
    class Layer(torch.nn.Module):
        def __init__(self, d):
            super().__init__()
            self.mix = torch.nn.Linear(d, d)
            self.gain = torch.nn.Parameter(torch.randn(d)).unsqueeze(0) + 0.02  #C
        def forward(self, x):
            return x + self.mix(x * (1 + self.gain))
    def build(n):
        return torch.nn.Sequential(*(Layer(5) for _ in range(n)))
    def fit(net, batches):
        opt = torch.optim.SGD(net.parameters(), lr=0.01, weight_decay=0.1)
        for x in batches:
            loss = net(x).pow(2).mean()
            loss.backward()
            opt.step()
            opt.zero_grad()
    fit(build(2), torch.rand(9, 3, 5))
    """,
    ("torch.nn.Parameter(torch.randn(d)).unsqueeze(0) + 0.02",
     "torch.nn.Parameter(torch.randn(d).unsqueeze(0) + 0.02)"),
    text=("gain` are not trained",),
    fix=("`self.gain = torch.nn.Parameter(torch.randn(d).unsqueeze(0) + 0.02)`",),
)  # fmt: skip
case(
    "GX306", "tensor_that_requires_grad", """
    class Prompt(nn.Module):
        def __init__(self, n, d):
            super().__init__()
            self.prompt = torch.zeros(n, d, requires_grad=True)  #C
            self.attend = nn.MultiheadAttention(d, 1, batch_first=True)
        def forward(self, x):
            memory = torch.cat([self.prompt.expand(len(x), -1, -1), x], 1)
            return self.attend(x, memory, memory)[0]
    net = Prompt(2, 4)
    opt = torch.optim.Adam(net.parameters())
    for x in torch.rand(8, 2, 3, 4):
        opt.zero_grad()
        net(x).pow(2).mean().backward()
        opt.step()
    """,
    ("torch.zeros(n, d, requires_grad=True)", "nn.Parameter(torch.zeros(n, d))"),
    text=("`net.prompt` is not trained",), fix=("`self.prompt = nn.Parameter(torch.zeros(n, d))`",),
)  # fmt: skip
case(
    "GX306", "buffer_that_requires_grad", """
    class Rff(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("freq", torch.randn(3, 6).requires_grad_())  #C
            self.out = nn.Linear(6, 1)
        def forward(self, x):
            return self.out(torch.cos(x @ self.freq))
    net = Rff()
    opt = torch.optim.Adam(net.parameters())
    for x in torch.rand(8, 5, 3):
        opt.zero_grad()
        net(x).pow(2).mean().backward()
        opt.step()
    """,
    ('self.register_buffer("freq", torch.randn(3, 6).requires_grad_())',
     "self.freq = nn.Parameter(torch.randn(3, 6))"),
    text=("`net.freq` is not trained", "buffer"),
    fix=("`self.freq = nn.Parameter(torch.randn(3, 6))`",),
)  # fmt: skip

# --- another model ---
case(
    "GX306", "model_copied_after_its_optimizer", """
    import copy
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    opt = torch.optim.Adam(model.parameters())  #V
    model = copy.deepcopy(model).train()  #C
    for x in torch.rand(12, 3, 4):
        opt.zero_grad()
        model(x).pow(2).mean().backward()  #V
        opt.step()
    """,
    ("opt = torch.optim.Adam(model.parameters())\n", ""),
    ("for x in", "opt = torch.optim.Adam(model.parameters())\nfor x in"),
    text=("`model`", "is not trained", "`opt` has 4 others"),
    fix=("move `opt = torch.optim.Adam(model.parameters())` (", "below line 4"),
)  # fmt: skip
case(
    "GX306", "model_built_again_by_its_trainer", """
    class Net(nn.Module):
        def __init__(self, d):
            super().__init__()
            self.a, self.b = nn.Linear(4, d), nn.Linear(d, 1)
        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))
    class Trainer:
        def __init__(self):
            self.build()
            self.opt = torch.optim.SGD(self.net.parameters(), lr=0.1)  #V
        def build(self):
            self.net = Net(6)
        def fit(self, xs):
            self.build()
            for x in xs:
                self.net.zero_grad()
                self.net(x).pow(2).mean().backward()
                self.opt.step()
    trainer = Trainer()
    trainer.fit(torch.rand(12, 3, 4))  #C
    """,
    ("xs):\n        self.build()\n", "xs):\n"),
    text=("is not trained", "has 4 others"),
)  # fmt: skip
case(
    "GX306", "optimizer_of_the_model_that_was_copied", """
    import copy
    def finetune(pretrained, xs):
        clone = copy.deepcopy(pretrained)  #C
        optimizer = torch.optim.AdamW(pretrained.parameters(), lr=1e-3)  #V
        for x in xs:
            loss = clone(x).pow(2).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return clone
    finetune(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)), torch.rand(9, 3, 4))
    """,
    ("AdamW(pretrained.parameters()", "AdamW(clone.parameters()"),
    text=("`clone`", "is not trained"),
    fix=("`optimizer = torch.optim.AdamW(clone.parameters(), lr=0.001)`",),
)  # fmt: skip

test_the_line_is_named, test_the_mended_script_is_silent = named_and_mended(case)


guarded = Cases(dataclasses.replace(each, guard=True) for each in case)
test_a_guard_says_the_same, test_a_guard_is_silent = named_and_mended(guarded)


PARTS = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(d), nn.Linear(d, d)
    def forward(self, x):
        return x + self.mix(self.norm(x))

class Body(nn.Module):
    def __init__(self, d, depth):
        super().__init__()
        self.inp = nn.Linear(3, d)
        blocks = [Block(d) for _ in range(depth)]
        self.blocks = blocks
    def forward(self, x):
        x = self.inp(x)
        for block in self.blocks:
            x = block(x)
        return x
"""
HEADS = """
from torch import nn
def new_head(model, k):
    model.head = nn.Linear(5, k)
"""
TRAIN = """
from untrained_heads import new_head
from untrained_parts import Body
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = Body(5, 2), nn.Linear(5, 7)
    def forward(self, x):
        return self.head(self.body(x))
def fit(model, opt):
    for x in torch.rand(10, 4, 3):
        opt.zero_grad()
        model(x).pow(2).mean().backward()
        opt.step()
model = Model()
opt = torch.optim.Adam(model.parameters())
new_head(model, 2)
fit(model, opt)
"""


def test_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "untrained_parts.py").write_text(PARTS)
    (tmp_path / "untrained_heads.py").write_text(HEADS)
    head, blocks = run(TRAIN, "several_files").diagnoses
    assert (head.code, head.culprits[0].frame.file) == (
        "GX306",
        str(tmp_path / "untrained_heads.py"),
    )
    assert head.culprits[0].frame.line == 4
    assert "move `opt = torch.optim.Adam(model.parameters())` (line 16) below line 17" in head.fix
    assert blocks.culprits[0].frame.file == str(tmp_path / "untrained_parts.py")
    assert blocks.culprits[0].frame.line == 17
    assert "`self.blocks = nn.ModuleList(blocks)`" in blocks.fix


def test_a_program_that_trains_all_it_has_copies_no_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look costs a walk over the modules in reach, and no copy of what was recorded."""
    copies: list[int] = []
    snapshot = Recording._snapshot
    monkeypatch.setattr(Recording, "_snapshot", lambda self: copies.append(1) or snapshot(self))
    looks: list[int] = []
    look = judge.look
    monkeypatch.setattr(judge, "look", lambda *given: looks.append(1) or look(*given))
    text = """
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for x in torch.rand(200, 3, 4):
        opt.zero_grad()
        net(x).pow(2).sum().backward()
        opt.step()
    """
    ran = run(textwrap.dedent(text).lstrip("\n"), "trains_all")
    assert ran.diagnoses == []
    assert 4 <= len(looks) <= 8  # at the 2nd, 4th, 8th, ... backward
    assert len(copies) == 2  # the test's own, and the one that the recording leaves


def test_nothing_is_left_in_torch() -> None:
    run("torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)", "made")
    hooks = nn.modules.module
    assert not hooks._global_parameter_registration_hooks
    assert not hooks._global_module_registration_hooks
    assert not optimizer._global_optimizer_pre_hooks
    grow = vars(torch.optim.Optimizer)["add_param_group"]
    assert type(grow) is type(run)


_MOVE = re.compile(r"\(line (\d+)\)")


@pytest.mark.parametrize("each", case, ids=lambda each: each.name)
def test_lines_are_moved_as_the_help_says(each: Case) -> None:
    """The help names lines by their numbers: moved so, the program trains what it has."""
    (said, *_) = run(each.shown, each.name).diagnoses
    if not said.fix.startswith("move `"):
        return
    lines = each.shown.splitlines()
    numbers = sorted(int(number) for number in _MOVE.findall(said.fix))
    below = int(re.search(r"below line (\d+)", said.fix)[1])
    moved = [lines[number - 1] for number in numbers]
    lines[below:below] = moved
    for number in reversed(numbers):
        del lines[number - 1]
    ran = run("\n".join(lines) + "\n", f"{each.name}-moved")
    assert ran.error is None
    assert ran.diagnoses == []
