"""What GX101 prints as help, typed where it says."""

from __future__ import annotations

import pytest
from advice import Advice, Advices, check, gradients

advice = Advices()

# A name that is an item of a dict, a list or a tensor.
advice(
    "item_of_a_dict", """
    x = torch.ones(3, requires_grad=True)
    leaves = [x]
    parts = {"a": x.exp(), "b": x.tanh()}
    for key in parts:
        parts[key] *= 2
    (parts["a"] + parts["b"]).sum().backward()
    """,
    ("parts[key] *= 2", "parts[key] = parts[key] * 2"),
    never=("clone",),
)  # fmt: skip
advice(
    "item_of_a_dict_that_a_function_made", """
    def heads(x):
        return {"box": x.sigmoid(), "mask": x.exp()}
    x = torch.ones(3, requires_grad=True)
    leaves = [x]
    out = heads(x)
    out["box"] /= out["box"].sum().detach()
    (out["box"] + out["mask"]).sum().backward()
    """,
    ('out["box"] /= out["box"].sum().detach()',
     "out['box'] = out['box'] / out['box'].sum().detach()"),
    never=("out.clone()",),
)  # fmt: skip
advice(
    "item_of_a_list_attribute", """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(3, 3)
            self.states = []
        def forward(self, x):
            self.states = [self.lin(x).sigmoid() for _ in range(2)]
            self.states[0].mul_(0.5)
            return self.states[0] + self.states[1]
    net = Net()
    leaves = [net.lin.weight]
    net(torch.ones(1, 3)).sum().backward()
    """,
    ("self.states[0].mul_(0.5)", "self.states[0] = self.states[0].mul(0.5)"),
)  # fmt: skip
advice(
    "rows_of_a_tensor", """
    x = torch.ones(4, 3, requires_grad=True)
    leaves = [x]
    y = x.sigmoid()
    y[1:] += 1
    y.sum().backward()
    """,
    ("y[1:] += 1", "y = y.clone()\ny[1:] += 1"),
    twin=(("y[1:] += 1", "y = torch.cat([y[:1], y[1:] + 1])"),),
)  # fmt: skip
# A name that nobody else looks at again.
advice(
    "argument_that_the_function_only_writes", """
    def clip(t, most):
        t.clamp_(max=most)
    x = torch.ones(3, requires_grad=True)
    leaves = [x]
    y = x.exp()
    clip(y, 2.0)
    y.sum().backward()
    """,
    ("y = x.exp()", "y = x.exp().clone()"),
    never=("t = t.clamp",),
)  # fmt: skip
advice(
    "argument_whose_result_is_dropped", """
    def scale(t):
        t *= 2
        return t
    x = torch.ones(3, requires_grad=True)
    leaves = [x]
    y = x.tanh()
    scale(y)
    (y * y).sum().backward()
    """,
    ("y = x.tanh()", "y = x.tanh().clone()"),
    never=("t = t * 2",),
)  # fmt: skip
advice(
    "argument_that_is_returned", """
    def scale(t):
        t *= 2
        return t
    x = torch.ones(3, requires_grad=True)
    leaves = [x]
    scale(x.tanh()).sum().backward()
    """,
    ("t *= 2", "t = t * 2"),
)  # fmt: skip
advice(
    "loop_whose_body_reads_on", """
    x = torch.ones(2, 3, requires_grad=True)
    leaves = [x]
    total = 0
    for scale in (1.0, 2.0):
        h = (x * scale).sigmoid()
        h += 1
        total = total + h.sum()
    total.backward()
    """,
    ("h += 1", "h = h + 1"),
)  # fmt: skip
advice(
    "row_of_a_canvas", """
    x = torch.ones(2, 3, requires_grad=True)
    leaves = [x]
    canvas = x.exp()
    row = canvas[0]
    row += 1
    canvas.sum().backward()
    """,
    ("canvas = x.exp()", "canvas = x.exp().clone()"),
    never=("row = row + 1",),
)  # fmt: skip
advice(
    "global_written_by_a_function", """
    x = torch.ones(3, requires_grad=True)
    leaves = [x]
    state = torch.ones(3)
    def advance():
        state.add_(1)
    loss = 0
    for _ in range(2):
        loss = loss + (x * state).sum()
        advance()
    loss.backward()
    """,
    ("loss = loss + (x * state).sum()", "loss = loss + (x * state.clone()).sum()"),
    never=("state = state.add",),
)  # fmt: skip
# What a module holds takes no new tensor.
advice(
    "buffer_of_a_module", """
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.ones(3))
        def forward(self, x):
            y = x * self.scale
            self.scale += 1
            return y
    x = torch.ones(3, requires_grad=True)
    leaves = [x]
    net = Norm()
    net(x).sum().backward()
    """,
    ("y = x * self.scale", "y = x * self.scale.clone()"),
)  # fmt: skip
advice(
    "parameter_written_in_a_loop", """
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    leaves = list(net.parameters())
    losses = []
    def move():
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(0.5)
            net[0].bias.add_(1)
    for _ in range(2):
        losses.append(net(torch.ones(2, 3)).sum())
        move()
    sum(losses).backward()
    """,
    ("losses.append(net(torch.ones(2, 3)).sum())",
     "losses.append(torch.func.functional_call(net, {k: p.clone() for k, p in "
     "net.named_parameters()}, (torch.ones(2, 3),)).sum())"),
    words=("torch.func.functional_call(net, {k: p.clone() for k, p in net.named_parameters()}, "
           "(torch.ones(2, 3),))",),
    never=("p = p.mul",),
)  # fmt: skip
# A step() that is an environment's, and one that is an optimizer's without being torch's.
advice(
    "step_of_an_environment", """
    class Env:
        def __init__(self):
            self.pos = torch.zeros(3)
        def step(self, force):
            self.pos += force
            return (self.pos * self.pos).sum()
    x = torch.ones(3, requires_grad=True)
    leaves = [x]
    env, loss = Env(), 0
    for _ in range(3):
        loss = loss + env.step(x)
    loss.backward()
    """,
    ("self.pos += force", "self.pos = self.pos + force"),
    never=("move `",),
)  # fmt: skip


@advice.each()
def test_typed_as_printed(each: Advice) -> None:
    check(each, "GX101")
    with pytest.raises(RuntimeError, match="inplace operation"):
        gradients(each.source, each.name)
