"""GX305: the `.grad` of a tensor that is no leaf is read after backward."""

from __future__ import annotations

import ast
import textwrap

import pytest
from cases import Case, Cases, check_broken, check_mended, run

from gradext.rules.rewrite import leaf_flag

case = Cases()

case(
    "GX305", "moved_after_it_was_made_a_leaf", """
    x = torch.ones(3, requires_grad=True)
    x = x.double()  #C
    (x * x).sum().backward()
    step = x.grad  #V
    """,
    ("torch.ones(3, requires_grad=True)", "torch.ones(3)"),
    ("x = x.double()", "x = x.double().detach().requires_grad_()"),
    text=("`x`",), fix=("`x = x.double().detach().requires_grad_()`", "`x.retain_grad()`"),
)  # fmt: skip
case(
    "GX305", "perturbation_scaled_when_it_is_made", """
    net = nn.Linear(3, 1)
    class Attack:
        def __init__(self, x):
            self.delta = torch.zeros_like(x, requires_grad=True) * 0.1  #C
        def step(self, x):
            for _ in range(1):
                net(x + self.delta).sum().backward()
                if self.delta.grad is not None:  #V
                    self.delta.grad.zero_()
    Attack(torch.ones(2, 3)).step(torch.ones(2, 3))
    """,
    ("torch.zeros_like(x, requires_grad=True) * 0.1",
     "(torch.zeros_like(x) * 0.1).requires_grad_()"),
    text=("self.delta`",),
    fix=("`requires_grad=True`", "`self.delta = (torch.zeros_like(x) * 0.1).requires_grad_()`"),
)  # fmt: skip
case(
    "GX305", "a_batch_dimension_in_a_helper", """
    def prepare(image):
        image = image.requires_grad_()
        return image.unsqueeze(0)  #C
    net = nn.Conv2d(1, 1, 3)
    image = prepare(torch.rand(1, 8, 8))
    net(image).sum().backward()
    saliency = image.grad  #V
    """,
    ("image = image.requires_grad_()\n", ""), ("    return image.unsqueeze(0)",
     "return image.unsqueeze(0).requires_grad_()"),
    text=("`image`",), fix=("call `image.retain_grad()` above a_batch_dimension_in_a_helper.py:6",),
)  # fmt: skip
case(
    "GX305", "weights_scaled_in_a_function_that_makes_them", """
    import math
    def xavier(fan_in, fan_out):
        return torch.randn(fan_in, fan_out, requires_grad=True) / math.sqrt(fan_in)  #C
    weight = xavier(4, 2)
    for _ in range(1):
        (torch.ones(3, 4) @ weight).exp().sum().backward()
        if weight.grad is not None:  #V
            weight.grad.zero_()
    """,
    ("torch.randn(fan_in, fan_out, requires_grad=True) / math.sqrt(fan_in)",
     "(torch.randn(fan_in, fan_out) / math.sqrt(fan_in)).requires_grad_()"),
    text=("`weight`",),
    fix=("`return (torch.randn(fan_in, fan_out) / math.sqrt(fan_in)).requires_grad_()`",
         "call `weight.retain_grad()` above"),
)  # fmt: skip
case(
    "GX305", "flag_set_before_a_cast", """
    noise = torch.zeros(3).requires_grad_().double()  #C
    (noise * 2).exp().sum().backward()
    print(noise.grad)  #V
    """,
    ("torch.zeros(3).requires_grad_().double()", "torch.zeros(3).double().requires_grad_()"),
    text=("`noise`",), fix=("`noise = torch.zeros(3).double().requires_grad_()`",),
)  # fmt: skip
case(
    "GX305", "made_of_two_leaves", """
    scale = torch.ones(3, requires_grad=True)
    x = torch.zeros(3, requires_grad=True) + scale  #C
    x.exp().sum().backward()
    step = x.grad  #V
    """,
    ("x.exp()", "x.retain_grad()\nx.exp()"),
    text=("`x`",), fix=("`x.retain_grad()` after", "the leaf that it was made from"),
)  # fmt: skip
case(
    "GX305", "activation_that_a_hook_keeps", """
    class Cam:
        def __init__(self, net, layer):
            self.net = net
            layer.register_forward_hook(self.keep)
        def keep(self, module, args, output):
            self.kept = output
        def __call__(self, x):
            score = self.net(x).sum()  #C
            score.backward()
            return self.kept.grad  #V
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    Cam(net, net[0])(torch.ones(1, 2))
    """,
    ("        score.backward()", "        self.kept.retain_grad()\n        score.backward()"),
    text=("`self.kept`",),
    fix=("call `self.kept.retain_grad()` above activation_that_a_hook_keeps.py:9",),
)  # fmt: skip
case(
    "GX305", "layers_in_a_list", """
    def forward(x, layers):
        hidden = []
        for layer in layers:
            x = layer(x).tanh()  #C
            hidden.append(x)
        return x, hidden
    layers = [nn.Linear(2, 2) for _ in range(2)]
    out, hidden = forward(torch.ones(1, 2), layers)
    out.sum().backward()
    first = hidden[0].grad  #V
    """,
    ("out.sum()", "hidden[0].retain_grad()\nout.sum()"),
    fix=("call `hidden[0].retain_grad()` above layers_in_a_list.py:9",),
)  # fmt: skip
case(
    "GX305", "attention_in_a_record_of_outputs", """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(2, 2))
        def forward(self, x):
            return {"maps": (x @ self.w).softmax(-1)}  #C
    def attribute(net, x):
        outputs = net(x)
        with torch.enable_grad():
            outputs["maps"].square().sum().backward()
        maps = outputs["maps"]
        return maps, outputs["maps"].grad  #V
    attribute(Net(), torch.ones(1, 2))
    """,
    ("    with torch.enable_grad():\n", "    outputs['maps'].retain_grad()\n    if True:\n"),
    fix=("retain_grad()",),
)  # fmt: skip
case(
    "GX305", "name_bound_below_the_backward", """
    w = torch.ones(2, requires_grad=True)
    class Store: pass
    store = Store()
    def make():
        store.a = w.exp()  #C
        return store.a
    loss = make().sum()
    loss.backward()
    kept = store.a
    g = kept.grad  #V
    """,
    ("kept = store.a", "kept = w"),
    fix=("retain_grad()", "before backward()"),
)  # fmt: skip


