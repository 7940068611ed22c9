"""What GX301 prints as help where a mode was on, typed where it says."""

from __future__ import annotations

from advice import Advice, Advices, check

advice = Advices()

advice(
    "closure_called_by_a_step_without_grad", """
    class Sign(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 0.1})
        @torch.no_grad()
        def step(self, closure):
            loss = closure()
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(p.grad.sign(), alpha=group["lr"])
            return loss
    net = nn.Linear(2, 1)
    leaves = list(net.parameters())
    opt = Sign(net.parameters())
    def closure():
        opt.zero_grad()
        loss = net(torch.ones(3, 2)).pow(2).sum()
        loss.backward()
        return loss
    opt.step(closure)
    """,
    ("loss = closure()", "with torch.enable_grad():\n    loss = closure()"),
    words=("`with torch.enable_grad():` around `loss = closure()`",),
    never=("take the decorator",),
    twin=(("@torch.no_grad()", "# grad mode stays on"),
          ("p.sub_(p.grad.sign(), alpha=group[\"lr\"])", "pass")),
)  # fmt: skip
advice(
    "callback_run_in_a_block", """
    net = nn.Linear(2, 1)
    leaves = list(net.parameters())
    def attack(x):
        net(x).sum().backward()
    def each(function, batches):
        with torch.no_grad():
            for x in batches:
                function(x)
    each(attack, [torch.ones(1, 2)])
    """,
    ("function(x)", "with torch.enable_grad():\n    function(x)"),
    words=("`with torch.enable_grad():` around `function(x)`",),
    twin=(("with torch.no_grad():", "if True:"),),
)  # fmt: skip
advice(
    "forward_and_backward_in_one_block", """
    net = nn.Linear(2, 1)
    leaves = list(net.parameters())
    with torch.no_grad():
        loss = net(torch.ones(1, 2)).sum()
        loss.backward()
    """,
    ("loss = net(torch.ones(1, 2)).sum()",
     "with torch.enable_grad():\n    loss = net(torch.ones(1, 2)).sum()"),
    words=("`with torch.enable_grad():` around `loss = net(torch.ones(1, 2)).sum()`",),
    never=("move `",),
    twin=(("with torch.no_grad():", "if True:"),),
)  # fmt: skip
advice(
    "statement_of_a_block", """
    body, head = nn.Linear(2, 2), nn.Linear(2, 1)
    leaves = list(head.parameters())
    def loss_of(x):
        with torch.no_grad():
            h = body(x)
            out = head(h)
        return out.sum()
    loss_of(torch.ones(1, 2)).backward()
    """,
    ("out = head(h)", "pass"),
    ("return out.sum()", "out = head(h)\nreturn out.sum()"),
    words=("move `out = head(h)`", "out of the block that begins at", "`h = body(x)` too"),
    twin=(("with torch.no_grad():", "if True:"),),
)  # fmt: skip
advice(
    "inference_mode_around_all", """
    net = nn.Linear(2, 1)
    leaves = list(net.parameters())
    def step(x):
        return net(x).sum()
    with torch.inference_mode():
        for _ in range(1):
            loss = step(torch.ones(1, 2))
            loss.backward()
    """,
    ("loss = step(torch.ones(1, 2))",
     "with torch.inference_mode(False):\n    loss = step(torch.ones(1, 2))"),
    words=("`with torch.inference_mode(False):` around `loss = step(torch.ones(1, 2))`",),
    twin=(("with torch.inference_mode():", "if True:"),),
)  # fmt: skip
advice(
    "all_lines_of_a_block", """
    net = nn.Linear(2, 3)
    leaves = list(net.parameters())
    x, y = torch.ones(4, 2), torch.zeros(4, dtype=torch.long)
    with torch.no_grad():
        out = net(x)
        loss = nn.functional.cross_entropy(out, y)
    loss.backward()
    """,
    ("with torch.no_grad():", "if True:"),
    words=("take `with torch.no_grad():`", "away, and leave the lines"),
    never=("move `",),
    twin=(("out = net(x)", "with torch.enable_grad(): out = net(x)"),
          ("loss = nn.functional.cross_entropy(out, y)",
           "with torch.enable_grad(): loss = nn.functional.cross_entropy(out, y)")),
)  # fmt: skip
advice(
    "lines_at_the_end_of_a_block", """
    body, head = nn.Linear(2, 2), nn.Linear(2, 3)
    leaves = list(head.parameters())
    def step(x):
        with torch.no_grad():
            h = body(x)
            out = head(h)
            score = out.log_softmax(-1)
            loss = -score[:, 0].mean()
        loss.backward()
    step(torch.ones(4, 2))
    """,
    ("out = head(h)", "pass"),
    ("score = out.log_softmax(-1)", "pass"),
    ("loss = -score[:, 0].mean()", "pass"),
    ("loss.backward()", "out = head(h)\nscore = out.log_softmax(-1)\n"
     "loss = -score[:, 0].mean()\nloss.backward()"),
    words=("move the lines from lines_at_the_end_of_a_block.py:6 to "
           "lines_at_the_end_of_a_block.py:8 out of the block",),
    twin=(("with torch.no_grad():", "if True:"),),
)  # fmt: skip
advice(
    "condition_of_a_block", """
    net = nn.Linear(2, 3)
    leaves = list(net.parameters())
    def run(phase, x, y):
        with torch.set_grad_enabled(phase == "train"):
            out = net(x)
            loss = nn.functional.cross_entropy(out, y)
        if phase == "training":
            loss.backward()
    run("training", torch.ones(4, 2), torch.zeros(4, dtype=torch.long))
    """,
    ('with torch.set_grad_enabled(phase == "train"):',
     'with torch.set_grad_enabled(phase == "training"):'),
    words=("let `phase == 'train'` (condition_of_a_block.py:4) be true",),
    never=("move", "out of the block"),
    twin=(('with torch.set_grad_enabled(phase == "train"):', "if True:"),),
)  # fmt: skip
advice(
    "lines_that_use_the_name_of_their_block", """
    import contextlib
    @contextlib.contextmanager
    def frozen(module):
        with torch.no_grad():
            yield module
    net = nn.Linear(2, 3)
    leaves = list(net.parameters())
    with frozen(net) as module:
        h = module(torch.ones(1, 2))
        h = h * 2
    h.sum().backward()
    """,
    ("h = h * 2", "pass"),
    ("h = module(torch.ones(1, 2))", "pass"),
    ("h.sum().backward()", "h = module(torch.ones(1, 2))\nh = h * 2\nh.sum().backward()"),
    words=("move the lines from", "out of the block that begins at", "leave `pass` in it"),
    never=("away",),
    twin=(("with frozen(net) as module:", "if module := net:"),),
)  # fmt: skip
advice(
    "one_line_that_uses_the_name_of_its_block", """
    class Quiet(torch.no_grad):
        def __enter__(self):
            super().__enter__()
            return net
    net = nn.Linear(2, 3)
    leaves = list(net.parameters())
    with Quiet() as module:
        h = module(torch.ones(1, 2))
    h.exp().sum().backward()
    """,
    ("h = module(torch.ones(1, 2))", "pass"),
    ("h.exp().sum().backward()", "h = module(torch.ones(1, 2))\nh.exp().sum().backward()"),
    words=("move `h = module(torch.ones(1, 2))`", "leave `pass` in it"),
    never=("away",),
    twin=(("with Quiet() as module:", "if module := net:"),),
)  # fmt: skip
advice(
    "two_names_of_a_block", """
    import contextlib
    @contextlib.contextmanager
    def both(*modules):
        with torch.no_grad():
            yield modules
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    leaves = [*a.parameters(), *b.parameters()]
    with both(a, b) as (first, second):
        h = first(torch.ones(1, 2))
        h = second(h)
    h.exp().sum().backward()
    """,
    ("h = second(h)", "pass"),
    ("h = first(torch.ones(1, 2))", "pass"),
    ("h.exp().sum().backward()",
     "h = first(torch.ones(1, 2))\nh = second(h)\nh.exp().sum().backward()"),
    words=("move `h = second(h)`", "`h = first(torch.ones(1, 2))` too"),
    never=("away",),
    twin=(("with both(a, b) as (first, second):", "if (first := a) and (second := b):"),),
)  # fmt: skip


@advice.each()
def test_typed_as_printed(each: Advice) -> None:
    check(each, "GX301")
