"""GX302 of losses that share a graph, and of weights that parametrize.cached() keeps."""

from __future__ import annotations

import textwrap

import pytest
from cases import Cases, named_and_mended, run

case = Cases()

case(
    "GX302", "gradients_of_each_task", """
    trunk, heads = nn.Linear(3, 4), [nn.Linear(4, 1), nn.Linear(4, 2)]
    def gradients(losses):
        found = []
        for loss in losses:
            trunk.zero_grad()
            loss.backward()  #C
            found.append(trunk.weight.grad.clone())
        return found
    for _ in range(2):
        z = trunk(torch.ones(2, 3)).exp()  #V
        gradients([h(z).square().mean() for h in heads])
    """,
    ("loss.backward()", "loss.backward(retain_graph=True)"),
    fix=("`loss.backward(retain_graph=True)` at", "on their sum"), text=("share it",),
)  # fmt: skip
case(
    "GX302", "entries_of_a_dict_in_a_trainer", """
    class Trainer:
        def __init__(self):
            self.net, self.opt = nn.Linear(2, 2), None
        def losses(self, x):
            y = self.net(x).tanh()
            return {"sum": (y.sum() - 1) ** 2, "norm": y.norm()}
        def fit(self, x):
            for name, value in self.losses(x).items():
                torch.autograd.backward(value)  #C
    Trainer().fit(torch.ones(3, 2))
    """,
    ("torch.autograd.backward(value)", "torch.autograd.backward(value, retain_graph=True)"),
    fix=("`torch.autograd.backward(value, retain_graph=True)` at",), text=("share it",),
)  # fmt: skip
case(
    "GX302", "call_in_a_helper_of_a_while_loop", """
    w = torch.ones(3, requires_grad=True)
    def back(loss, scale):
        (loss).backward(scale)  #C
    e = (w * w).exp()
    pending = [e[0] * 2, e.sum(), e.max()]
    while pending:
        back(pending.pop(), torch.tensor(0.5))
    """,
    ("(loss).backward(scale)", "loss.backward(scale, retain_graph=True)"),
    fix=("`loss.backward(scale, retain_graph=True)` at",), text=("share it",),
)  # fmt: skip
case(
    "GX302", "gradients_by_the_function", """
    w = torch.ones(3, requires_grad=True)
    h = w.exp().sin()
    rows = [h[0] * h[1], h[2] ** 3]
    for row in rows:
        g, = torch.autograd.grad(row, w)  #C
    """,
    ("torch.autograd.grad(row, w)", "torch.autograd.grad(row, w, retain_graph=True)"),
    fix=("`retain_graph=True` at",), text=("share it",),
)  # fmt: skip

PARAMETRIZE = """
from torch.nn.utils import parametrize, parametrizations
"""
case(
    "GX302", "norm_of_a_weight_kept_for_an_epoch", PARAMETRIZE + """
enc, dec = parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 3)
def train(batches):
    with parametrize.cached():  #C
        for x in batches:
            h = torch.tanh(enc(x))
            (dec(h) - x).square().mean().backward()
train(torch.ones(2, 5, 3))
""",
    ("    with parametrize.cached():\n        for x in batches:\n",
     "    for x in batches:\n        with parametrize.cached():\n"),
    fix=("`with parametrize.cached():` below norm_of_a_weight_kept_for_an_epoch.py:6",),
    text=("`parametrize.cached()` keeps",),
)  # fmt: skip
case(
    "GX302", "own_parametrization_around_a_step", PARAMETRIZE + """
class Positive(nn.Module):
    def forward(self, raw):
        return raw.exp()
net = nn.Bilinear(2, 2, 1)
parametrize.register_parametrization(net, "weight", Positive())
def step(x):
    net(x, x).sum().backward()
k = 0
with torch.enable_grad(), torch.nn.utils.parametrize.cached():  #C
    while k < 3:
        step(torch.ones(1, 2))
        k += 1
""",
    ("with torch.enable_grad(), torch.nn.utils.parametrize.cached():\n    while k < 3:\n",
     "while k < 3:\n    with torch.enable_grad(), torch.nn.utils.parametrize.cached():\n"),
    fix=("`with torch.enable_grad(), torch.nn.utils.parametrize.cached():` below",),
)  # fmt: skip
case(
    "GX302", "two_steps_written_out", PARAMETRIZE + """
net = parametrizations.orthogonal(nn.Linear(3, 3))
with parametrize.cached():  #C
    net(torch.ones(1, 3)).sum().backward()
    net(torch.ones(2, 3)).exp().sum().backward()
""",
    ("    net(torch.ones(2, 3)).exp", "with parametrize.cached():\n    net(torch.ones(2, 3)).exp"),
    fix=("enter it anew for each backward(), `with parametrize.cached():` around one forward",),
)  # fmt: skip

test_the_line_is_named, test_the_mended_script_is_silent = named_and_mended(case)

OTHERS = {
    # A state is carried on from one round to the next: to keep the graph would go on for ever.
    "state_carried_between_rounds": """
        cell, h = nn.RNNCell(2, 2), torch.zeros(1, 2)
        for _ in range(3):
            h = cell(torch.ones(1, 2), h)
            for loss in [h.sum()]:
                loss.backward()
        """,
    # What the rounds share is older than they are.
    "table_made_once": """
        w = torch.ones(3, requires_grad=True)
        table = w.exp()
        for _ in range(3):
            losses = [(table * 2).exp().sum()]
            for loss in losses:
                loss.backward()
        """,
    "losses_of_a_generator": """
        w = torch.ones(3, requires_grad=True)
        def losses():
            scale = w.exp()
            for x in torch.ones(3, 3):
                yield (scale * x).exp().sum()
        for loss in losses():
            loss.backward()
        """,
    "loss_computed_in_the_loop": """
        w = torch.ones(3, requires_grad=True)
        scale = w.exp()
        for x in torch.ones(3, 3):
            loss = (scale * x).exp().sum()
            loss.backward()
        """,
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_outlives_the_loop_is_not_kept(name: str) -> None:
    ran = run(textwrap.dedent(OTHERS[name]).lstrip("\n"), f"several-{name}")
    assert [d.code for d in ran.diagnoses] == ["GX302"]
    assert "keep the graph for the next loss" not in ran.diagnoses[0].fix


def test_a_block_that_keeps_weights_is_silent_for_one_backward() -> None:
    text = PARAMETRIZE + textwrap.dedent(
        """
        net = parametrizations.weight_norm(nn.Linear(3, 3))
        for _ in range(2):
            with parametrize.cached():
                loss = net(net(torch.ones(1, 3))).sum()
            loss.backward()
        """
    )
    ran = run(text, "cached-once")
    assert ran.error is None
    assert ran.diagnoses == []
