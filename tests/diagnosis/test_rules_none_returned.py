"""GX304: backward() of an autograd.Function returns None for what is to be trained."""

from __future__ import annotations

import textwrap

import pytest
from cases import Cases, named_and_mended, run

case = Cases()

case(
    "GX304", "step_of_a_quantiser", """
    class Quantise(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, step):
            ctx.save_for_backward(x, step)
            return (x / step).round() * step
        @staticmethod
        def backward(ctx, grad):
            x, step = ctx.saved_tensors
            return grad, None  #C
    class Layer(nn.Linear):
        def __init__(self):
            super().__init__(4, 2)
            self.step = nn.Parameter(torch.tensor(0.1))
        def forward(self, x):
            return F.linear(x, Quantise.apply(self.weight, self.step), self.bias)
    net = Layer()
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for x in torch.rand(3, 5, 4):
        opt.zero_grad()
        net(x).pow(2).mean().backward()  #V
        opt.step()
    """,
    ("return grad, None", "return grad, (grad * ((x / step).round() - x / step)).sum()"),
    text=("`net.step` gets no gradient", "the backward() of `Quantise`"),
    fix=("one value for each argument",),
)  # fmt: skip
case(
    "GX304", "features_behind_a_function_that_forgets_them", """
    class Gate(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, gate, power=2):
            ctx.save_for_backward(x, gate)
            return x * gate
        @staticmethod
        def backward(ctx, grad):
            x, gate = ctx.saved_tensors
            to_x = grad * gate
            return to_x, None, None  #C
    trunk, gates = nn.Linear(3, 3), nn.Linear(3, 3)
    opt = torch.optim.Adam([*trunk.parameters(), *gates.parameters()])
    for x in torch.rand(3, 5, 3):
        loss = Gate.apply(trunk(x), gates(x).sigmoid()).pow(2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    """,
    ("return to_x, None, None", "return to_x, grad * x, None"),
    text=("`gates.weight` and `gates.bias` get no gradient", "`Gate`"),
)  # fmt: skip
case(
    "GX304", "bias_of_a_layer_written_by_hand", """
    class Affine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, bias):
            ctx.save_for_backward(x, weight)
            return x @ weight.t() + bias
        @staticmethod
        def backward(ctx, grad):
            x, weight = ctx.saved_tensors
            to_x = to_weight = to_bias = None
            if ctx.needs_input_grad[0]:
                to_x = grad @ weight
            if ctx.needs_input_grad[1]:
                to_weight = grad.t() @ x
            return to_x, to_weight, to_bias  #C
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 1)])
        def forward(self, x):
            for layer in self.layers:
                x = Affine.apply(x, layer.weight, layer.bias)
            return x
    net = Net()
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for x in torch.rand(3, 5, 3):
        opt.zero_grad()
        net(x).pow(2).mean().backward()
        opt.step()
    """,
    ("return to_x, to_weight, to_bias", "return to_x, to_weight, grad.sum(0)"),
    text=("`net.layers[0].bias`", "get no gradient", "`Affine`"),
)  # fmt: skip


test_the_line_is_named, test_the_mended_script_is_silent = named_and_mended(case)


