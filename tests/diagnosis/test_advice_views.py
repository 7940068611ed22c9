"""What GX102 to GX105, and GX201 to GX203, print as help, typed where it says."""

from __future__ import annotations

import pytest
from advice import Advice, Advices, check

leaf, view_of_leaf, by_mode, several = Advices(), Advices(), Advices(), Advices()
saved, written = Advices(), Advices()

leaf(
    "descent_in_a_function", """
    def descend(w, rate):
        w -= rate * w.grad
        w.clamp_(min=0.1)
    w = torch.ones(3, requires_grad=True)
    leaves = [w]
    for _ in range(2):
        w.grad = None
        (w * w).sum().backward()
        descend(w, 0.1)
    """,
    ("w.clamp_(min=0.1)", "pass"),
    ("w -= rate * w.grad", "with torch.no_grad():\n    w -= rate * w.grad\n    w.clamp_(min=0.1)"),
    words=("`with torch.no_grad():` around the lines from descent_in_a_function.py:2 to "
           "descent_in_a_function.py:3",),
    never=("make a new tensor",),
    twin=(("w -= rate * w.grad", "w.data = (w.data - rate * w.grad).clamp(min=0.1)"),
          ("w.clamp_(min=0.1)", "pass")),
)  # fmt: skip
leaf(
    "step_of_an_own_optimizer", """
    class Own:
        def __init__(self, params):
            self.params = list(params)
        def step(self):
            for p in self.params:
                p.sub_(p.grad, alpha=0.1)
    net = nn.Linear(2, 1)
    leaves = list(net.parameters())
    opt = Own(net.parameters())
    for _ in range(2):
        net(torch.ones(1, 2)).pow(2).sum().backward()
        opt.step()
    """,
    ("p.sub_(p.grad, alpha=0.1)", "with torch.no_grad(): p.sub_(p.grad, alpha=0.1)"),
    never=("p = p.sub",),
    twin=(("p.sub_(p.grad, alpha=0.1)", "p.data.sub_(p.grad, alpha=0.1)"),),
)  # fmt: skip
view_of_leaf(
    "bias_of_a_module_initialised", """
    net = nn.Linear(2, 4)
    leaves = list(net.parameters())
    def init(module):
        module.bias[:2] = 1.0
    init(net)
    net(torch.ones(1, 2)).pow(2).sum().backward()
    """,
    ("module.bias[:2] = 1.0", "with torch.no_grad(): module.bias[:2] = 1.0"),
    never=("clone", "make a new tensor"),
    twin=(("module.bias[:2] = 1.0", "module.bias.data[:2] = 1.0"),),
)  # fmt: skip
view_of_leaf(
    "rows_copied_into_a_flat_view", """
    def splice(embeds, rows, patches):
        flat = embeds.view(-1, 2)
        flat.index_copy_(0, rows, patches)
        return flat
    x = torch.ones(2, 3, 2, requires_grad=True)
    leaves = [x]
    splice(x, torch.tensor([1]), torch.zeros(1, 2)).pow(2).sum().backward()
    """,
    ("flat.index_copy_(0, rows, patches)", "flat = flat.index_copy(0, rows, patches)"),
    words=("`flat = flat.index_copy(0, rows, patches)`", "the leaf stays as it is"),
    twin=(("flat.index_copy_(0, rows, patches)", "flat = flat.clone(); flat[1] = 0.0"),),
)  # fmt: skip
by_mode(
    "slots_made_without_grad", """
    x = torch.ones(2, 3, requires_grad=True)
    leaves = [x]
    def slots(count):
        with torch.no_grad():
            canvas = torch.zeros(count, 3)
            rows = [canvas[k] for k in range(count)]
        return canvas, rows
    canvas, rows = slots(2)
    for k, row in enumerate(rows):
        row[:2] = x[k][:2] * 2
    canvas.pow(2).sum().backward()
    """,
    ("rows = [canvas[k] for k in range(count)]",
     "with torch.enable_grad():\n    rows = [canvas[k] for k in range(count)]"),
    words=("`with torch.enable_grad():` around `rows = [canvas[k] for k in range(count)]`",),
    twin=(("with torch.no_grad():", "if True:"),),
)  # fmt: skip
by_mode(
    "window_taken_while_serving", """
    class Memory:
        def __init__(self):
            self.cells, self.window = torch.zeros(4, 2), None
        def locate(self, at):
            self.window = self.cells[at : at + 2]
    x = torch.ones(2, requires_grad=True)
    leaves = [x]
    memory = Memory()
    @torch.inference_mode()
    def plan():
        memory.locate(1)
    plan()
    memory.window.add_(x)
    memory.cells.pow(2).sum().backward()
    """,
    ("self.window = self.cells[at : at + 2]",
     "with torch.inference_mode(False):\n    self.window = self.cells[at : at + 2]"),
    words=("`with torch.inference_mode(False):` around `self.window = self.cells[at:at + 2]`",),
    twin=(("@torch.inference_mode()", "# nothing"),),
)  # fmt: skip
several(
    "rows_written_by_a_helper", """
    def shift(row, by):
        row.sub_(by)
        row.div_(2)
    def normalise(image, means):
        for plane, mean in zip(image, means):
            shift(plane, mean)
        return image
    x = torch.ones(3, 2, requires_grad=True)
    leaves = [x]
    normalise(x * 2, [0.1, 0.2, 0.3]).pow(2).sum().backward()
    """,
    ("for plane, mean in zip(image, means):",
     "for i, (plane, mean) in enumerate(zip(image, means)):\n    plane = image[i]"),
    words=("`for i, (plane, mean) in enumerate(zip(image, means)):` at",
           "`plane = image[i]` as the first line"),
    never=("row = row.sub",),
    twin=(("for plane, mean in zip(image, means):",
           "image = (image - torch.tensor(means)[:, None]) / 2\n"
           "for plane, mean in []:"),),
)  # fmt: skip
several(
    "rows_of_a_weight_looked_at", """
    def sheet(tensor):
        for t in tensor:
            t.clamp_(max=0.5)
        return tensor.sum().item()
    net = nn.Linear(2, 3)
    leaves = list(net.parameters())
    sheet(net.weight)
    net(torch.ones(1, 2)).pow(2).sum().backward()
    """,
    ("for t in tensor:", "tensor = tensor.detach().clone()\nfor t in tensor:"),
    words=("`tensor = tensor.detach().clone()` before", "the leaf stays as it is"),
    twin=(("t.clamp_(max=0.5)", "pass"),),
)  # fmt: skip
several(
    "parts_of_a_split", """
    x = torch.ones(4, requires_grad=True)
    leaves = [x]
    a, b = (x * 2).split(2)
    a *= 3
    (a + b).pow(2).sum().backward()
    """,
    ("a *= 3", "a = a * 3"),
    twin=(("a *= 3", "a = a + a + a"),),
)  # fmt: skip
saved(
    "scales_of_two_layers", """
    class Quant(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.scale = nn.Parameter(torch.ones(2)), None
        def observe(self):
            self.scale = self.weight.abs().amax() * 2
        def forward(self, x):
            return x * self.weight * self.scale
    net = nn.Sequential(Quant(), Quant())
    leaves = list(net.parameters())
    def calibrate():
        with torch.inference_mode():
            for layer in net:
                layer.observe()
    calibrate()
    net(torch.ones(2)).sum().backward()
    """,
    ("return x * self.weight * self.scale",
     "self.scale = self.scale.clone()\nreturn x * self.weight * self.scale"),
    words=("`self.scale = self.scale.clone()`",),
    twin=(("with torch.inference_mode():", "with torch.no_grad():"),),
)  # fmt: skip
saved(
    "two_tables_of_a_module", """
    class Rope(nn.Module):
        def warm(self):
            self.cos, self.sin = torch.ones(2).cos(), torch.ones(2).sin()
        def forward(self, x):
            return x * self.cos + x * self.sin
    net = Rope()
    with torch.inference_mode():
        net.warm()
    x = torch.ones(2, requires_grad=True)
    leaves = [x]
    net(x).sum().backward()
    """,
    ("return x * self.cos + x * self.sin",
     "self.cos = self.cos.clone()\nself.sin = self.sin.clone()\n"
     "return x * self.cos + x * self.sin"),
    words=("`self.cos = self.cos.clone()`", "likewise of `net.sin`"),
    twin=(("with torch.inference_mode():", "with torch.no_grad():"),),
)  # fmt: skip
written(
    "state_of_an_environment", """
    class Env:
        def __init__(self):
            self.pose = torch.zeros(2)
        def step(self, by):
            self.pose = self.pose + by
            return self.pose
        def reset(self):
            self.pose[0] = 0.0
    x = torch.ones(2, requires_grad=True)
    leaves = [x]
    env = Env()
    def run():
        with torch.inference_mode():
            seen = env.step(1.0)
        env.reset()
    run()
    (x * env.pose).sum().backward()
    """,
    ("self.pose[0] = 0.0", "self.pose = self.pose.clone()\nself.pose[0] = 0.0"),
    words=("`self.pose = self.pose.clone()`",),
    never=("seen.clone",),
    twin=(("with torch.inference_mode():", "with torch.no_grad():"),),
)  # fmt: skip

ALL = [
    *(("GX102", each) for each in leaf),
    *(("GX103", each) for each in view_of_leaf),
    *(("GX104", each) for each in by_mode),
    *(("GX105", each) for each in several),
    *(("GX201", each) for each in saved),
    *(("GX202", each) for each in written),
]


@pytest.mark.parametrize(("code", "each"), ALL, ids=[each.name for _, each in ALL])
def test_typed_as_printed(code: str, each: Advice) -> None:
    check(each, code)
