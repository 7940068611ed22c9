"""GX101 with the write or the save in a hook, an autograd.Function, a checkpoint or a thread."""

from __future__ import annotations

from cases import Case, Cases, check_broken, check_mended

case = Cases()

case(
    "GX101", "write_in_a_forward_hook", """
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    def scale(module, args, output):
        output.mul_(2)  #C
    net[1].register_forward_hook(scale)
    net(torch.ones(2, 3)).sum().backward()  #V
    """,
    ("output.mul_(2)", "return output * 2"),
    fix=("from the hook", "`return output.mul(2)`"),
)  # fmt: skip
case(
    "GX101", "write_in_a_tensor_hook", """
    x = torch.ones(3, requires_grad=True)
    scale = torch.ones(3)
    h = x * scale  #V
    y = h * 2
    def hook(grad):
        scale.add_(1)  #C
    y.register_hook(hook)
    y.sum().backward()
    """,
    ("scale.add_(1)", "pass"),
)  # fmt: skip
case(
    "GX101", "write_in_a_custom_backward", """
    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, t, s):
            ctx.s = s
            return t * s
        @staticmethod
        def backward(ctx, g):
            ctx.s.add_(1)  #C
            return g * ctx.s, None
    s = torch.ones(3)
    x = torch.ones(3, requires_grad=True)
    h = x * s  #V
    Scale.apply(h, s).sum().backward()
    """,
    ("ctx.s.add_(1)", "pass"),
)  # fmt: skip
case(
    "GX101", "custom_function_saved_tensors", """
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, t):
            ctx.save_for_backward(t)  #V
            return t * t
        @staticmethod
        def backward(ctx, g):
            (t,) = ctx.saved_tensors
            return 2 * g * t
    x = torch.ones(3, requires_grad=True)
    h = x + 1
    y = Square.apply(h)  #V
    h.add_(1)  #C
    y.sum().backward()
    """,
    ("h.add_(1)", "h = h.add(1)"),
)  # fmt: skip
case(
    "GX101", "custom_function_saves_then_writes_with_mark_dirty", """
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, t):
            ctx.mark_dirty(t)
            return t.mul_(2)  #C
        @staticmethod
        def backward(ctx, g):
            return g * 2
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #V
    Double.apply(h).sum().backward()
    """,
    ("Double.apply(h)", "Double.apply(h.clone())"),
)  # fmt: skip
case(
    "GX101", "custom_function_without_mark_dirty", """
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, t):
            t.mul_(2)  #C
            return t.clone()
        @staticmethod
        def backward(ctx, g):
            return g * 2
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #V
    Double.apply(h).sum().backward()
    """,
    ("Double.apply(h)", "Double.apply(h.clone())"),
)  # fmt: skip
case(
    "GX101", "write_in_another_thread", """
    import threading
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #V
    def work():
        h.add_(1)  #C
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    h.sum().backward()
    """,
    ("h.add_(1)", "h + 1"),
)  # fmt: skip
case(
    "GX101", "whole_step_in_another_thread", """
    import threading
    failed = []
    def work():
        try:
            x = torch.ones(3, requires_grad=True)
            h = x.exp()  #V
            h.add_(1)  #C
            h.sum().backward()
        except RuntimeError as error:
            failed.append(error)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    """,
    ("h.add_(1)", "h = h.add(1)"),
)  # fmt: skip
case(
    "GX101", "reentrant_checkpoint", """
    from torch.utils.checkpoint import checkpoint
    def block(t):
        h = t.exp()  #V
        h += 1  #C
        return h
    x = torch.ones(3, requires_grad=True)
    checkpoint(block, x, use_reentrant=True).sum().backward()
    """,
    ("h += 1", "h = h + 1"),
    fix=("`h = h + 1`",),
)  # fmt: skip
case(
    "GX101", "parametrised_weight", """
    net = nn.utils.parametrizations.weight_norm(nn.Linear(3, 1))
    y = net(torch.ones(2, 3))  #V
    with torch.no_grad():
        net.parametrizations.weight.original1.mul_(2)  #C
    y.sum().backward()
    """,
    ("    net.parametrizations.weight.original1.mul_(2)", "    pass"),
)  # fmt: skip
case(
    "GX101", "functional_call_parameters_written", """
    net = nn.Linear(3, 1)
    params = {k: v.detach().clone().requires_grad_() for k, v in net.named_parameters()}
    x = torch.ones(2, 3, requires_grad=True)
    y = torch.func.functional_call(net, params, (x,))  #V
    with torch.no_grad():
        for value in params.values():
            value.sub_(0.1)  #C
    y.sum().backward()
    """,
    ("value.sub_(0.1)", "pass"),
    text=("params['weight']",),
)  # fmt: skip
case(
    "GX101", "rnn_hidden_reset_in_place", """
    cell = nn.RNNCell(2, 2)
    h = torch.zeros(1, 2)
    total = 0
    for step in range(3):
        h = cell(torch.ones(1, 2), h)  #V
        total = total + h.sum()
        if step == 1:
            h.zero_()  #C
    total.backward()
    """,
    ("h.zero_()", "h = torch.zeros_like(h)"),
)  # fmt: skip
case(
    "GX101", "simulation_state_in_a_matrix", """
    pos = torch.zeros(3, 2)
    v = torch.ones(2, requires_grad=True)
    for t in range(1, 3):
        pos[t] = pos[t - 1] + v * pos[t - 1].cos()  #CV
    pos.sum().backward()
    """,
    ("v * pos[t - 1].cos()", "v * pos[t - 1].clone().cos()"),
)  # fmt: skip
case(
    "GX101", "dataclass_state", """
    import dataclasses
    @dataclasses.dataclass
    class Cache:
        keys: torch.Tensor
        def write(self, k):
            self.keys[0] = k  #C
    cache = Cache(torch.zeros(2, 3))
    q = torch.ones(3, requires_grad=True)
    s = cache.keys @ q  #V
    cache.write(q.detach())
    (s + cache.keys @ q).sum().backward()
    """,
    ("self.keys[0] = k", "self.keys = torch.stack([k, self.keys[1]])"),
    text=("cache.keys",), fix=("self.keys.clone()",),
)  # fmt: skip
case(
    "GX101", "increment_version", """
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #V
    torch.autograd.graph.increment_version(h)  #C
    h.sum().backward()
    """,
    ("torch.autograd.graph.increment_version(h)", "pass"),
)  # fmt: skip
case(
    "GX101", "random_fill", """
    x = torch.ones(3, requires_grad=True)
    noise = torch.empty(3)
    total = 0
    for _ in range(2):
        noise.normal_()  #C
        total = total + (x * noise).sum()  #V
    total.backward()
    """,
    ("x * noise", "x * noise.clone()"),
)  # fmt: skip
case(
    "GX101", "scatter_into_attention", """
    q = torch.ones(2, 2, requires_grad=True)
    a = torch.softmax(q @ q.t(), -1)  #V
    a.scatter_(1, torch.zeros(2, 1, dtype=torch.long), 0.0)  #C
    (a @ q).sum().backward()
    """,
    ("a.scatter_(", "a = a.scatter("),
    fix=("a = a.scatter(",),
)  # fmt: skip
case(
    "GX101", "vmap_inside", """
    x = torch.ones(4, 3, requires_grad=True)
    h = torch.func.vmap(torch.sigmoid)(x)  #V
    h.mul_(2)  #C
    h.sum().backward()
    """,
    ("h.mul_(2)", "h = h.mul(2)"),
)  # fmt: skip
case(
    "GX101", "dropout_in_place", """
    x = torch.ones(3, requires_grad=True)
    h = x.exp()  #V
    F.dropout(h, 0.5, True, inplace=True)  #C
    h.sum().backward()
    """,
    ("F.dropout(h, 0.5, True, inplace=True)", "h = F.dropout(h, 0.5, True)"),
    fix=("h = F.dropout(h, 0.5, True)",),
)  # fmt: skip


@case.broken()
def test_broken(case: Case) -> None:
    check_broken(case)


@case.broken()
def test_mended(case: Case) -> None:
    check_mended(case)
