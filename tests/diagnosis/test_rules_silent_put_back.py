"""GX401 and GX402 of values that are what they were: put back, kept by an op, packed on purpose.

Each program is run plain and with a guard. Their broken twins, where the values are not put back,
are told of as errors.
"""

from __future__ import annotations

import pytest
from cases import Case, Cases, run

FINE = Cases()
FINE("", "gradcheck_of_two_inputs", """
    a = torch.rand(2, 3, dtype=torch.double, requires_grad=True)
    b = torch.rand(3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: (a * b).sin() * a, (a, b))
    assert torch.autograd.gradgradcheck(lambda a, b: (a * b).sin(), (a, b))
    """)  # fmt: skip
FINE("", "gradcheck_of_a_module", """
    layer = nn.Linear(3, 2).double()
    x = torch.rand(2, 3, dtype=torch.double, requires_grad=True)
    def f(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(("weight", "bias"), parameters)), (x,))
    assert torch.autograd.gradcheck(f, (x, *layer.parameters()))
    assert torch.autograd.gradcheck(f, (x, *layer.parameters()), fast_mode=True)
    """)  # fmt: skip
FINE("", "gradcheck_of_a_function_of_the_programs", """
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x ** 3
        @staticmethod
        def backward(ctx, g):
            x, = ctx.saved_tensors
            return 3 * x * x * g
    x = torch.rand(4, dtype=torch.double, requires_grad=True)
    for _ in range(2):
        assert torch.autograd.gradcheck(Cube.apply, x)
    """)  # fmt: skip
FINE("", "differences_by_element_put_back_exactly", """
    w = torch.rand(3, requires_grad=True)
    def loss():
        return (w ** 3).sum()
    out = loss()
    for i in range(3):
        old = w.data[i].item()
        w.data[i] = old + 1e-2
        up = loss()
        w.data[i] = old - 1e-2
        down = loss()
        w.data[i] = old
    out.backward()
    """)  # fmt: skip
FINE("", "differences_by_element_added_and_taken_away", """
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    x = torch.rand(5, 3)
    out = net(x).pow(2).sum()
    with torch.no_grad():
        for p in net.parameters():
            flat = p.data.view(-1)
            for i in range(flat.numel()):
                flat[i] += 1e-3
                net(x)
                flat[i] -= 2e-3
                net(x)
                flat[i] += 1e-3
    out.backward()
    """)  # fmt: skip
FINE("", "one_element_moved_and_the_whole_restored", """
    net = nn.Linear(3, 1)
    x = torch.rand(2, 3)
    out = net(x).exp().sum()
    kept = [p.detach().clone() for p in net.parameters()]
    net.weight.data[0, 1] += 1
    net.bias.data.zero_()
    net(x)
    for p, old in zip(net.parameters(), kept):
        p.data.copy_(old)
    (out * net.weight.sum()).backward()
    """)  # fmt: skip
FINE("", "line_search_with_the_graph_alive", """
    torch.manual_seed(0)
    w = torch.rand(4, requires_grad=True)
    def loss():
        return (w ** 4).sum()
    start = loss()
    direction = -torch.autograd.grad(start, w, retain_graph=True)[0]
    best, step = start.item(), 1.0
    for step in (1.0, 0.5, 0.25):
        w.data.add_(direction, alpha=step)
        found = loss().item()
        w.data.sub_(direction, alpha=step)
    start.backward()
    """)  # fmt: skip
FINE("", "averaged_weights_swapped_in_and_out", """
    class Average:
        def __init__(self, net):
            self.net = net
            self.mean = [p.detach().clone() * 0.9 for p in net.parameters()]
        def swap(self):
            for p, m in zip(self.net.parameters(), self.mean):
                old = p.data.clone()
                p.data.copy_(m)
                m.copy_(old)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    x = torch.rand(2, 3)
    average, out = Average(net), net(x).pow(2).sum()
    average.swap()
    net(x)
    average.swap()
    out.backward()
    """)  # fmt: skip
FINE("", "weights_exchanged_by_assignment_and_back", """
    net = nn.Linear(3, 1)
    x = torch.rand(2, 3, requires_grad=True)
    out = net(x).pow(2).sum()
    old = {name: p.data for name, p in net.named_parameters()}
    for p in net.parameters():
        p.data = torch.zeros_like(p)
    net(x)
    for name, p in net.named_parameters():
        p.data = old[name]
    out.backward()
    """)  # fmt: skip