@case.broken()
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_broken(case: Case) -> None:
    ran = check_broken(case)
    assert ran.error is None
    assert ran.diagnoses[0].severity == "warning"


@case.broken()
def test_mended(case: Case) -> None:
    check_mended(case)


SILENT = {
    "kept_on_purpose": """
    x = torch.ones(3, requires_grad=True)
    y = x * 2
    y.retain_grad()
    y.sum().backward()
    y.grad.sum() + x.grad.sum()
    """,
    "read_before_backward": """
    x = torch.ones(3, requires_grad=True)
    y = x * 2
    assert y.grad is None
    y.sum().backward()
    """,
    "of_a_tensor_that_no_backward_went_through": """
    x = torch.ones(3, requires_grad=True)
    y, z = x * 2, x * 3
    z.sum().backward()
    assert y.grad is None
    """,
    "of_data_and_of_a_parameter_that_is_not_used": """
    net, spare = nn.Linear(2, 1), nn.Linear(2, 1)
    opt = torch.optim.SGD([*net.parameters(), *spare.parameters()], 0.1)
    x = torch.ones(2, 2)
    net(x).sum().backward()
    opt.step()
    assert x.grad is None and spare.weight.grad is None
    """,
}


@pytest.mark.parametrize("name", SILENT)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_silent(name: str) -> None:
    ran = run(textwrap.dedent(SILENT[name]).lstrip("\n"), f"non-leaf-{name}")
    assert ran.error is None
    assert ran.diagnoses == []


CALLS = {
    "from_two_lines": (
        """
        def size_of(t):
            return t.grad is None
        y = torch.ones(3, requires_grad=True) * 2
        y.sum().backward()
        for _ in range(3):
            size_of(y)
            size_of(y)
        """,
        {6: 3, 7: 3},
    ),
    "through_a_method": (
        """
        class Log:
            def note(self, t):
                return t.grad
            def both(self, t):
                self.note(t)
                return self.note(t)
        y = torch.ones(3, requires_grad=True) * 2
        y.sum().backward()
        Log().both(y)
        """,
        {5: 1, 6: 1},
    ),
    "on_one_line_of_a_loop": (
        """
        y = torch.ones(3, requires_grad=True) * 2
        y.sum().backward()
        read = lambda t: t.grad
        for _ in range(12):
            read(y)
        """,
        {5: 12},
    ),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_who_called_the_reader_tells_findings_apart(name: str) -> None:
    text, callers = CALLS[name]
    ran = run(textwrap.dedent(text).lstrip("\n"), f"non-leaf-calls-{name}")
    assert {d.code for d in ran.diagnoses} == {"GX305"}
    lines = [d.victims[0].callers[0].line for d in ran.diagnoses]
    assert {line: lines.count(line) for line in lines} == callers


@pytest.mark.parametrize(
    ("line", "new"),
    [
        ("w = torch.zeros(3, requires_grad=True) + 1", "w = (torch.zeros(3) + 1).requires_grad_()"),
        ("w = x.requires_grad_(True).to(y)", "w = x.to(y).requires_grad_()"),
        ("w = f(torch.ones(2, requires_grad=False), torch.ones(2, requires_grad=True))",
         "w = f(torch.ones(2, requires_grad=False), torch.ones(2)).requires_grad_()"),
        ("w = nn.Parameter(torch.ones(3)) / 2", "w = nn.Parameter(torch.ones(3) / 2)"),
        ("w = f(nn.Parameter(a).to(d))", "w = nn.Parameter(f(a.to(d)))"),
        ("w = nn.Parameter(a / 2)", None),
        ("w = nn.Parameter(a) @ nn.Parameter(b)", None),
        ("w = base * torch.ones(3, requires_grad=False)", None),
        ("w = base.requires_grad_(False) + other", None),
        ("w = torch.zeros(3, requires_grad=trains) / 2", None),
    ],
)  # fmt: skip
def test_only_a_line_that_asks_for_it_is_rewritten(line: str, new: str | None) -> None:
    told = leaf_flag.asked_for_last(ast.parse(line).body[0])
    assert told is None if new is None else (told or "").endswith(f": `{new}`")