FUNCTIONS = """
    class Reversed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, scale):
            ctx.scale = scale
            return x.view_as(x)
        @staticmethod
        def backward(ctx, grad):
            return -ctx.scale * grad, None
    class Stopped(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()
        @staticmethod
        def backward(ctx, grad):
            return None
"""
SILENT = {
    "reversal_with_a_number": """
    a, b = nn.Linear(3, 3), nn.Linear(3, 1)
    opt = torch.optim.SGD([*a.parameters(), *b.parameters()], 0.1)
    for x in torch.rand(3, 5, 3):
        opt.zero_grad()
        b(Reversed.apply(a(x), 0.5)).pow(2).mean().backward()
        opt.step()
    """,
    "stopped_here_and_trained_by_another_loss": """
    a, b = nn.Linear(3, 3), nn.Linear(3, 1)
    opt = torch.optim.SGD([*a.parameters(), *b.parameters()], 0.1)
    for x in torch.rand(3, 5, 3):
        opt.zero_grad()
        b(Stopped.apply(a(x))).pow(2).mean().backward()
        (a(x) - x).pow(2).mean().backward()
        opt.step()
    """,
    "teacher_that_is_not_optimised": """
    teacher, b = nn.Linear(3, 3), nn.Linear(3, 1)
    opt = torch.optim.SGD(b.parameters(), 0.1)
    for x in torch.rand(3, 5, 3):
        opt.zero_grad()
        b(Stopped.apply(teacher(x))).pow(2).mean().backward()
        opt.step()
    """,
    "gradients_that_hooks_use_up": """
    net = nn.Linear(3, 3)
    opts = {p: torch.optim.SGD([p], 0.1) for p in net.parameters()}
    def use(p):
        opts[p].step()
        p.grad = None
    for p in net.parameters():
        p.register_post_accumulate_grad_hook(use)
    for x in torch.rand(3, 5, 3):
        Reversed.apply(net(x), 0.1).pow(2).mean().backward()
    """,
    "some_inputs_only": """
    a, b = nn.Linear(3, 3), nn.Linear(3, 1)
    opt = torch.optim.SGD([*a.parameters(), *b.parameters()], 0.1)
    for x in torch.rand(3, 5, 3):
        opt.zero_grad()
        loss = b(Reversed.apply(a(x), 0.5)).pow(2).mean()
        loss.backward(inputs=[*b.parameters()], retain_graph=True)
        loss.backward(inputs=[*a.parameters()])
        opt.step()
    """,
    "reentrant_and_other_checkpoints": """
    from torch.utils.checkpoint import checkpoint
    a, b = nn.Linear(3, 3), nn.Linear(3, 1)
    opt = torch.optim.SGD([*a.parameters(), *b.parameters()], 0.1)
    for k, x in enumerate(torch.rand(4, 5, 3)):
        h = checkpoint(a, x.requires_grad_(), use_reentrant=k % 2 == 0)
        opt.zero_grad()
        Reversed.apply(b(h), 0.1).pow(2).mean().backward()
        opt.step()
    """,
    "stopped_here_and_trained_by_another_thread": """
    import threading
    a, b = nn.Linear(3, 3), nn.Linear(3, 1)
    opt = torch.optim.SGD([*a.parameters(), *b.parameters()], 0.1)
    x = torch.rand(5, 3)
    def learn():
        (a(x) - x).pow(2).mean().backward()
    for _ in range(3):
        opt.zero_grad()
        b(Stopped.apply(a(x))).pow(2).mean().backward()
        learner = threading.Thread(target=learn)
        learner.start()
        learner.join()
        opt.step()
    """,
}


@pytest.mark.parametrize("name", SILENT)
def test_functions_that_are_meant(name: str) -> None:
    ran = run(textwrap.dedent(FUNCTIONS) + textwrap.dedent(SILENT[name]), name)
    assert ran.error is None
    assert ran.diagnoses == []


def test_every_backward_is_counted() -> None:
    source = textwrap.dedent(case[0].source.replace("rand(3,", "rand(9,")).lstrip("\n")
    ran = run(source, "counted")
    assert len(ran.diagnoses) == 9


def test_leaves_that_die_while_other_threads_look() -> None:
    """Each thread has leaves of its own that get no gradient, and drops them at once."""
    source = (
        FUNCTIONS
        + """
    import threading
    def train():
        for _ in range(6):
            leaves = [torch.rand(3, requires_grad=True) for _ in range(4)]
            w = torch.rand(3, requires_grad=True)
            total = sum(Stopped.apply(leaf) for leaf in leaves)
            (total * w).sum().backward()
            assert w.grad is not None
            assert all(leaf.grad is None for leaf in leaves)
    threads = [threading.Thread(target=train) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    """
    )
    ran = run(textwrap.dedent(source), "many-threads")
    assert ran.error is None
