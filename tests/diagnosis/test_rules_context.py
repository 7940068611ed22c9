"""GX401 for what an autograd.Function keeps on its ctx past save_for_backward, and its silence."""

from __future__ import annotations

import functools

from cases import Case, Cases, check_broken, check_mended, run

_cases = Cases()
case = functools.partial(_cases, "GX401", guard=True)

case(
    "a_buffer_that_the_next_call_fills", """
    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.w = w
            return x * w
        @staticmethod
        def backward(ctx, g):
            return g * ctx.w, None
    space = torch.zeros(4)
    h = torch.rand(4, requires_grad=True)
    for step in range(2):
        torch.add(torch.ones(4), step, out=space)  #C
        h = Scale.apply(h, space)  #V
    h.sum().backward()
    """,
    ("ctx.w = w", "ctx.w = w.clone()"), text=("`ctx.w`",), fix=("`ctx.w = w.clone()`",),
)  # fmt: skip
case(
    "in_a_list_by_setup_context", """
    class Mix(torch.autograd.Function):
        @staticmethod
        def forward(x, a, b):
            return x * a + x * b
        @staticmethod
        def setup_context(ctx, inputs, output):
            _, a, b = inputs
            ctx.parts = [a, b]
        @staticmethod
        def backward(ctx, g):
            a, b = ctx.parts
            return g * a + g * b, None, None
    a, b = torch.rand(4), torch.rand(4)
    x = torch.rand(4, requires_grad=True)
    y = Mix.apply(x, a, b)  #V
    b.mul_(3)  #C
    y.sum().backward()
    """,
    ("[a, b]\n", "[a.clone(), b.clone()]\n"), text=("`ctx.parts[1]`",),
)  # fmt: skip
case(
    "in_a_dict_and_written_by_a_step", """
    class Linear(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.kept = {"x": x, "weight": weight}
            return x @ weight.t()
        @staticmethod
        def backward(ctx, g):
            kept = ctx.kept
            return g @ kept["weight"], g.t() @ kept["x"]
    weight = nn.Parameter(torch.rand(3, 4))
    opt = torch.optim.SGD([weight], lr=1.0)
    x = torch.rand(2, 4, requires_grad=True)
    y = Linear.apply(x, weight)  #V
    (weight ** 2).sum().backward()
    opt.step()  #C
    y.sum().backward()
    """,
    ("opt.step()\ny.sum().backward()", "y.sum().backward()\nopt.step()"),
    text=("`ctx.kept['weight']`",),
)  # fmt: skip
case(
    "read_by_a_function_that_backward_calls", """
    def pull(ctx, g):
        return g * ctx.mask
    class Masked(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, mask):
            ctx.mask = mask
            return x * mask
        @staticmethod
        def backward(ctx, g):
            return pull(ctx, g), None
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.ones(4))
            self.w = nn.Parameter(torch.rand(4))
        def forward(self, x):
            y = Masked.apply(x * self.w, self.mask)  #V
            self.mask[0] = 0  #C
            return y
    Net()(torch.rand(4)).sum().backward()
    """,
    ("ctx.mask = mask", "ctx.mask = mask.clone()"),
)  # fmt: skip
case(
    "written_by_numpy", """
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.x = x.detach().clone()
            ctx.memory = ctx.x.numpy()
            seen.append(ctx.memory)
            return x * x
        @staticmethod
        def backward(ctx, g):
            return 2 * ctx.x * g
    seen = []
    y = Square.apply(torch.rand(4, requires_grad=True))  #V
    seen[0][:] = 7  #C
    done = True
    y.sum().backward()
    """,
    ("seen[0][:] = 7", "pass"),
)  # fmt: skip


@_cases.broken()
def test_the_line_that_wrote(case: Case) -> None:
    check_broken(case)


@_cases.broken()
def test_the_mended_twin_is_silent(case: Case) -> None:
    check_mended(case)


FINE = Cases()


def fine(name: str, source: str) -> None:
    FINE("", name, source)


fine("scratch_that_backward_fills", """
    scratch = torch.zeros(4)
    class Times(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            torch.mul(x, w, out=scratch)
            ctx.scratch, ctx.w = scratch, w.clone()
            return scratch.clone()
        @staticmethod
        def backward(ctx, g):
            torch.mul(g, ctx.w, out=ctx.scratch)
            return ctx.scratch.clone(), None
    h = torch.rand(4, requires_grad=True)
    for _ in range(3):
        h = Times.apply(h, torch.rand(4))
    h.sum().backward()
    """)  # fmt: skip
fine("scratch_that_backward_adds_up_in", """
    total = torch.zeros(())
    class Count(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.total = total
            return x.clone()
        @staticmethod
        def backward(ctx, g):
            ctx.total += g.sum()
            return g
    h = torch.rand(4, requires_grad=True)
    y = Count.apply(Count.apply(h)).sum()
    y.backward(retain_graph=True)
    y.backward()
    """)  # fmt: skip
fine("kept_and_not_read_in_backward", """
    class Norm(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, mean):
            ctx.mean = mean
            ctx.save_for_backward(x)
            return x - x.mean()
        @staticmethod
        def backward(ctx, g):
            return g - g.mean(), None
    mean = torch.zeros(())
    y = Norm.apply(torch.rand(4, requires_grad=True), mean)
    mean.add_(1)
    y.sum().backward()
    """)  # fmt: skip
fine("written_and_put_back", """
    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.w = w
            return x * w
        @staticmethod
        def backward(ctx, g):
            return g * ctx.w, None
    w = torch.ones(4)
    y = Scale.apply(torch.rand(4, requires_grad=True), w)
    w.mul_(2)
    w.div_(2)
    y.sum().backward()
    w.mul_(5)
    """)  # fmt: skip
fine("no_tensors_and_a_module", """
    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, net, factor):
            ctx.net, ctx.factor, ctx.nothing = net, factor, None
            return x * factor
        @staticmethod
        def backward(ctx, g):
            return g * ctx.factor, None, None
    Scale.apply(torch.rand(4, requires_grad=True), nn.Linear(2, 2), 2.0).sum().backward()
    """)  # fmt: skip
fine("exchanged_in_backward_and_used_twice", """
    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.w = w.clone()
            return x * w
        @staticmethod
        def backward(ctx, g):
            out = g * ctx.w
            ctx.w.mul_(1.5)
            return out, None
    y = Scale.apply(torch.rand(4, requires_grad=True), torch.ones(4)).sum()
    y.backward(retain_graph=True)
    y.backward()
    """)  # fmt: skip
fine("torchs_own_functions", """
    from torch.utils.checkpoint import checkpoint
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.2))
    x = torch.rand(3, 4, requires_grad=True)
    checkpoint(net, x, use_reentrant=True).sum().backward()
    """)  # fmt: skip


@FINE.broken()
def test_nothing_is_said_of_what_is_meant(case: Case) -> None:
    ran = run(case.shown, case.name, guard=True)
    assert ran.error is None
    assert ran.diagnoses == []