FINE("", "sharpness_aware_steps", """
    net = nn.Linear(3, 1)
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    x = torch.rand(2, 3)
    for _ in range(2):
        net(x).pow(2).sum().backward()
        moves = [0.1 * p.grad for p in net.parameters()]
        for p, m in zip(net.parameters(), moves):
            p.data.add_(m)
        opt.zero_grad()
        net(x).pow(2).sum().backward()
        for p, m in zip(net.parameters(), moves):
            p.data.sub_(m)
        opt.step()
        opt.zero_grad()
    """)  # fmt: skip
FINE("", "large_weights_put_back", """
    w = torch.rand(700, 700, requires_grad=True)
    out = (w * w).sum()
    old = w.data.clone()
    w.data.mul_(2)
    w.data.copy_(old)
    out.backward()
    """)  # fmt: skip
FINE("", "a_transposed_view_saved_and_the_weight_put_back", """
    w = torch.rand(3, 4, requires_grad=True)
    out = (w.t() ** 2).sum() + (w[:, 1:3] ** 2).sum()
    old = w.detach().clone()
    w.data.fill_(1)
    w.data[...] = old
    out.backward()
    """)  # fmt: skip
FINE("", "random_leaky_relu", """
    for layer in (nn.RReLU(), nn.RReLU(0.1, 0.9, inplace=True)):
        net = nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 1))
        for _ in range(3):
            net(torch.rand(2, 3)).sum().backward()
    x = torch.rand(3, requires_grad=True)
    F.rrelu(x - 0.5, training=True).sum().backward()
    """)  # fmt: skip
FINE("", "random_leaky_relu_twice_in_one_graph", """
    act = nn.RReLU()
    x = torch.rand(3, requires_grad=True)
    out = act(x - 0.5)
    for _ in range(3):
        out = out + act(x * 2 - 1) * out
    out.sum().backward()
    """)  # fmt: skip
FINE("", "statistics_that_backward_does_not_read", """
    mean, var = torch.zeros(3), torch.ones(3)
    weight, bias = torch.ones(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    total = 0
    for _ in range(2):
        out, _, _ = torch._native_batch_norm_legit(
            torch.rand(4, 3, requires_grad=True), weight, bias, mean, var, True, 0.1, 1e-5)
        total = total + out.pow(2).sum()
    total.backward()
    """)  # fmt: skip
FINE("", "hooks_put_on_saved_tensors_halve_them", """
    x = torch.randn(8, requires_grad=True)
    y = x.sin() * x
    node = y.grad_fn
    node._raw_saved_self.register_hooks(lambda t: t.bfloat16(), lambda t: t.float())
    node._raw_saved_other.register_hooks(lambda t: t.half(), lambda t: t.float())
    y.sum().backward()
    """)  # fmt: skip
FINE("", "hooks_put_on_saved_tensors_look_at_them_otherwise", """
    x = torch.randn(2, 4, requires_grad=True)
    y = x.exp()
    y.grad_fn._raw_saved_result.register_hooks(lambda t: t.view(-1), lambda t: t.view(2, 4))
    y.sum().backward()
    """)  # fmt: skip
FINE("", "activations_kept_as_int8", """
    def pack(t):
        if t.dtype != torch.float32:
            return t
        scale = t.abs().max() / 127 + 1e-9
        return (t / scale).round().to(torch.int8), scale
    def unpack(held):
        return held if isinstance(held, torch.Tensor) else held[0].float() * held[1]
    net = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 1))
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        out = net(torch.rand(5, 3)).pow(2).sum()
    out.backward()
    """)  # fmt: skip
FINE("", "activations_kept_as_bfloat16_by_a_class", """
    class Smaller(torch.autograd.graph.saved_tensors_hooks):
        def __init__(self):
            super().__init__(lambda t: (t.dtype, t.bfloat16()), lambda held: held[1].to(held[0]))
    net = nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 1))
    for _ in range(2):
        with Smaller():
            out = net(torch.rand(5, 3)).pow(2).sum()
        out.backward()
    """)  # fmt: skip
FINE("", "random_leaky_relu_under_hooks_that_copy_nothing", """
    x = torch.rand(3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (t,), lambda held: held[0]):
        out = F.rrelu(x - 0.5, training=True)
    out.sum().backward()
    """)  # fmt: skip
FINE("", "batch_norm_under_hooks_that_copy", """
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.LSTM(3, 2))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        out = net(torch.rand(4, 3))[0].sum()
    out.backward()
    """)  # fmt: skip


@pytest.mark.parametrize("guard", [False, True], ids=["plain", "guard"])
@FINE.broken()
def test_nothing_is_said_of_values_that_are_what_they_were(case: Case, guard: bool) -> None:
    ran = run(case.shown, case.name, guard=guard)
    assert ran.error is None
    assert ran.diagnoses == []


# With and without a guard, unless the name says so.
WRONG = Cases()
WRONG("GX401", "difference_not_put_back", """
    w = torch.rand(3, requires_grad=True)
    out = (w ** 3).sum()
    for i in range(3):
        old = w.data[i].item()
        w.data[i] = old + 1e-2
        (w ** 3).sum()
        if i != 1:
            w.data[i] = old
    out.backward()
    """)  # fmt: skip
WRONG("GX401", "line_search_that_keeps_its_step", """
    w = torch.rand(4, requires_grad=True)
    start = (w ** 4).sum()
    direction = -torch.autograd.grad(start, w, retain_graph=True)[0]
    for step in (1.0, 0.5, 0.25):
        w.data.add_(direction, alpha=step)
        (w ** 4).sum()
        w.data.sub_(direction, alpha=step)
    w.data.add_(direction, alpha=0.25)
    start.backward()
    """)  # fmt: skip
WRONG("GX401", "averaged_weights_left_in", """
    net = nn.Linear(3, 1)
    x = torch.rand(2, 3, requires_grad=True)
    out = net(x).pow(2).sum()
    for p in net.parameters():
        p.data.copy_(p.data * 0.9)
    out.backward()
    """)  # fmt: skip
WRONG("GX401", "large_weights_halved", """
    w = torch.rand(700, 700, requires_grad=True)
    out = (w * w).sum()
    w.data.mul_(2)
    w.data.mul_(0.25)
    out.backward()
    """)  # fmt: skip
WRONG("GX401", "small_steps_in_low_precision", """
    w = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
    out = (w ** 2).sum()
    w.data.mul_(0.99)
    out.backward()
    """)  # fmt: skip
WRONG("GX401", "views_of_data_made_before_the_write", """
    w = torch.rand(3, requires_grad=True)
    alias = w.data
    first = [float(alias[k] + 1) for k in range(3)]
    out = (w ** 2).sum()
    for k in range(3):
        alias[k] = 0
    out.backward()
    """)  # fmt: skip
WRONG("GX401", "fused_steps_between_two_losses", """
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    opt = torch.optim.SGD(net.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        a, b = net(torch.ones(2, 3)).sum(), net(torch.rand(2, 3)).pow(2).sum()
        opt.zero_grad()
        a.backward()
        opt.step()
        b.backward()
    """)  # fmt: skip
HOOKS = Cases()
HOOKS("GX402", "hooks_put_on_a_saved_tensor_keep_it_and_it_is_written", """
    x = torch.randn(8, requires_grad=True)
    h = x * 2
    y = h * h
    y.grad_fn._raw_saved_self.register_hooks(lambda t: t, lambda t: t)
    y.grad_fn._raw_saved_other.register_hooks(lambda t: t, lambda t: t)
    with torch.no_grad():
        h.mul_(3)
    y.sum().backward()
    """)  # fmt: skip
HOOKS("GX402", "noise_packed_before_it_is_drawn", """
    x = torch.rand(6, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        out = F.rrelu(x - 0.5, 0.1, 0.9, training=True)
    out.sum().backward()
    """)  # fmt: skip
HOOKS("GX402", "noise_packed_before_it_is_drawn_in_a_net", """
    class Offload:
        def pack(self, t):
            return t.detach().clone().contiguous()
        def unpack(self, t):
            return t
    hooks = Offload()
    net = nn.Sequential(nn.Linear(3, 4), nn.RReLU(), nn.Linear(4, 1))
    with torch.autograd.graph.saved_tensors_hooks(hooks.pack, hooks.unpack):
        out = net(torch.rand(2, 3)).sum()
    out.backward()
    """)  # fmt: skip


@pytest.mark.parametrize("guard", [False, True], ids=["plain", "guard"])
@WRONG.broken()
def test_values_that_are_others_are_an_error(case: Case, guard: bool) -> None:
    ran = run(case.shown, case.name, guard=guard)
    assert ran.error is None
    assert {(d.code, d.severity) for d in ran.diagnoses} == {("GX401", "error")}


@HOOKS.broken()
def test_hooks_that_keep_the_memory_are_told_of_by_a_guard(case: Case) -> None:
    ran = run(case.shown, case.name, guard=True)
    assert ran.error is None
    assert {(d.code, d.severity) for d in ran.diagnoses} == {("GX402", "error")}
